"""Decoder-only generators: GPT-2, Llama, Qwen, Mistral and whatever else AutoModelForCausalLM gives.

A context is a prompt. In training, each prompt and its target are one sequence. Without gradients, a prompt is read
once: all candidates or beams of it stand side by side in one row behind it, and the attention mask keeps them apart.
So there are no keys and values of the prompt for each of them, and none of a beam move when it goes on from another.

Shapes: R prompts, A answers per prompt, K answers that are written at once, S prompt tokens, T target tokens,
V vocabulary, H heads, D dimensions of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache

from ragstone.errors import InputError
from ragstone.model.context_ids import context_ids
from ragstone.model.decoding import Decoding
from ragstone.model.marginal import IGNORED
from ragstone.model.marginal_search import search_answers
from ragstone.model.prompt import Wrapping
from ragstone.model.runs import runs_of_like_length, tokens_at_once
from ragstone.model.selected_positions import only_at, vocabulary_layer

ANSWER_ROOM = 64
"""Positions that a prompt leaves to the answer, at least; a quarter of all where there are few."""
PROBE_ANSWERS = 16
"""Side by side: where distances in the row count instead of positions, those of the last ones are far off."""
PROBE_TOLERANCE = 0.1
"""Of the scores' deviation."""
WITHOUT_PROMPT = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
"""Generation settings that count the tokens of the prompt, of which there is one for each passage, left out."""


