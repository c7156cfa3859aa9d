"""Sequence-to-sequence generators: BART and whatever else AutoModelForSeq2SeqLM gives.

Shapes: R contexts, S context tokens, T target tokens, V vocabulary, G groups, N contexts per group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.modeling_outputs import BaseModelOutput

from ragstone.errors import InputError
from ragstone.model.decoding import Decoding
from ragstone.model.generator import EncodedContexts
from ragstone.model.marginal import IGNORED
from ragstone.model.marginal_search import MarginalSearch
from ragstone.model.shared_attention import share_contexts

CPU_TOKENS_AT_ONCE = 4096
GPU_TOKENS_AT_ONCE = 65536
"""Tokens of contexts of like length that are encoded together. With fewer, less is padded, until the processor is no
longer busy."""


class Seq2SeqGenerator:
    """A transformers sequence-to-sequence model with its tokenizer. See generator.Generator."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._shares_contexts = share_contexts(model)

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

    def encode(self, contexts: Sequence[tuple[str, str]], max_length: int) -> EncodedContexts:
        """See Generator.encode. Contexts of like length are encoded together, padded to the longest of them."""
        ids = self.context_ids(contexts, max_length)
        longest = max(map(len, ids))
        tokens = CPU_TOKENS_AT_ONCE if self.model.device.type == "cpu" else GPU_TOKENS_AT_ONCE
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        states, masks = [], []
        for rows in _runs([len(ids[row]) for row in order], tokens):
            batch = self.tokenizer.pad(
                {"input_ids": [ids[row] for row in order[rows]]}, padding_side="right", return_tensors="pt"
            ).to(self.model.device)
            mask = batch["attention_mask"]
            output = self.model.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask, return_dict=True)
            missing = longest - mask.shape[1]
            states.append(pad(output.last_hidden_state, (0, 0, 0, missing)))
            masks.append(pad(mask, (0, missing)))
        place = torch.tensor(order, device=self.model.device).argsort()
        return EncodedContexts(torch.cat(states)[place], torch.cat(masks)[place])

    def target_logits(self, contexts: EncodedContexts, labels: torch.Tensor) -> torch.Tensor:
        """See Generator.target_logits. The decoder's input is the labels shifted right behind the start token."""
        states, mask = contexts.states, contexts.attention_mask
        answers = labels.shape[1]
        if answers > 1 and not self._shares_contexts:
            states, mask = states.repeat_interleave(answers, dim=0), mask.repeat_interleave(answers, dim=0)
        labels = labels.flatten(0, 1)
        with _only_at(labels != IGNORED, self.model.get_output_embeddings()):
            output = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=mask,
                decoder_input_ids=self._shift_right(labels),
                use_cache=False,
            )
        return output.logits.squeeze(0)

    @torch.no_grad()
    def search(
        self, contexts: EncodedContexts, doc_log_probs: torch.Tensor, decoding: Decoding
    ) -> list[list[list[int]]]:
        """See Generator.search."""
        search: Any = MarginalSearch(
            self.model,
            contexts.states,
            contexts.attention_mask,
            doc_log_probs,
            shares_contexts=self._shares_contexts,
        )
        start = self._start_token()
        sequences = search.generate(
            torch.full((len(doc_log_probs), 1), start, device=doc_log_probs.device),
            attention_mask=torch.ones(len(doc_log_probs), 1, dtype=torch.long, device=doc_log_probs.device),
            past_key_values=search.new_cache(),
            bad_words_ids=self._bad_words(decoding),
            **decoding.generation_options(),
        )
        ends = search.generation_config.eos_token_id
        rows = [_trim(row, set(ends) if isinstance(ends, list) else {ends}) for row in sequences[:, 1:].tolist()]
        each = decoding.num_return_sequences
        return [rows[i : i + each] for i in range(0, len(rows), each)]

    def text(self, labels: Sequence[int]) -> str:
        """See Generator.text."""
        return self.tokenizer.decode(list(labels), skip_special_tokens=True).strip()

    def is_preamble(self, label: int) -> bool:
        """See Generator.is_preamble."""
        return label == self._bos()

    def context_ids(self, contexts: Sequence[tuple[str, str]], max_length: int) -> list[list[int]]:
        """Token ids of joined contexts; where one is too long, tokens are taken from the end of its passage.

        Only when the passage is used up is the end of the question cut.
        """
        joined = self.tokenizer([head + tail for head, tail in contexts], return_special_tokens_mask=True)
        ids: list[list[int]] = joined["input_ids"]
        for row, special in enumerate(joined["special_tokens_mask"]):
            surplus = len(ids[row]) - max_length
            if surplus > 0:
                opening, closing = _special_ends(special)
                end = len(special) - closing
                question = len(self.tokenizer(contexts[row][1], add_special_tokens=False)["input_ids"])
                passage_end = max(end - question, opening)
                cut = max(passage_end - surplus, opening)
                kept = ids[row][:cut] + ids[row][passage_end:end]
                ids[row] = kept[: max_length - closing] + ids[row][end:]
        return ids

    def _shift_right(self, labels: torch.Tensor) -> torch.Tensor:
        shifted = torch.full_like(labels, self._start_token())
        shifted[:, 1:] = labels[:, :-1]
        return shifted.masked_fill(shifted == IGNORED, self.model.config.pad_token_id)

    def _start_token(self) -> int:
        configs = (self.model.generation_config, self.model.config)
        start = next((c.decoder_start_token_id for c in configs if c.decoder_start_token_id is not None), None)
        if start is None:
            raise InputError(
                f"The {self.model.config.model_type} generator's config names no decoder_start_token_id; set it in "
                "its config.json (BART starts with its end token, T5 with its padding token)."
            )
        return start

    def _bos(self) -> int | None:
        """The start-of-sequence token; T5's config has none."""
        return getattr(self.model.config, "bos_token_id", None)

    def _bad_words(self, decoding: Decoding) -> list[list[int]] | None:
        bos = self._bos()
        if decoding.bad_words_ids is None:
            return None if bos is None else [[bos, bos]]
        return [list(words) for words in decoding.bad_words_ids] or None


