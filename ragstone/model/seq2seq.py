"""Sequence-to-sequence generators: BART and whatever else AutoModelForSeq2SeqLM gives.

Shapes: R contexts, S context tokens, T target tokens, V vocabulary, G groups, N contexts per group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutput

from ragstone.errors import InputError
from ragstone.model.decoding import Decoding
from ragstone.model.generator import EncodedContexts
from ragstone.model.marginal import IGNORED
from ragstone.model.marginal_search import MarginalSearch


class Seq2SeqGenerator:
    """A transformers sequence-to-sequence model with its tokenizer. See generator.Generator."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer

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
        """See Generator.encode. Padded to the longest context of the batch, not to `max_length`."""
        ids = self._context_ids(contexts, max_length)
        batch = self.tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt").to(self.model.device)
        output = self.model.get_encoder()(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], return_dict=True
        )
        return EncodedContexts(output.last_hidden_state, batch["attention_mask"])

    def logits(self, contexts: EncodedContexts, labels: torch.Tensor) -> torch.Tensor:
        """See Generator.logits. The decoder's input is the labels shifted right behind the start token."""
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=contexts.states),
            attention_mask=contexts.attention_mask,
            decoder_input_ids=self._shift_right(labels),
            use_cache=False,
        )
        return output.logits

    @torch.no_grad()
    def search(
        self, contexts: EncodedContexts, doc_log_probs: torch.Tensor, decoding: Decoding
    ) -> list[list[list[int]]]:
        """See Generator.search."""
        search: Any = MarginalSearch(self.model, contexts.states, contexts.attention_mask, doc_log_probs)
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

    def _context_ids(self, contexts: Sequence[tuple[str, str]], max_length: int) -> list[list[int]]:
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


def _special_ends(special: Sequence[int]) -> tuple[int, int]:
    """How many tokens at the start and at the end of a context the tokenizer added."""
    text = [i for i, flag in enumerate(special) if not flag]
    return (text[0], len(special) - text[-1] - 1) if text else (len(special), 0)


def _trim(labels: list[int], ends: set[int]) -> list[int]:
    """Labels up to their first end token; behind it is padding."""
    end = next((i for i, label in enumerate(labels) if label in ends), len(labels))
    return labels[: end + 1]
