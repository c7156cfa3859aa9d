"""Decoder-only generators: GPT-2, Llama, Qwen, Mistral and whatever else AutoModelForCausalLM gives.

A context is a prompt. In training, each prompt and its target are one sequence. Without gradients, prompts are read
first and answers go on from them: side by side in one row where the model can tell them apart, else a row for each.

Shapes: R prompts, A answers per prompt, T target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ragstone.encoders.attention import use_attention
from ragstone.encoders.precision import padded_length
from ragstone.errors import InputError
from ragstone.model.context_tokenizer import ContextTokenizer
from ragstone.model.continuation import Continuation, Prompts
from ragstone.model.decoding import Decoding
from ragstone.model.marginal import IGNORED
from ragstone.model.marginal_search import search_answers
from ragstone.model.prompt import Wrapping
from ragstone.model.row_by_row import RowByRow
from ragstone.model.runs import padded_right, runs_of_like_length, tokens_at_once
from ragstone.model.selected_positions import only_at, vocabulary_layer
from ragstone.model.shared_lookup import SharedTable
from ragstone.model.side_by_side import SideBySide

ANSWER_ROOM = 64
"""Positions that a prompt leaves to the answer, at least; a quarter of all where there are few."""
PROBE_PROMPTS = ((3, 5, 7, 11), (2, 9))
PROBE_ANSWERS = 16
"""Side by side: where distances in the row count instead of positions, those of the last ones are far off."""
PROBE_TOLERANCE = 0.1
"""Of the scores' deviation."""
WITHOUT_PROMPT = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
"""Generation settings that count the tokens of the prompt, of which there is one for each passage, left out."""


