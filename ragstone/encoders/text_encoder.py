"""A text encoder: a transformers model with the pooling, normalisation and prompt that make its vectors.

Shapes: B texts, S tokens, D dimensions.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from ragstone.arithmetic import Precision
from ragstone.encoders.attention import use_attention
from ragstone.encoders.pooling import Pooling, pool
from ragstone.encoders.precision import compute_dtype, padded_length
from ragstone.encoders.record import EncoderRecord
from ragstone.errors import InputError
from ragstone.progress import ProgressBar, activity
from ragstone.types import FloatArray
from ragstone.weights import hash_weights

CPU_TOKENS_PER_BATCH = 1280
"""In float32, twice as many in a type of half its size. Of more, what the layers of a BERT-base give is new memory at
every layer, which costs a CPU more than it saves."""
M = TypeVar("M", bound=nn.Module)
TokenLists = dict[str, list[list[int]]]
"""What the model takes (input_ids, attention_mask, ...), a list of numbers for each text."""


@dataclass(frozen=True)
class EncoderSettings:
    """All that turns a transformer's states into vectors, besides its weights."""

    pooling: Pooling = "cls"
    normalize: bool = False
    """Scale vectors to length one, so that inner product is cosine."""
    prompt: str = ""
    """Text put before every input ("query: ", "passage: ")."""
    max_length: int = 512
    """Tokens after which a text is cut."""
    pair: bool = False
    """A passage's title and text go in as a pair of segments (DPR); else joined by a space."""