@dataclass(frozen=True)
class Memory:
    """What the model keeps of prompts, all but their last tokens; padding is on the left."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    """Keys and values [R, H, S, D] of each layer."""
    mask: torch.Tensor
    """[R, S] true where there is a token."""

    def cache(self) -> Any:
        """A cache of transformers to go on from, which shares nothing that it changes."""
        cache = DynamicCache()
        for number, (keys, values) in enumerate(self.layers):
            cache.update(keys, values, number)
        return cache


@dataclass(frozen=True)
class Prompts:
    """Prompts as token ids, and, without gradients, what the model keeps of them. See generator.EncodedContexts."""

    ids: list[list[int]]
    device: torch.device
    memory: Memory | None

    def select(self, rows: torch.Tensor) -> Prompts:
        """See EncodedContexts.select."""
        memory = self.memory
        if memory is not None:
            layers = [(keys[rows], values[rows]) for keys, values in memory.layers]
            memory = Memory(layers, memory.mask[rows])
        return Prompts([self.ids[row] for row in rows.tolist()], self.device, memory)

    def last(self) -> torch.Tensor:
        """[R] the last tokens."""
        return torch.tensor([row[-1] for row in self.ids], device=self.device)

    def __len__(self) -> int:
        return len(self.ids)


class CausalGenerator:
    """A transformers decoder-only model with its tokenizer. See generator.Generator."""

    def __init__(self, model: Any, tokenizer: Any, wrapping: Wrapping) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.wrapping = wrapping
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._ends = _end_tokens(model, tokenizer, wrapping)
        self._room: int | None = getattr(model.config, "max_position_embeddings", None)
        self._layer_types = set(getattr(model.config, "layer_types", None) or [])
        self._window: int | None = getattr(model.config, "sliding_window", None)
        if self._layer_types and "sliding_attention" not in self._layer_types:
            self._window = None
        self._refuse_what_mixes_answers()

    @property
    def longest_context(self) -> int | None:
        """See Generator.longest_context: prompt and answer share the positions, of which some are kept for answers."""
        return None if self._room is None else self._room - min(ANSWER_ROOM, self._room // 4)

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
        ids = context_ids(self.tokenizer, texts, max_length, opens=self.wrapping.opens, closes=False)
        memory = None if torch.is_grad_enabled() else self._read([row[:-1] for row in ids])
        return Prompts(ids, self.model.device, memory)

    def target_logits(
        self, contexts: Prompts, labels: torch.Tensor, places: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See Generator.target_logits."""
        valid = labels != IGNORED
        if contexts.memory is None:
            logits = self._sequence_logits(contexts, labels)
            return logits if places is None else logits[places[valid]]
        answers, length = labels.shape[1:]
        before = torch.cat([contexts.last()[:, None, None].expand(-1, answers, -1), labels[:, :, :-1]], dim=2)
        own = torch.ones(length, length, dtype=torch.bool, device=labels.device).tril()
        with only_at((valid if places is None else places).flatten(1), vocabulary_layer(self.model)):
            output = self._go_on(
                contexts,
                contexts.memory.cache(),
                before.masked_fill(before == IGNORED, self._ends[0]).flatten(1),
                torch.arange(length, device=labels.device).repeat(answers),
                torch.arange(length, device=labels.device).repeat(answers),
                torch.block_diag(*[own] * answers).expand(len(contexts), -1, -1),
            )
        return output.squeeze(0)

    def search(self, contexts: Prompts, doc_log_probs: torch.Tensor, decoding: Decoding) -> list[list[list[int]]]:
        """See Generator.search.

        Raises:
            InputError: prompts and answers may need more positions than the model has.
        """
        self._refuse_no_room(contexts.ids, decoding.longest - 1)
        return search_answers(
            self.model,
            lambda rows: _CausalWriting(self, contexts.select(rows)),
            doc_log_probs,
            decoding,
            start=contexts.ids[0][-1],
            ends=self._ends,
            bad_words=decoding.bad_words_ids,
            options=WITHOUT_PROMPT,
        )

    def text(self, labels: Sequence[int]) -> str:
        """See Generator.text."""
        return self.tokenizer.decode([label for label in labels if label not in self._ends]).strip()

    def is_preamble(self, label: int) -> bool:
        """See Generator.is_preamble: every token of an answer is of its text."""
        return False

    def _sequence_logits(self, contexts: Prompts, labels: torch.Tensor) -> torch.Tensor:
        """target_logits with gradients: sequences of like length together, padded on the right."""
        self._refuse_no_room(contexts.ids, labels.shape[2])
        answers = labels.shape[1]
        targets = [[label for label in row if label != IGNORED] for row in labels.flatten(0, 1).tolist()]
        prompts = [row for row in contexts.ids for _ in range(answers)]
        rows = [row for row, target in enumerate(targets) if target]
        lengths = [len(prompts[row]) + len(targets[row]) - 1 for row in rows]
        found, order = [], []
        for run in runs_of_like_length(lengths, tokens_at_once(contexts.device)):
            texts = [torch.tensor(prompts[rows[i]] + targets[rows[i]][:-1]) for i in run]
            ids = pad_sequence(texts, batch_first=True, padding_value=self._ends[0]).to(contexts.device)
            places = torch.arange(ids.shape[1], device=ids.device)
            ends = torch.tensor([lengths[i] for i in run], device=ids.device)[:, None]
            counts = torch.tensor([len(targets[rows[i]]) for i in run], device=ids.device)[:, None]
            with only_at((places >= ends - counts) & (places < ends), vocabulary_layer(self.model)):
                output = self.model(input_ids=ids, attention_mask=(places < ends).long(), use_cache=False)
            found.append(output.logits.squeeze(0))
            order += [rows[i] for i in run]
        if order == rows:
            return torch.cat(found)
        pieces = dict(zip(order, torch.cat(found).split([len(targets[row]) for row in order]), strict=True))
        return torch.cat([pieces[row] for row in rows])

    def _read(self, ids: list[list[int]]) -> Memory:
        """The memory of `ids`, of which those of like length are read together, padded on the left."""
        device = self.model.device
        runs = runs_of_like_length(list(map(len, ids)), tokens_at_once(device))
        longest = max(1, *map(len, ids))
        layers: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
        masks = []
        for run in runs:
            length = max(1, *(len(ids[row]) for row in run))
            padded = [[self._ends[0]] * (length - len(ids[row])) + ids[row] for row in run]
            tokens = torch.tensor(padded, device=device)
            counts = torch.tensor([len(ids[row]) for row in run], device=device)[:, None]
            mask = torch.arange(length, device=device) >= length - counts
            cache: Any = DynamicCache()
            with only_at(torch.zeros_like(mask), vocabulary_layer(self.model)):
                self.model(
                    input_ids=tokens,
                    attention_mask=mask.long(),
                    past_key_values=cache,
                    use_cache=True,
                    **self._positions((mask.cumsum(dim=1) - 1).clamp(min=0)),
                )
            missing = longest - length
            layers.append([(pad(x.keys, (0, 0, missing, 0)), pad(x.values, (0, 0, missing, 0))) for x in cache.layers])
            masks.append(pad(mask, (missing, 0)))
        place = torch.tensor([row for run in runs for row in run], device=device).argsort()
        joined = [
            (torch.cat([keys for keys, _ in parts])[place], torch.cat([values for _, values in parts])[place])
            for parts in zip(*layers, strict=True)
        ]
        return Memory(joined, torch.cat(masks)[place])

    def _go_on(
        self,
        contexts: Prompts,
        cache: Any,
        tokens: torch.Tensor,
        steps: torch.Tensor,
        written_steps: torch.Tensor,
        visible: torch.Tensor,
    ) -> torch.Tensor:
        """Scores of what comes behind tokens that stand behind their prompt.

        Args:
            contexts: R prompts with their memory.
            cache: keys and values of the prompts and of what was written.
            tokens: [R, Q]
            steps: [Q] how many tokens of the same answer stand before each, behind the prompt's last.
            written_steps: [W] the same of the W tokens behind the prompt.
            visible: [R, Q, W] which of the W tokens behind the prompt each attends to, the Q new ones last.
        """
        memory = contexts.memory
        assert memory is not None
        known = memory.mask[:, None].expand(-1, tokens.shape[1], -1)
        mask = torch.cat([known, visible], dim=2)
        length = memory.mask.sum(dim=1, keepdim=True)
        positions = length + steps
        places = torch.cat([memory.mask.cumsum(dim=1) - 1, length + written_steps], dim=1)
        return self.model(
            input_ids=tokens,
            attention_mask=self._attention(mask, positions, places),
            past_key_values=cache,
            use_cache=True,
            **self._positions(positions),
        ).logits

    def _attention(self, mask: torch.Tensor, positions: torch.Tensor, places: torch.Tensor) -> Any:
        """A mask as the model takes it in four dimensions, where it leaves its sliding window to whoever made it.

        Args:
            mask: [R, Q, K] what each token may attend to.
            positions: [R, Q] where those tokens stand.
            places: [R, K] where what they attend to stands.
        """
        if self._window is None:
            return self._bias(mask)
        near = self._bias(mask & (places[:, None] > positions[:, :, None] - self._window))
        if "full_attention" not in self._layer_types:
            return near
        return {"full_attention": self._bias(mask), "sliding_attention": near}

    def _bias(self, mask: torch.Tensor) -> torch.Tensor:
        """[R, 1, Q, K] what is added to attention scores."""
        bias = torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device)
        return bias.masked_fill(~mask, torch.finfo(bias.dtype).min)[:, None]

    def _refuse_no_room(self, prompts: list[list[int]], answer: int) -> None:
        longest = max(map(len, prompts))
        if self._room is not None and longest + answer > self._room:
            raise InputError(
                f"A prompt of {longest} tokens and an answer of {answer} need more than the {self._room} positions "
                f"of the {self.model.config.model_type} generator; lower --max_combined_length."
            )

    def _refuse_what_mixes_answers(self) -> None:
        """Raise InputError unless answers side by side behind one prompt are scored as each is alone."""
        cause = None
        try:
            if not self._layer_types - {"full_attention", "sliding_attention"} and self._tells_answers_apart():
                return
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # models that do not take such a mask, or keep something else, say so in many ways
            cause = error
        raise InputError(
            f"The {self.model.config.model_type} generator does not attend as a mask and positions say, so that two "
            "answers to one prompt cannot be told apart; take one with rotary positions, such as Llama or Qwen."
        ) from cause

    @torch.no_grad()
    def _tells_answers_apart(self) -> bool:
        """Whether the last of many answers, as far from its prompt in the row as can be, is scored as it is alone."""
        training = self.model.training
        self.model.eval()
        vocabulary = self.model.get_input_embeddings().num_embeddings
        prompt = [i % vocabulary for i in (3, 5, 7, 11)]
        answers = torch.tensor([[2, 4]] * (PROBE_ANSWERS - 1) + [[9, 6]]) % vocabulary
        device = self.model.device
        whole = torch.tensor([[*prompt, answer[0]] for answer in answers.tolist()], device=device)
        try:
            alone = self.model(input_ids=whole, use_cache=False).logits[:, -2:].float()
            prompts = Prompts([prompt], device, self._read([prompt[:-1]]))
            together = self.target_logits(prompts, answers[None].to(device)).float()
        finally:
            self.model.train(training)
        # Half precision and few bits differ by some percent; a mask or positions that are not heeded by far more.
        apart = (together.view_as(alone) - alone).square().mean(dim=(1, 2)).sqrt()
        return bool((apart < PROBE_TOLERANCE * alone.std()).all())

    def _positions(self, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"position_ids": positions} if self._takes_positions else {}


