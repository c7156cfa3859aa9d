"""Sequence-to-sequence generators: BART and whatever else AutoModelForSeq2SeqLM gives.

Shapes: R contexts, S context tokens, T target tokens, V vocabulary, G groups, N contexts per group.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from ragstone.encoders.attention import use_attention
from ragstone.encoders.precision import padded_length
from ragstone.errors import InputError
from ragstone.model.context_tokenizer import ContextTokenizer
from ragstone.model.decoding import Decoding
from ragstone.model.marginal import IGNORED
from ragstone.model.marginal_search import search_answers
from ragstone.model.runs import padded_right, runs_of_like_length, tokens_at_once
from ragstone.model.selected_positions import only_at, vocabulary_layer, without_zero_bias
from ragstone.model.shared_attention import share_contexts
from ragstone.model.shared_lookup import SharedTable
from ragstone.model.without_padding import only_tokens


@dataclass(frozen=True)
class Seq2SeqContexts:
    """Contexts that the encoder has read. See generator.EncodedContexts."""

    states: torch.Tensor
    """[R, S, D]"""
    attention_mask: torch.Tensor
    """[R, S]"""
    table: SharedTable
    """The encoder's token embeddings."""
    kind: type[Any] = BaseModelOutput
    """What the encoder gives: decoders with experts look for those of the encoder in it."""

    @property
    def output(self) -> Any:
        """The states as the encoder gives them."""
        return self.kind(last_hidden_state=self.states)

    @property
    def device(self) -> torch.device:
        return self.states.device

    def select(self, rows: torch.Tensor) -> Seq2SeqContexts:
        """See EncodedContexts.select."""
        return replace(self, states=self.states[rows], attention_mask=self.attention_mask[rows])

    def __len__(self) -> int:
        return len(self.states)


