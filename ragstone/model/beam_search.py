"""Beam search over a distribution that is marginalised over N contexts.

It finds what beam search in transformers' generate finds (GenerationMixin._beam_search), with less work: a group that
can find nothing better leaves the others, the first token is computed once and not for K equal beams, and what is
done over the vocabulary is done for a few groups at a time, whose scores stay in the processor's cache meanwhile.

Shapes: G groups, K beams, J continuations that are looked at, N contexts per group, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ragstone.model.marginal_writing import MarginalWriting

SCORES_IN_CACHE = 2**20
"""Numbers that are worked on together on a CPU."""

BLOCK = 256
"""Neighbouring numbers of which the highest is looked at before the others."""

Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From the tokens [R, T] before them and the log-probabilities [R, V] of what comes next to other ones."""


@dataclass(frozen=True)
class Beams:
    """Answers of G groups, the best of a group first, except where beams sample."""

    ids: torch.Tensor
    """[G, K, T] tokens, the start token first."""
    scores: torch.Tensor
    """[G, K] log-probabilities; -inf where there is no answer."""

    def select(self, chosen: torch.Tensor) -> Beams:
        """Answers `chosen` [G, K] of each group."""
        return Beams(_gather(self.ids, chosen), self.scores.gather(1, chosen))

    def of(self, groups: torch.Tensor) -> Beams:
        """Those of some `groups` [g]."""
        return Beams(self.ids[groups], self.scores[groups])


@dataclass(frozen=True)
class Continuations:
    """One token more behind beams of G groups."""

    scores: torch.Tensor
    """[G, J] log-probabilities of the answers with it."""
    beams: torch.Tensor
    """[G, J] which beams go on."""
    tokens: torch.Tensor
    """[G, J]"""


def beam_search(
    search: Any,
    input_ids: torch.Tensor,
    logits_processor: Processor,
    stopping_criteria: Callable[[torch.Tensor, None], torch.Tensor],
    generation_config: Any,
    **_: Any,
) -> torch.Tensor:
    """The custom_generate of transformers' generate for several beams, with or without sampling.

    Args:
        search: holds the `writing` of G groups, a MarginalWriting.
        input_ids: [G·K, 1] start tokens.
        logits_processor: of transformers.
        stopping_criteria: of transformers; they say which answers [R, T] are at their end, as truth values [R].
        generation_config: a GenerationConfig.

    Returns:
        [G·num_return_sequences, T] token ids, the start token first. Behind an end token there is only padding.
    """
    config, writing = generation_config, search.writing
    beams, penalty = config.num_beams, config.length_penalty
    looked_at = max(2, 1 + len(config.eos_token_id)) * beams
    start = input_ids[::beams, None]
    running = Beams(start, torch.zeros(start.shape[:2], device=start.device))
    finished = Beams(start.expand(-1, beams, -1), torch.full((len(start), beams), -torch.inf, device=start.device))
    numbers = torch.arange(len(start), device=start.device)
    found: dict[int, list[list[int]]] = {}
    while len(numbers):
        logits = writing.step(running.ids[:, :, -1])
        best = _continuations(writing, logits, running, logits_processor, looked_at, config.do_sample)
        del logits
        longer = torch.cat([_gather(running.ids, best.beams), best.tokens.unsqueeze(2)], dim=2)
        written = longer.shape[2] - 1
        ended = stopping_criteria(longer.flatten(0, 1), None).view(best.scores.shape)
        # Only the likeliest K may end an answer; the others are looked at so that K can go on.
        ends = ended & (torch.arange(best.scores.shape[1], device=ended.device) < beams)
        finished = _merged(finished, Beams(longer, best.scores.masked_fill(~ends, -torch.inf) / written**penalty))
        open_scores = best.scores.masked_fill(ended, -torch.inf)
        going_on = open_scores.topk(min(beams, open_scores.shape[1])).indices
        running = Beams(longer, open_scores).select(going_on)
        survivors = best.beams.gather(1, going_on)

        full = finished.scores[:, -1] > -torch.inf
        reach = config.max_length - 1 if config.early_stopping == "never" and penalty > 0 else written
        done = running.scores[:, 0] / reach**penalty <= finished.scores[:, -1]
        if config.early_stopping is True:
            done |= full
        for group in done.nonzero().flatten().tolist():
            found[int(numbers[group])] = _answers(finished, longer, group, config.num_return_sequences)
        left = (~done).nonzero().flatten()
        running, finished, numbers = running.of(left), finished.of(left), numbers[left]
        if len(left):
            writing.go_on(left, survivors[left])
    rows = [torch.tensor(answer) for group in sorted(found) for answer in found[group]]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=config.eos_token_id[0])