@contextmanager
def _only_at(positions: torch.Tensor, head: Any) -> Iterator[None]:
    """Let `head`, which maps states [R, T, D] to the vocabulary, do so at some positions only.

    The vocabulary is the widest layer by far, and what it gives at padding is of no use.

    Args:
        positions: [R, T], true at M positions.
        head: a module; it gives [1, M, V] in the end.
    """

    def select(_: Any, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (arguments[0][positions].unsqueeze(0),)

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def refuse_decoder_only(name: str, config: Any) -> None:
    """Refuse a generator that has no encoder.

    Raises:
        InputError: names the model and what to take instead.
    """
    if not config.is_encoder_decoder:
        raise InputError(
            f"{name} is a {config.model_type} model, which is no sequence-to-sequence generator; take one that has an "
            "encoder and a decoder, such as BART or T5."
        )


def _runs(lengths: Sequence[int], tokens: int) -> list[slice]:
    """`lengths`, which ascend, in runs of at most so many tokens, or one row, when padded to the longest of each."""
    runs, first = [], 0
    for row, length in enumerate(lengths):
        if row > first and (row + 1 - first) * length > tokens:
            runs.append(slice(first, row))
            first = row
    return [*runs, slice(first, len(lengths))]


def _special_ends(special: Sequence[int]) -> tuple[int, int]:
    """How many tokens at the start and at the end of a context the tokenizer added."""
    text = [i for i, flag in enumerate(special) if not flag]
    return (text[0], len(special) - text[-1] - 1) if text else (len(special), 0)


def _trim(labels: list[int], ends: set[int]) -> list[int]:
    """Labels up to their first end token; behind it is padding."""
    end = next((i for i, label in enumerate(labels) if label in ends), len(labels))
    return labels[: end + 1]