class Seq2SeqGenerator:
    """A transformers sequence-to-sequence model with its tokenizer. See generator.Generator."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.context_tokenizer = ContextTokenizer(tokenizer)
        vocabulary_layer(model)  # refuses what has none
        use_attention(model)
        self._shares_contexts = share_contexts(model)

    def longest_context(self, answer: int = 0) -> int | None:
        """See Generator.longest_context: the positions of the encoder; T5's are relative, without end."""
        return _positions(self.model.config, "max_encoder_position_embeddings")

    @property
    def longest_target(self) -> int | None:
        """See Generator.longest_target: the positions of the decoder."""
        return _positions(self.model.config, "max_decoder_position_embeddings")

    def tokenize_targets(self, answers: Sequence[str], max_length: int) -> torch.Tensor:
        """See Generator.tokenize_targets: what the tokenizer gives for target text is what the model calls labels."""
        batch = self.tokenizer(
            text_target=list(answers),
            truncation=True,
            max_length=max_length,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        return labels.to(self.model.device)

    def encode(self, contexts: Sequence[tuple[str, str]], max_length: int) -> Seq2SeqContexts:
        """See Generator.encode. Contexts of like length are encoded together, padded to the longest of them."""
        ids = self.context_tokenizer.ids(contexts, max_length)
        device, limit = self.model.device, self.longest_context()
        lengths = [padded_length(len(row), device, self.model.dtype, limit) for row in ids]
        runs = runs_of_like_length(lengths, tokens_at_once(device))
        encoder = self.model.get_encoder()
        embedding = encoder.get_input_embeddings()
        table = SharedTable(embedding)
        tokens = torch.tensor([self.tokenizer.pad_token_id, *{token for row in ids for token in row}])
        states, masks = [], []
        with table.looked_up_once(tokens.to(device), embedding):
            for rows in runs:
                length = lengths[rows[0]]
                input_ids = padded_right([ids[row] for row in rows], length, self.tokenizer.pad_token_id)
                counts = torch.tensor([len(ids[row]) for row in rows])
                mask = (torch.arange(length) < counts[:, None]).long().to(device)
                output = encoder(
                    input_ids=input_ids.to(device),
                    attention_mask=mask,
                    return_dict=True,
                    **_global_attention(encoder, mask),
                )
                missing = max(lengths) - length
                states.append(pad(output.last_hidden_state, (0, 0, 0, missing)))
                masks.append(pad(mask, (0, missing)))
        place = torch.tensor([row for rows in runs for row in rows], device=device).argsort()
        return Seq2SeqContexts(torch.cat(states).index_select(0, place), torch.cat(masks)[place], table, type(output))

    def target_logits(
        self, contexts: Seq2SeqContexts, labels: torch.Tensor, places: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See Generator.target_logits. The decoder's input is the labels shifted right behind the start token."""
        answers = labels.shape[1]
        if answers > 1 and not self._shares_contexts:
            contexts = contexts.select(torch.arange(len(contexts), device=labels.device).repeat_interleave(answers))
        labels = labels.flatten(0, 1)
        positions = labels != IGNORED if places is None else places.flatten(0, 1)
        length = padded_length(labels.shape[1], self.model.device, self.model.dtype, self.longest_target)
        missing = (0, length - labels.shape[1])
        labels, positions = pad(labels, missing, value=IGNORED), pad(positions, missing)
        decoder, layer, written = self.model.get_decoder(), vocabulary_layer(self.model), self._shift_right(labels)
        # Contexts may be read again, where this reading's way back has gone.
        table = copy.copy(contexts.table)
        lookup: AbstractContextManager[None] = nullcontext()
        # A GPU would be waited for to see which tokens there are, and adds gradients up in no time.
        if written.device.type == "cpu":
            lookup = table.looked_up_once(written, decoder.get_input_embeddings())
        with (
            only_at(positions, layer),
            without_zero_bias(self.model),
            only_tokens(contexts.states, contexts.attention_mask, decoder),
            lookup,
        ):
            output = table.call(
                self.model,
                layer,
                encoder_outputs=contexts.output,
                attention_mask=contexts.attention_mask,
                decoder_input_ids=written,
                use_cache=False,
            )
        return output.logits.squeeze(0)

    def search(
        self, contexts: Seq2SeqContexts, doc_log_probs: torch.Tensor, decoding: Decoding
    ) -> list[list[list[int]]]:
        """See Generator.search.

        Raises:
            InputError: answers may get longer than the decoder has positions for.
        """
        limit = self.longest_target
        if limit is not None and decoding.longest_answer > limit:
            raise InputError(
                f"Answers may get {decoding.longest_answer} tokens long (max_length, or max_new_tokens), but the "
                f"{self.model.config.model_type} generator can write {limit}; lower it."
            )
        return search_answers(
            self.model,
            lambda rows: _Seq2SeqWriting(self.model, contexts.select(rows), self._shares_contexts),
            doc_log_probs,
            decoding,
            start=self._start_token(),
            ends=self._ends(),
            bad_words=self._bad_words(decoding),
        )

    def text(self, labels: Sequence[int]) -> str:
        """See Generator.text. A preamble is left out even where the tokenizer does not count it as special."""
        told = list(labels[1:] if labels and self.is_preamble(labels[0]) else labels)
        return self.tokenizer.decode(told, skip_special_tokens=True).strip()

    def is_preamble(self, label: int) -> bool:
        """See Generator.is_preamble: a start-of-sequence token, or the language that generation has to begin with."""
        return label in (self._bos(), self.model.generation_config.forced_bos_token_id)

    def _shift_right(self, labels: torch.Tensor) -> torch.Tensor:
        shifted = torch.full_like(labels, self._start_token())
        shifted[:, 1:] = labels[:, :-1]
        return shifted.masked_fill(shifted == IGNORED, self.model.config.pad_token_id)

    def _start_token(self) -> int:
        configs = (self.model.generation_config, self.model.config)
        named = (getattr(config, "decoder_start_token_id", None) for config in configs)
        start = next((token for token in named if token is not None), None)
        if start is None:
            raise InputError(
                f"The {self.model.config.model_type} generator's config names no decoder_start_token_id; set it in "
                "its config.json (BART starts with its end token, T5 with its padding token)."
            )
        return start

    def _ends(self) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        return list(ends) if isinstance(ends, list) else [ends]

    def _bos(self) -> int | None:
        """The start-of-sequence token; T5's config has none."""
        return getattr(self.model.config, "bos_token_id", None)

    def _bad_words(self, decoding: Decoding) -> Sequence[Sequence[int]] | None:
        """What is asked for; else the generator's own, such as Marian's padding, and the start token twice."""
        if decoding.bad_words_ids is not None:
            return decoding.bad_words_ids
        bos = self._bos()
        own = self.model.generation_config.bad_words_ids or []
        return [*own, *([] if bos is None else [[bos, bos]])]


class _Seq2SeqWriting:
    """See generator.Writing: the decoder with what it has read and written."""

    def __init__(self, model: Any, contexts: Seq2SeqContexts, shares_contexts: bool) -> None:
        self._model = model
        self._contexts = contexts
        """One for each row of the decoder, or, where it shares contexts, for all rows that stand together."""
        self._cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self._shares_contexts = shares_contexts
        self._read = len(contexts)
        """R"""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See Writing.step."""
        if not self._shares_contexts and len(self._contexts) < len(tokens):
            rows = torch.arange(self._read, device=tokens.device).repeat_interleave(len(tokens) // self._read)
            self._contexts = self._contexts.select(rows)
        contexts = self._contexts
        with ExitStack() as stack:
            stack.enter_context(without_zero_bias(self._model))
            if not self._cache.get_seq_length():
                decoder = self._model.get_decoder()
                stack.enter_context(only_tokens(contexts.states, contexts.attention_mask, decoder))
            output = self._model(
                encoder_outputs=contexts.output,
                attention_mask=contexts.attention_mask,
                decoder_input_ids=tokens[:, None],
                past_key_values=self._cache,
                use_cache=True,
            )
        return output.logits[:, -1]

    def go_on(self, contexts: torch.Tensor, answers: torch.Tensor) -> None:
        """See Writing.go_on. Answers to a context attend to the same, which moves only where contexts are left out."""
        written, read = self._cache.self_attention_cache, self._cache.cross_attention_cache
        each = written.layers[0].keys.shape[0] // self._read
        rows = (contexts.unsqueeze(1) * each + answers).flatten()
        written.reorder_cache(rows)
        kept = contexts if self._shares_contexts else rows
        if len(kept) != len(self._contexts):
            read.reorder_cache(kept)
            self._contexts = self._contexts.select(kept)
        self._read = len(contexts)


def _positions(config: Any, own: str) -> int | None:
    """How many positions a config says that there are: under a stack's `own` name (LED), or one number for both."""
    return getattr(config, own, None) or getattr(config, "max_position_embeddings", None)


def _global_attention(encoder: Any, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """For an encoder that attends locally (LED): its first token sees all others and is seen by them.

    Args:
        encoder: any encoder; one that has no such choice gets no options.
        attention_mask: [R, S]
    """
    if "global_attention_mask" not in inspect.signature(encoder.forward).parameters:
        return {}
    mask = torch.zeros_like(attention_mask)
    mask[:, 0] = 1
    return {"global_attention_mask": mask}