class TextEncoder(nn.Module):
    """Encodes questions, or passages with titles, into vectors."""

    def __init__(
        self, model: Any, tokenizer: Any, settings: EncoderSettings, name: str, dense: nn.Sequential | None = None
    ) -> None:
        """Join what makes a vector of a text.

        Args:
            model: a transformers encoder.
            tokenizer: the model's.
            settings: see EncoderSettings.
            name: what messages call it (its folder or hub name).
            dense: layers between pooling and normalisation, see encoders.dense.
        """
        super().__init__()
        use_attention(model)
        self.model = model
        self.dense = dense
        self.tokenizer = tokenizer
        self.settings = settings
        self.name = name
        # Before the text, it would shift the positions of models that count them from the first place.
        tokenizer.padding_side = "right"
        if settings.pooling != "pooler":
            # Its pooler has no part in the vectors.
            for path, parameter in model.named_parameters():
                if ".pooler." in f".{path}":
                    parameter.requires_grad_(False)

    @property
    def dimension(self) -> int:
        """D, the length of its vectors."""
        if self.dense is not None:
            last: Any = self.dense[-1]
            return int(last.linear.out_features)
        return self.width

    @property
    def width(self) -> int:
        """The length of what the pooling gives."""
        config = self.model.config
        return getattr(config, "projection_dim", 0) or config.hidden_size

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def __setstate__(self, state: dict[str, Any]) -> None:
        """From another process, which Ray's workers get it from."""
        super().__setstate__(state)
        use_attention(self.model)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Vectors [B, D] in float32 of tokens [B, S]; gradients flow to the weights."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **inputs)
        vectors = pool(output, attention_mask, self.settings.pooling).float()
        if self.dense is not None:
            vectors = self.dense(vectors).float()
        return nn.functional.normalize(vectors, dim=-1) if self.settings.normalize else vectors

    def tokenize(self, texts: Sequence[str], titles: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """Padded token tensors [B, S] on the model's device; `titles` makes the texts passages."""
        return self._padded(self.token_lists(texts, titles))

    def _padded(self, tokens: TokenLists) -> dict[str, torch.Tensor]:
        """Tensors [B, S] on the model's device."""
        longest = max(map(len, tokens["input_ids"]), default=0)
        length = padded_length(longest, self.device, self.model.dtype, self.settings.max_length)
        batch = self.tokenizer.pad(tokens, padding="max_length", max_length=length, return_tensors="pt")
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def embed(
        self,
        texts: Sequence[str],
        titles: Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        precision: Precision = "fp32",
        progress: ProgressBar | None = None,
    ) -> FloatArray:
        """Vectors [len(texts), D], in the order given, without gradients. See in_precision and embed_tokens."""
        tokens = self.token_lists(texts, titles)
        return self.in_precision(precision).embed_tokens(tokens, batch_size=batch_size, progress=progress)

    @torch.inference_mode()
    def embed_tokens(
        self,
        tokens: TokenLists,
        *,
        batch_size: int = 32,
        progress: ProgressBar | None = None,
    ) -> FloatArray:
        """Vectors [n, D] of n texts that token_lists made tokens of, in their order, without gradients.

        Texts are batched by length, so that little is spent on padding; on a CPU few tokens go together, see
        CPU_TOKENS_PER_BATCH.
        """
        most = CPU_TOKENS_PER_BATCH * torch.float32.itemsize // self.model.dtype.itemsize
        lengths = [len(ids) for ids in tokens["input_ids"]]
        vectors = np.empty((len(lengths), self.dimension), dtype=np.float32)
        order = np.argsort(np.negative(lengths), kind="stable")
        start = 0
        while start < len(order):
            # The longest comes first.
            longest = padded_length(lengths[order[start]], self.device, self.model.dtype, self.settings.max_length)
            fitting = most // longest if self.device.type == "cpu" else batch_size
            rows = order[start : start + max(1, min(batch_size, fitting))]
            start += len(rows)
            batch = self._padded({name: [values[row] for row in rows] for name, values in tokens.items()})
            vectors[rows] = self(**batch).cpu().numpy()
            if progress is not None:
                progress.advance(len(rows))
        return vectors

    def in_precision(self, precision: Precision) -> TextEncoder:
        """An encoder that computes in `precision`: this one for fp32, else one with a converted copy of the weights.

        Take it once and use it for all texts. Autocast would convert the weights for every batch anew.

        Raises:
            InputError: the device has no such arithmetic.
        """
        dtype = compute_dtype(self.device, precision)
        if dtype == torch.float32:
            return self
        dense = None if self.dense is None else _copied(self.dense, dtype)
        copied = TextEncoder(_copied(self.model, dtype), self.tokenizer, self.settings, self.name, dense)
        # What is no parameter; a model's own way of conversion refuses weights that are quantised.
        return copied.to(dtype)

    def fingerprint(self) -> str:
        """A hash of weights, vocabulary and settings: two encoders with the same one give the same vectors."""
        return self.record().fingerprint

    @activity("Hashing the encoder")
    def record(self) -> EncoderRecord:
        """What to remember of it beside vectors that it made."""
        settings = dataclasses.asdict(self.settings)
        tensors = self.model.state_dict()
        if self.settings.pooling != "pooler":
            tensors = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
        if self.dense is not None:
            tensors |= {f"dense.{name}": tensor for name, tensor in self.dense.state_dict().items()}
        weights = hash_weights(tensors, sorted(self.tokenizer.get_vocab().items()), repr(self.dense))
        return EncoderRecord(hash_weights({}, weights, settings), self.name, weights, settings)

    def token_lists(self, texts: Sequence[str], titles: Sequence[str] | None = None) -> TokenLists:
        """Token ids and masks of each text, unpadded; `titles` makes the texts passages."""
        settings = self.settings
        if not texts:
            return {name: [] for name in self.tokenizer.model_input_names}
        first, second = list(texts), None
        if titles is not None and settings.pair:
            first, second = list(titles), list(texts)
        elif titles is not None:
            first = [f"{title} {text}" if title else text for title, text in zip(titles, texts, strict=True)]
        if settings.prompt:
            first = [settings.prompt + text for text in first]
        encoding = self.tokenizer(first, second, truncation=True, max_length=settings.max_length)
        return {name: encoding[name] for name in self.tokenizer.model_input_names if name in encoding}

    def read_back(self, texts: Sequence[str]) -> list[str]:
        """`texts` as the tokenizer gives them back: cut to length, and lower case where it knows no other.

        Blanks before punctuation marks and within contractions are taken out ("what's", not "what ' s"), as
        tokenizers did by default when the published RAG checkpoints were trained; today's leave some in.
        """
        ids = self.tokenizer(list(texts), truncation=True, max_length=self.settings.max_length)["input_ids"]
        return [
            str(self.tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=True)) for row in ids
        ]


def check_finite(vectors: FloatArray, encoder: TextEncoder) -> None:
    """Refuse vectors with infinities or NaN, which would poison an index.

    Raises:
        InputError: names the encoder.
    """
    if not np.isfinite(vectors).all():
        raise InputError(f"The encoder {encoder.name} gave vectors that are not finite; try --precision fp32.")


def _copied(module: M, dtype: torch.dtype) -> M:
    """A copy whose weights are of `dtype`, without one in their own type on the way."""
    weights = [weight for weight in module.parameters() if weight.is_floating_point()]
    converted = [nn.Parameter(weight.detach().to(dtype), weight.requires_grad) for weight in weights]
    # What copy finds there, it takes for the copy.
    known = {id(weight): new for weight, new in zip(weights, converted, strict=True)}
    return copy.deepcopy(module, known)
