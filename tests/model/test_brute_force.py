"""Marginalisation and decoding against an enumeration of every answer over a vocabulary of five tokens.

What a passage says of an answer comes straight from the generator's softmax, the sums over passages are written out
here once more: nothing of what is tested makes the expectation.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

from ragstone.model.decoding import Decoding
from ragstone.model.marginal import document_log_probs
from ragstone.model.reader import Reader
from ragstone.model.seq2seq import Seq2SeqGenerator
from tests.model.enumeration import all_answers, marginal, token_probabilities

PAD, END = 0, 1
VOCABULARY = 5
LENGTH = 4
CONTEXTS = [["a b", "b c c", "c"], ["b", "a a a c", "c b"], ["c c", "a", "a b c"]]
SCORES = torch.tensor([[0.3, 1.0, -0.2], [1.5, 0.0, 0.4], [0.0, 0.9, 0.8]])
EVERYTHING = 400
"""More beams than there are answers of LENGTH tokens."""


@dataclass(frozen=True)
class World:
    """A generator, the contexts of three questions, and every answer with its probability."""

    generator: Any
    contexts: Any
    doc_log_probs: torch.Tensor
    answers: list[tuple[int, ...]]
    """All that end within LENGTH tokens, and all of LENGTH tokens that have not ended by then."""
    tokens: np.ndarray[Any, Any]
    """[B, N, answers, LENGTH] p(y_i|x,z,y_<i), 1 behind the end."""

    def marginal(self, kind: str) -> np.ndarray[Any, Any]:
        """[B, answers] p(y|x)."""
        return marginal(kind, self.doc_log_probs, self.tokens)


@pytest.fixture(scope="module")
def world() -> World:
    vocabulary = {"<pad>": PAD, "</s>": END, "a": 2, "b": 3, "c": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    torch.manual_seed(73)
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=32,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
        decoder_start_token_id=END,
        forced_eos_token_id=None,
        init_std=0.8,
        dropout=0.0,
    )
    generator = Seq2SeqGenerator(
        BartForConditionalGeneration(config).eval(),
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>"),
    )
    answers = all_answers([token for token in range(VOCABULARY) if token != END], END, LENGTH)
    with torch.no_grad():
        contexts = generator.encode([("", text) for row in CONTEXTS for text in row], 32)
        tokens = np.array([[_token_probabilities(generator, text, answers) for text in row] for row in CONTEXTS])
    prior = document_log_probs(SCORES, torch.ones_like(SCORES, dtype=torch.bool))
    return World(generator, contexts, prior, answers, tokens)


def _token_probabilities(generator: Any, text: str, answers: list[tuple[int, ...]]) -> np.ndarray[Any, Any]:
    """[answers, LENGTH] with transformers' model alone, from one unpadded context."""
    inputs = generator.tokenizer([text], return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    return token_probabilities(generator.model, inputs, answers, END)


def _read(world: World, kind: Any, question: int) -> Any:
    """Every answer to one question, scored by the reader."""
    labels = torch.tensor([[*answer, *[-100] * (LENGTH - len(answer))] for answer in world.answers])
    rows = torch.arange(3).repeat(len(labels)) + question * 3
    prior = world.doc_log_probs[question].expand(len(labels), 3)
    with torch.no_grad():
        return Reader(world.generator, kind).read(world.contexts.select(rows), prior, labels)


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_marginal_likelihood_sums_to_one(world: World, kind: str) -> None:
    """Over what ends within the length and what has not ended by then; each length alone splits the same way."""
    for question in range(3):
        likelihood = _read(world, kind, question).log_likelihood.double().exp().numpy()
        np.testing.assert_allclose(likelihood, world.marginal(kind)[question], rtol=1e-4)
        np.testing.assert_allclose(likelihood.sum(), 1, rtol=1e-5)
        for length in range(1, LENGTH):
            by_prefix = Counter[tuple[int, ...]]()
            for answer, share in zip(world.answers, likelihood, strict=True):
                by_prefix[answer[:length]] += share
            shorter = dict(zip(world.answers, likelihood, strict=True))
            for prefix, share in by_prefix.items():
                if prefix[-1] == END:
                    assert shorter[prefix] == pytest.approx(share, rel=1e-5)
            assert sum(by_prefix.values()) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_posterior_is_bayes_rule(world: World, kind: str) -> None:
    prior = world.doc_log_probs.double().exp().numpy()
    for question in range(3):
        posterior = _read(world, kind, question).posterior.numpy()
        joint = prior[question][:, None, None] * world.tokens[question]
        if kind == "sequence":
            joint = prior[question][:, None] * world.tokens[question].prod(axis=2)
            expected = (joint / joint.sum(axis=0)).T
        else:
            per_token = joint / joint.sum(axis=0)
            lengths = np.array([len(answer) for answer in world.answers])
            counted = np.arange(LENGTH) < lengths[:, None]
            expected = ((per_token * counted).sum(axis=2) / lengths).T
        np.testing.assert_allclose(posterior, expected, atol=1e-5)
        np.testing.assert_allclose(posterior.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_enough_beams_find_the_optimum(world: World, kind: Any) -> None:
    """RAG-Token's beam search over the marginal, RAG-Sequence's thorough decoding; greedy search misses some."""
    decoding = Decoding(EVERYTHING, max_length=LENGTH + 1, length_penalty=0.0)
    reader = Reader(world.generator, kind)
    found = [row[0] for row in reader.generate(world.contexts, world.doc_log_probs, decoding)]
    best = world.marginal(kind).argmax(axis=1)
    assert [hypothesis.labels for hypothesis in found] == [world.answers[i] for i in best]
    np.testing.assert_allclose([h.score for h in found], np.log(world.marginal(kind).max(axis=1)), rtol=1e-4)
    greedy = reader.generate(world.contexts, world.doc_log_probs, Decoding(1, max_length=LENGTH + 1))
    assert [row[0].labels for row in greedy] != [hypothesis.labels for hypothesis in found]


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_scores_of_answers_are_the_marginal(world: World, kind: Any) -> None:
    decoding = Decoding(4, max_length=LENGTH + 1, num_return_sequences=4)
    found = Reader(world.generator, kind).generate(world.contexts, world.doc_log_probs, decoding)
    for question, row in enumerate(found):
        expected = [world.marginal(kind)[question, world.answers.index(h.labels)] for h in row]
        np.testing.assert_allclose(np.exp([h.score for h in row]), expected, rtol=1e-4)
        assert len(row) == 4


@pytest.mark.parametrize("num_beams", [1, 2, 3])
@pytest.mark.parametrize("thorough", [True, False])
def test_sequence_decoding_is_its_definition(world: World, num_beams: int, thorough: bool) -> None:
    """Each passage proposes the answers of its own beam search; fast decoding takes p(y|x,z) of others as 0."""
    decoding = Decoding(
        num_beams, max_length=LENGTH + 1, num_return_sequences=3 * num_beams, length_penalty=1.0, thorough=thorough
    )
    found = Reader(world.generator, "sequence").generate(world.contexts, world.doc_log_probs, decoding)
    prior = world.doc_log_probs.double().exp().numpy()
    for question, texts in enumerate(CONTEXTS):
        proposed = [_proposals(world.generator, text, num_beams) for text in texts]
        expected = {}
        for answer in set().union(*proposed):
            joint = prior[question] * world.tokens[question, :, world.answers.index(answer)].prod(axis=1)
            reads = [thorough or answer in answers for answers in proposed]
            joint = np.where(reads, joint, 0.0)
            expected[answer] = (joint.sum(), joint / joint.sum())
        order = sorted(expected, key=lambda answer: -expected[answer][0])
        assert [h.labels for h in found[question]] == order
        for hypothesis in found[question]:
            likelihood, posterior = expected[hypothesis.labels]
            assert np.exp(hypothesis.score) == pytest.approx(likelihood, rel=1e-4)
            np.testing.assert_allclose(hypothesis.posterior, posterior, atol=1e-5)


def _proposals(generator: Any, text: str, num_beams: int) -> set[tuple[int, ...]]:
    """What transformers' own generate finds for one context."""
    inputs = generator.tokenizer([text], return_tensors="pt")
    rows = generator.model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        num_beams=num_beams,
        num_return_sequences=num_beams,
        min_length=1,
        max_length=LENGTH + 1,
    )
    answers = set()
    for row in rows[:, 1:].tolist():
        answers.add(tuple(row[: row.index(END) + 1] if END in row else row))
    return answers


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_samples_follow_the_marginal(world: World, kind: Any) -> None:
    draws = 3000
    decoding = Decoding(
        1, max_length=LENGTH + 1, num_return_sequences=draws, do_sample=True, top_k=0, seed=1, thorough=True
    )
    found = Reader(world.generator, kind).generate(world.contexts, world.doc_log_probs, decoding)
    for question, row in enumerate(found):
        counts = Counter(hypothesis.labels for hypothesis in row)
        assert sum(counts.values()) == draws
        expected = world.marginal(kind)[question] * draws
        observed = np.array([counts[answer] for answer in world.answers])
        often = expected >= 5
        observed = np.append(observed[often], observed[~often].sum())
        expected = np.append(expected[often], expected[~often].sum())
        # Chi-square: its mean is the number of classes less one, its variance twice that.
        degrees = len(expected) - 1
        assert ((observed - expected) ** 2 / expected).sum() < degrees + 4 * (2 * degrees) ** 0.5


def test_temperature_sharpens_and_cuts_narrow(world: World) -> None:
    """With next to no temperature, one top token, or the narrowest nucleus, a sample is the greedy answer."""
    reader = Reader(world.generator, "token")
    greedy = reader.generate(world.contexts, world.doc_log_probs, Decoding(1, max_length=LENGTH + 1))
    for cut in ({"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}):
        decoding = Decoding(1, max_length=LENGTH + 1, do_sample=True, num_return_sequences=5, **cut)
        for row, samples in zip(greedy, reader.generate(world.contexts, world.doc_log_probs, decoding), strict=True):
            assert [sample.labels for sample in samples] == [row[0].labels] * 5


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_seed_repeats_samples_and_leaves_no_trace(world: World, kind: Any) -> None:
    def draw(seed: int | None) -> list[list[tuple[int, ...]]]:
        decoding = Decoding(1, max_length=LENGTH + 1, do_sample=True, num_return_sequences=20, top_k=0, seed=seed)
        found = Reader(world.generator, kind).generate(world.contexts, world.doc_log_probs, decoding)
        return [[hypothesis.labels for hypothesis in row] for row in found]

    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert draw(7) == draw(7) != draw(8)
    assert torch.equal(torch.get_rng_state(), state)
    assert draw(None) != draw(None)


@pytest.mark.parametrize("kind", ["sequence", "token"])
@pytest.mark.parametrize("thorough", [True, False])
def test_masked_passages_propose_nothing_and_say_nothing(world: World, kind: Any, thorough: bool) -> None:
    """Three passages of which one is masked find what the two others find, and score it alike."""
    mask = torch.tensor([[True, False, True], [True, True, False], [False, True, True]])
    reader = Reader(world.generator, kind)
    beams = 3
    decoding = Decoding(
        beams,
        max_length=LENGTH + 1,
        num_return_sequences=beams if kind == "token" else 3 * beams,
        thorough=thorough,
    )
    found = reader.generate(world.contexts, document_log_probs(SCORES, mask), decoding)
    rows = mask.flatten().nonzero().flatten()
    two = document_log_probs(SCORES[mask].view(3, 2), torch.ones(3, 2, dtype=torch.bool))
    expected = reader.generate(world.contexts.select(rows), two, decoding)
    for question in range(3):
        assert [h.labels for h in found[question]] == [h.labels for h in expected[question]]
        for mine, other in zip(found[question], expected[question], strict=True):
            assert mine.score == pytest.approx(other.score, rel=1e-4)
            assert mine.posterior[mask[question].tolist().index(False)] == 0
