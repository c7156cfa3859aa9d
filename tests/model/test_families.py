"""Every family of sequence-to-sequence generators against brute force.

The expectation comes from the family's own class in transformers, with its own attention, from one unpadded context at
a time, labels shifted as the class itself shifts them; sums over passages are written out here once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ragstone.model.decoding import Decoding
from ragstone.model.marginal import document_log_probs, sequence_posterior, target_log_probs, token_posterior
from ragstone.model.open import checkpoint_gradients
from ragstone.model.reader import Reader
from tests.model.enumeration import all_answers, marginal, token_probabilities
from tests.model.families import FAMILIES, WORDS, open_family

LENGTH = 3
"""Tokens of the answers that are enumerated, behind those that generation has to begin with."""
CONTEXTS = [["a b", "b c c a b", "c"], ["b", "a a a c", "c b a b c a"]]
SCORES = torch.tensor([[0.3, 1.0, -0.2], [1.5, 0.0, 0.4]])
ANSWERS = ["a c", "b"]
KINDS = ["sequence", "token"]


@dataclass(frozen=True)
class World:
    """A family's generator, the contexts of two questions, and every answer with its probability."""

    generator: Any
    reference: Any
    """The same weights in the family's own class, with nothing of ours."""
    contexts: Any
    doc_log_probs: torch.Tensor
    opening: tuple[int, ...]
    answers: list[tuple[int, ...]]
    """All of the words a, b and c that end within LENGTH tokens, and all that have not ended by then."""
    tokens: np.ndarray[Any, Any]
    """[B, N, answers, tokens] p(y_i|x,z,y_<i), 1 behind the end and at what generation has to begin with."""
    bad_words: tuple[tuple[int, ...], ...]
    """Every other token."""

    def marginal(self, kind: str) -> np.ndarray[Any, Any]:
        """[B, answers] p(y|x)."""
        return marginal(kind, self.doc_log_probs, self.tokens)

    def decoding(self, num_beams: int, **changes: Any) -> Decoding:
        options = {"max_length": 1 + len(self.opening) + LENGTH, "bad_words_ids": self.bad_words, **changes}
        return Decoding(num_beams, **options)


@pytest.fixture(scope="module", params=FAMILIES)
def world(request: pytest.FixtureRequest, family_folder: Callable[[str], Path]) -> World:
    name = request.param
    folder = family_folder(name)
    generator = open_family(name, folder)
    reference = open_family(name, folder, attn_implementation="eager").model
    tokenizer = generator.tokenizer
    opening = FAMILIES[name].opening
    first = () if opening is None else (_code(tokenizer, opening),)
    end = generator.model.config.eos_token_id
    alphabet = [tokenizer(text_target=word, add_special_tokens=False)["input_ids"][-1] for word in WORDS]
    answers = [(*first, *answer) for answer in all_answers(alphabet, end, LENGTH)]
    start = reference.generation_config.decoder_start_token_id
    with torch.no_grad():
        contexts = generator.encode([("", text) for row in CONTEXTS for text in row], 60)
        inputs = [[_inputs(reference, tokenizer, text) for text in row] for row in CONTEXTS]
        tokens = np.array([[token_probabilities(reference, read, answers, start) for read in row] for row in inputs])
    tokens[..., : len(first)] = 1
    prior = document_log_probs(SCORES, torch.ones_like(SCORES, dtype=torch.bool))
    others = set(range(reference.config.vocab_size)) - {*alphabet, end}
    return World(
        generator, reference, contexts, prior, first, answers, tokens, tuple((token,) for token in sorted(others))
    )


def _code(tokenizer: Any, token: str) -> int:
    code = tokenizer.convert_tokens_to_ids(token)
    assert tokenizer.convert_ids_to_tokens(code) == token
    return code


def _inputs(reference: Any, tokenizer: Any, text: str) -> dict[str, torch.Tensor]:
    inputs = dict(tokenizer([text], return_tensors="pt"))
    inputs.pop("token_type_ids", None)
    if reference.config.model_type == "led":
        inputs["global_attention_mask"] = torch.zeros_like(inputs["input_ids"])
        inputs["global_attention_mask"][:, 0] = 1
    return inputs