class CausalGenerator:
    """A transformers decoder-only model with its tokenizer. See generator.Generator."""

    def __init__(self, model: Any, tokenizer: Any, wrapping: Wrapping) -> None:
        """
        Raises:
            InputError: the model names no end token, or does not read a text beside others as it reads it alone.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.context_tokenizer = ContextTokenizer(tokenizer)
        self.wrapping = wrapping
        self._ends = _end_tokens(model, tokenizer, wrapping)
        self._room: int | None = getattr(model.config, "max_position_embeddings", None)
        use_attention(model)
        self._continuation = _choose_continuation(model, self._ends[0])

    def longest_context(self, answer: int = 0) -> int | None:
        """See Generator.longest_context: prompt and answer share the positions, of which some are kept for answers."""
        return None if self._room is None else self._room - max(answer, min(ANSWER_ROOM, self._room // 4))

    @property
    def longest_target(self) -> int | None:
        """See Generator.longest_target and longest_context."""
        return None if self._room is None else self._room - 1

    def tokenize_targets(self, answers: Sequence[str], max_length: int) -> torch.Tensor:
        """See Generator.tokenize_targets: the answer's tokens and the token that ends it."""
        texts = [self.wrapping.blank + answer for answer in answers]
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        labels = [torch.tensor([*row[: max_length - 1], self._ends[0]]) for row in rows]
        return pad_sequence(labels, batch_first=True, padding_value=IGNORED).to(self.model.device)

    def encode(self, contexts: Sequence[tuple[str, str]], max_length: int) -> Prompts:
        """See Generator.encode. With gradients, prompts are read together with their targets, later."""
        texts = self.wrapping.wrap(contexts)
        ids = self.context_tokenizer.ids(texts, max_length, opens=self.wrapping.opens, closes=False)
        memory = None if torch.is_grad_enabled() else self._continuation.read(ids)
        return Prompts(ids, self.model.device, memory)

    def target_logits(
        self, contexts: Prompts, labels: torch.Tensor, places: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See Generator.target_logits."""
        wanted = (labels != IGNORED) if places is None else places
        if not torch.is_grad_enabled():
            return self._continuation.target_logits(contexts, labels, wanted)
        logits = self._sequence_logits(contexts, labels)
        return logits if places is None else logits[places[labels != IGNORED]]

    def search(self, contexts: Prompts, doc_log_probs: torch.Tensor, decoding: Decoding) -> list[list[list[int]]]:
        """See Generator.search.

        Raises:
            InputError: prompts and answers may need more positions than the model has.
        """
        self._refuse_no_room(max(map(len, contexts.ids)), decoding.longest_answer)
        return search_answers(
            self.model,
            lambda rows: self._continuation.begin(contexts.select(rows)),
            doc_log_probs,
            decoding,
            start=contexts.ids[0][-1],
            ends=self._ends,
            bad_words=decoding.bad_words_ids,
            options=WITHOUT_PROMPT,
            contexts_at_once=self._continuation.prompts_at_once(max(map(len, contexts.ids)), decoding.answers_at_once),
        )

    def text(self, labels: Sequence[int]) -> str:
        """See Generator.text."""
        return self.tokenizer.decode([label for label in labels if label not in self._ends]).strip()

    def is_preamble(self, label: int) -> bool:
        """See Generator.is_preamble: every token of an answer is of its text."""
        return False

    def _sequence_logits(self, contexts: Prompts, labels: torch.Tensor) -> torch.Tensor:
        """target_logits with gradients: sequences of like length together, padded on the right."""
        answers = labels.shape[1]
        targets = [[label for label in row if label != IGNORED] for row in labels.flatten(0, 1).tolist()]
        prompts = [row for row in contexts.ids for _ in range(answers)]
        rows = [row for row, target in enumerate(targets) if target]
        lengths = [len(prompts[row]) + len(targets[row]) - 1 for row in rows]
        longest = rows[lengths.index(max(lengths))]
        self._refuse_no_room(len(prompts[longest]), len(targets[longest]))
        texts = [prompts[row] + targets[row][:-1] for row in rows]
        filler, embedding, layer = self._ends[0], self.model.get_input_embeddings(), vocabulary_layer(self.model)
        table = SharedTable(embedding)
        tokens = torch.tensor([filler, *{token for text in texts for token in text}], device=contexts.device)
        padded = [padded_length(length, contexts.device, self.model.dtype, self._room) for length in lengths]
        found, order = [], []
        with table.looked_up_once(tokens, embedding):
            for run in runs_of_like_length(padded, tokens_at_once(contexts.device)):
                ids = padded_right([texts[i] for i in run], padded[run[0]], filler).to(contexts.device)
                places = torch.arange(ids.shape[1], device=ids.device)
                ends = torch.tensor([lengths[i] for i in run], device=ids.device)[:, None]
                counts = torch.tensor([len(targets[rows[i]]) for i in run], device=ids.device)[:, None]
                with only_at((places >= ends - counts) & (places < ends), layer):
                    mask = (places < ends).long()
                    output = table.call(self.model, layer, input_ids=ids, attention_mask=mask, use_cache=False)
                found.append(output.logits.squeeze(0))
                order += [rows[i] for i in run]
        if order == rows:
            return torch.cat(found)
        pieces = dict(zip(order, torch.cat(found).split([len(targets[row]) for row in order]), strict=True))
        return torch.cat([pieces[row] for row in rows])

    def _refuse_no_room(self, prompt: int, answer: int) -> None:
        if self._room is not None and prompt + answer > self._room:
            raise InputError(
                f"A prompt of {prompt} tokens and an answer of {answer} need more than the {self._room} positions "
                f"of the {self.model.config.model_type} generator; lower --max_combined_length."
            )


def _choose_continuation(model: Any, filler: int) -> Continuation:
    """How answers go on behind prompts of a model, so that each is scored as it is alone.

    Raises:
        InputError: they are in neither way.
    """
    continuations: list[Continuation] = [RowByRow(model, filler)]
    if SideBySide.suits(model):
        continuations.insert(0, SideBySide(model, filler))
    cause = None
    for continuation in continuations:
        try:
            if _scores_as_alone(model, continuation):
                return continuation
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # models that take no such mask, or no cache of this kind, say so in many ways
            cause = error
    raise InputError(
        f"The {model.config.model_type} generator does not read a text beside others as it reads it alone, so that "
        "answers cannot be compared; take another one, such as Llama, Qwen or Mamba."
    ) from cause


@torch.no_grad()
def _scores_as_alone(model: Any, continuation: Continuation) -> bool:
    """Whether the last of many answers to prompts of different lengths are scored as they are alone."""
    training = model.training
    model.eval()
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = [[token % vocabulary for token in prompt] for prompt in PROBE_PROMPTS]
    answers = torch.tensor([[2, 4]] * (PROBE_ANSWERS - 1) + [[9, 6]], device=model.device) % vocabulary
    labels = answers.expand(len(ids), -1, -1)
    try:
        prompts = Prompts(ids, model.device, continuation.read(ids))
        together = continuation.target_logits(prompts, labels, torch.ones_like(labels, dtype=torch.bool)).float()
        for prompt, scores in zip(ids, together.split(answers.numel()), strict=True):
            whole = torch.tensor([[*prompt, answer[0]] for answer in answers.tolist()], device=model.device)
            alone = model(input_ids=whole, use_cache=False).logits[:, -2:].float()
            # Half precision and few bits differ by some percent; a mask or positions that are not heeded by far more.
            apart = (scores.view_as(alone) - alone).square().mean(dim=(1, 2)).sqrt()
            if not (apart < PROBE_TOLERANCE * alone.std()).all():
                return False
    finally:
        model.train(training)
    return True


def _end_tokens(model: Any, tokenizer: Any, wrapping: Wrapping) -> list[int]:
    """The tokens that end an answer, the one that targets end with first.

    Raises:
        InputError: neither the model nor the tokenizer names one.
    """
    named = model.generation_config.eos_token_id
    known = named if isinstance(named, list) else [named]
    ends = [end for end in (wrapping.end, tokenizer.eos_token_id, *known) if end is not None]
    if not ends:
        raise InputError(
            f"The {model.config.model_type} generator names no end token; set eos_token_id in its "
            "generation_config.json."
        )
    return list(dict.fromkeys(ends))