class _CausalWriting:
    """See generator.Writing. The K answers to a prompt are one row of the model, step behind step."""

    def __init__(self, generator: CausalGenerator, contexts: Prompts) -> None:
        assert contexts.memory is not None
        self._generator = generator
        self._contexts = contexts
        self._cache = contexts.memory.cache()
        self._steps = torch.zeros(0, dtype=torch.long, device=contexts.device)
        """[W] the step in which each token behind the prompt was written."""
        self._written = torch.zeros(len(contexts), 1, 0, dtype=torch.bool, device=contexts.device)
        """[R, K, W] which of those tokens belong to each answer."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See Writing.step."""
        contexts = self._contexts
        each = len(tokens) // len(contexts)
        tokens = tokens.view(-1, each)
        number = int(self._steps[-1]) + 1 if len(self._steps) else 0
        if number == 0:
            tokens = contexts.last()[:, None].expand(-1, each)
        itself = torch.eye(each, dtype=torch.bool, device=contexts.device).expand(len(contexts), -1, -1)
        self._written = torch.cat([self._written.expand(-1, each, -1), itself], dim=2)
        now = torch.full((each,), number, device=contexts.device)
        self._steps = torch.cat([self._steps, now])
        logits = self._generator._go_on(contexts, self._cache, tokens, now, self._steps, self._written)
        return logits.flatten(0, 1)

    def go_on(self, contexts: torch.Tensor, answers: torch.Tensor) -> None:
        """See Writing.go_on: answers share what they have in common, so that the mask alone moves."""
        self._written = self._written[contexts.unsqueeze(1), answers]
        if len(contexts) < len(self._contexts):
            self._cache.batch_select_indices(contexts)
            self._contexts = self._contexts.select(contexts)


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