def _naive_loss(world: World, kind: str, scores: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Summed over the questions: what is minimised, written out, each passage read on its own."""
    total = torch.zeros(())
    for question, answer in enumerate(ANSWERS):
        labels = world.generator.tokenizer(text_target=[answer], return_tensors="pt")["input_ids"]
        prior = scores[question].log_softmax(dim=0)
        log_probs = torch.stack([_log_probs(world, text, labels) for text in CONTEXTS[question]])
        if kind == "token":
            log_probs = (prior[:, None, None] + log_probs).logsumexp(dim=0)
            chosen, average = log_probs.gather(1, labels.T).sum(), log_probs.mean(dim=1).sum()
        else:
            size = log_probs.shape[-1]
            chosen = (prior + log_probs.gather(2, labels.T.expand(3, -1, 1)).sum(dim=(1, 2))).logsumexp(dim=0)
            average = ((prior + log_probs.mean(dim=2).sum(dim=1)) * size).logsumexp(dim=0) / size
        total = total - (1 - smoothing) * chosen - smoothing * average
    return total


def _log_probs(world: World, text: str, labels: torch.Tensor) -> torch.Tensor:
    """[T, V] of one context, the labels shifted as transformers' class shifts them."""
    inputs = _inputs(world.reference, world.generator.tokenizer, text)
    return world.reference(**inputs, labels=labels).logits[0].float().log_softmax(dim=-1)


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_training(world: World, kind: Any, smoothing: float) -> None:
    """The loss, with gradients to the generator and to the passages' scores.

    The models compute in float64: float32 leaves three digits of T5's gradients, on some processors.
    """
    models = world.generator.model, world.reference
    mine, naive = (SCORES.clone().requires_grad_() for _ in range(2))
    with _in_float64(*models):
        loss = _loss(world, kind, mine, smoothing)
        expected = _naive_loss(world, kind, naive, smoothing)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
        for model in models:
            model.zero_grad()
        loss.backward()
        expected.backward()
        torch.testing.assert_close(mine.grad, naive.grad, rtol=1e-4, atol=1e-5)
        _hold_equal(*map(_gradients, models))


@contextmanager
def _in_float64(*models: Any) -> Iterator[None]:
    for model in models:
        model.double()
    try:
        yield
    finally:
        for model in models:
            model.float()


def _loss(world: World, kind: Any, scores: torch.Tensor, smoothing: float) -> torch.Tensor:
    labels = world.generator.tokenize_targets(ANSWERS, 25)
    contexts = world.generator.encode([("", text) for row in CONTEXTS for text in row], 60)
    reading = Reader(world.generator, kind).read(contexts, scores.log_softmax(dim=1), labels, smoothing > 0)
    loss = -(1 - smoothing) * reading.log_likelihood.sum()
    return loss if reading.smoothing is None else loss - smoothing * reading.smoothing.sum()


def _hold_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Gradients that are zero but for rounding are held to the size of the whole."""
    assert found.keys() == expected.keys() and len(found) > 20
    size = torch.stack([gradient.norm() for gradient in expected.values()]).norm().item()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * size, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing(world: World, kind: Any) -> None:
    """The same gradients, from activations that are computed twice."""
    model = world.generator.model
    found = []
    for enabled in (False, True):
        model.zero_grad()
        if enabled:
            checkpoint_gradients(model)
        model.train()
        calls: list[Any] = []
        hook = _a_layer(model).register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        _loss(world, kind, SCORES, 0.0).backward()
        hook.remove()
        found.append((_gradients(model), len(calls)))
    model.eval().activation_checkpointing_disable()
    _hold_equal(found[1][0], found[0][0])
    assert found[1][1] == found[0][1] + 1


def _a_layer(model: Any) -> Any:
    """A module within a layer of the decoder that is called once in a forward pass."""
    decoder = model.get_decoder()
    return next(
        module for module in decoder.modules() if type(module).__name__.endswith(("Attention", "DenseActDense"))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_likelihood_and_posterior(world: World, kind: Any) -> None:
    """Of all answers at once to each context, what generation has to begin with left out."""
    length = world.tokens.shape[3]
    labels = torch.tensor([[*answer, *[-100] * (length - len(answer))] for answer in world.answers])
    prior = world.doc_log_probs.double().exp().numpy()
    skip = len(world.opening)
    for question in range(2):
        rows = torch.arange(3) + question * 3
        each = labels.expand(3, -1, -1)
        with torch.no_grad():
            logits = world.generator.target_logits(world.contexts.select(rows), each)
        read = target_log_probs(logits, each).transpose(0, 1)[:, :, skip:]
        np.testing.assert_allclose(read.exp().numpy().swapaxes(0, 1), world.tokens[question][..., skip:], atol=1e-4)
        joint = prior[question][:, None, None] * world.tokens[question][..., skip:]
        if kind == "sequence":
            joint = prior[question][:, None] * world.tokens[question].prod(axis=2)
            posterior = sequence_posterior(read, world.doc_log_probs[question].expand(len(labels), 3)).T
        else:
            posterior = token_posterior(read, world.doc_log_probs[question].expand(len(labels), 3)).transpose(0, 1)
        np.testing.assert_allclose(posterior.numpy(), joint / joint.sum(axis=0), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_beam_search(world: World, kind: Any) -> None:
    """As many beams as there are answers find the likeliest of all, with its likelihood and posterior."""
    decoding = world.decoding(len(world.answers), length_penalty=0.0)
    found = Reader(world.generator, kind).generate(world.contexts, world.doc_log_probs, decoding)
    best = world.marginal(kind).argmax(axis=1)
    assert [row[0].labels for row in found] == [world.answers[i] for i in best]
    scores = [row[0].score for row in found]
    np.testing.assert_allclose(scores, np.log(world.marginal(kind).max(axis=1)), rtol=1e-4)
    for question, row in enumerate(found):
        np.testing.assert_allclose(row[0].posterior, _posterior(world, kind, question, best[question]), atol=1e-5)


def _posterior(world: World, kind: str, question: int, answer: int) -> np.ndarray[Any, Any]:
    prior = world.doc_log_probs[question].double().exp().numpy()
    tokens = world.tokens[question, :, answer, len(world.opening) : len(world.answers[answer])]
    if kind == "sequence":
        joint = prior * tokens.prod(axis=1)
        return joint / joint.sum()
    joint = prior[:, None] * tokens
    return (joint / joint.sum(axis=0)).mean(axis=1)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_sequence_decoding(world: World, num_beams: int) -> None:
    """Each passage proposes what transformers' own generate finds in it; greedily with one beam."""
    decoding = world.decoding(num_beams, num_return_sequences=3 * num_beams, length_penalty=1.0)
    found = Reader(world.generator, "sequence").generate(world.contexts, world.doc_log_probs, decoding)
    for question, texts in enumerate(CONTEXTS):
        proposed = set().union(*(_proposals(world, text, decoding) for text in texts))
        likelihood = world.marginal("sequence")[question]
        expected = sorted(((likelihood[world.answers.index(answer)], answer) for answer in proposed), reverse=True)
        assert [h.labels for h in found[question]] == [answer for _, answer in expected]
        np.testing.assert_allclose(np.exp([h.score for h in found[question]]), [p for p, _ in expected], rtol=1e-4)


def _proposals(world: World, text: str, decoding: Decoding) -> set[tuple[int, ...]]:
    rows = world.reference.generate(
        **_inputs(world.reference, world.generator.tokenizer, text),
        num_beams=decoding.num_beams,
        num_return_sequences=decoding.num_beams,
        min_length=1,
        max_length=decoding.max_length,
        bad_words_ids=[list(words) for words in world.bad_words],
        length_penalty=1.0,
    )
    end = world.reference.config.eos_token_id
    return {tuple(row[: row.index(end) + 1] if end in row else row) for row in rows[:, 1:].tolist()}


def test_greedy_token_decoding(world: World) -> None:
    """Token by token the likeliest under the marginal, which is that of all answers that begin with it."""
    found = Reader(world.generator, "token").generate(world.contexts, world.doc_log_probs, world.decoding(1))
    skip = len(world.opening)
    for question, (hypothesis,) in enumerate(found):
        prior = world.doc_log_probs[question].double().exp().numpy()
        marginal = np.einsum("n,nat->at", prior, world.tokens[question])
        chosen = world.opening
        while len(chosen) < skip + LENGTH and chosen[-1:] != (world.generator.model.config.eos_token_id,):
            here = [row for row, answer in enumerate(world.answers) if answer[: len(chosen)] == chosen]
            here = [row for row in here if len(world.answers[row]) > len(chosen)]
            best = max(here, key=lambda row: marginal[row, len(chosen)])
            chosen = world.answers[best][: len(chosen) + 1]
        assert hypothesis.labels == chosen
        np.testing.assert_allclose(
            hypothesis.posterior, _posterior(world, "token", question, world.answers.index(chosen)), atol=1e-5
        )