def _continuations(
    writing: MarginalWriting, logits: torch.Tensor, running: Beams, process: Processor, count: int, sample: bool
) -> Continuations:
    """The likeliest `count` continuations of each group, best first, or a sample of them.

    Args:
        writing: of the groups.
        logits: [G, N, K, V] what it gave.
        running: the beams [G, K].
        process: what changes log-probabilities before the choice.
        count: J at most.
        sample: draw them, without replacement.
    """
    vocabulary = logits.shape[-1]
    scores, places = [], []
    for groups in _in_cache(logits):
        log_probs = writing.scores(logits[groups], groups).float().log_softmax(dim=-1)
        before = running.ids[groups].flatten(0, 1)
        log_probs = process(before, log_probs.flatten(0, 1)).view_as(log_probs)
        above = running.scores[groups].unsqueeze(2)
        if sample:
            total = (log_probs + above).flatten(1)
            place = torch.multinomial(total.softmax(dim=1), min(count, total.shape[1]))
            score = total.gather(1, place)
        else:
            score, place = _highest(log_probs, min(count, vocabulary))
            place = place + vocabulary * torch.arange(place.shape[1], device=place.device).unsqueeze(1)
            score, chosen = (score + above).flatten(1).topk(min(count, score[0].numel()))
            place = place.flatten(1).gather(1, chosen)
        scores.append(score)
        places.append(place)
    place = torch.cat(places)
    return Continuations(torch.cat(scores), place // vocabulary, place % vocabulary)


def _highest(numbers: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` highest of each row [..., n] with their places [..., count], the highest first, as topk gives them.

    On a CPU, topk looks at every number several times. The highest ones stand in the `count` blocks with the highest
    maxima, or behind the last block.
    """
    size = numbers.shape[-1]
    blocks = size // BLOCK
    if numbers.device.type != "cpu" or blocks <= count:
        score, place = numbers.topk(count)
        return score, place
    maxima = numbers[..., : blocks * BLOCK].unflatten(-1, (blocks, BLOCK)).amax(dim=-1)
    first = maxima.topk(count).indices.unsqueeze(-1) * BLOCK
    rest = torch.arange(blocks * BLOCK, size).expand(*first.shape[:-2], -1)
    places = torch.cat([(first + torch.arange(BLOCK)).flatten(-2), rest], dim=-1)
    score, place = numbers.gather(-1, places).topk(count)
    return score, places.gather(-1, place)


def _in_cache(logits: torch.Tensor) -> Iterator[slice]:
    """The groups of `logits` [G, ...] in runs whose numbers a CPU's cache holds; on a GPU all at once."""
    groups = len(logits)
    each = groups if logits.device.type != "cpu" else max(1, SCORES_IN_CACHE // logits[0].numel())
    return (slice(first, min(first + each, groups)) for first in range(0, groups, each))


def _merged(finished: Beams, others: Beams) -> Beams:
    """The best K of finished answers [G, K] and others [G, J] of one token more."""
    ids = torch.nn.functional.pad(finished.ids, (0, others.ids.shape[2] - finished.ids.shape[2]))
    both = Beams(torch.cat([ids, others.ids], dim=1), torch.cat([finished.scores, others.scores], dim=1))
    return both.select(both.scores.topk(finished.scores.shape[1]).indices)


def _gather(ids: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Rows `chosen` [G, J] of each group's `ids` [G, K, T]."""
    return ids.gather(1, chosen.unsqueeze(2).expand(-1, -1, ids.shape[2]))


def _answers(finished: Beams, longer: torch.Tensor, group: int, count: int) -> list[list[int]]:
    """The best `count` answers of a group; where there are fewer, the best of them again.

    Args:
        finished: the answers [G, K].
        longer: [G, J, T] what stands for an answer where there is none, because all that could end one is forbidden.
        group: which.
        count: num_return_sequences.
    """
    there = int((finished.scores[group] > -torch.inf).sum())
    rows = finished.ids[group, :there] if there else longer[group, :1]
    found: list[list[int]] = rows[:count].tolist()
    return found + found[:1] * (count - len(found))
