"""Text to vectors: order, batches, titles, cutting, normalisation, fingerprints."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from ragstone.encoders.fresh import fresh_encoder, train_tokenizer
from ragstone.encoders.text_encoder import EncoderSettings, TextEncoder, check_finite
from ragstone.errors import InputError

TEXTS = ["one", "a much longer text about a river and a hill", "two words", "the old town by the river"]
TITLES = ["A", "", "C", "D"]


def changed(encoder: TextEncoder, **changes: object) -> TextEncoder:
    settings = dataclasses.replace(encoder.settings, **changes)
    return TextEncoder(encoder.model, encoder.tokenizer, settings, encoder.name)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
@pytest.mark.parametrize("titles", [None, TITLES])
def test_vectors_stand_in_the_order_of_the_texts(
    encoder: TextEncoder, batch_size: int, titles: list[str] | None
) -> None:
    """Each as if it were alone, though batches are sorted by length and padded."""
    alone = [encoder.embed([text], titles and [titles[i]])[0] for i, text in enumerate(TEXTS)]
    vectors = encoder.embed(TEXTS, titles, batch_size=batch_size)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, np.stack(alone), rtol=1e-5, atol=1e-6)
    assert len(np.unique(vectors.round(3), axis=0)) == len(TEXTS)


def test_batches_are_of_like_length(encoder: TextEncoder) -> None:
    """So that less is padded than in the order of the texts."""
    texts = ["one", TEXTS[1]] * 8
    shapes = []
    handle = encoder.model.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    encoder.embed(texts, batch_size=8)
    handle.remove()
    longest, shortest = (len(encoder.token_lists([text])["input_ids"][0]) for text in (TEXTS[1], "one"))
    assert sorted(shapes) == [(8, shortest), (8, longest)]


def test_a_cpu_gets_few_tokens_at_a_time(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding included, or one text; each in its place."""
    expected = encoder.embed(TEXTS, batch_size=4)
    monkeypatch.setattr("ragstone.encoders.text_encoder.CPU_TOKENS_PER_BATCH", 18)
    shapes: list[torch.Size] = []
    handle = encoder.model.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(inputs["input_ids"].shape), with_kwargs=True
    )
    found = encoder.embed(TEXTS, batch_size=4)
    handle.remove()
    assert len(shapes) > 1 and all(rows * length <= 18 or rows == 1 for rows, length in shapes)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_no_texts(encoder: TextEncoder) -> None:
    assert encoder.embed([]).shape == (0, encoder.dimension)


def test_embedding_is_the_forward_pass_without_gradients(encoder: TextEncoder) -> None:
    forward = encoder(**encoder.tokenize(TEXTS))
    assert forward.requires_grad
    np.testing.assert_allclose(encoder.embed(TEXTS), forward.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_bf16_is_near(encoder: TextEncoder) -> None:
    exact, near = encoder.embed(TEXTS), encoder.embed(TEXTS, precision="bf16")
    assert near.dtype == np.float32
    assert not np.array_equal(exact, near)
    np.testing.assert_allclose(near, exact, atol=0.05 * np.abs(exact).max())
    assert encoder.embed(TEXTS).tolist() == exact.tolist(), "the weights themselves must stay as they were"


def test_a_converted_encoder_has_its_own_modules_with_the_same_settings(encoder: TextEncoder) -> None:
    converted = encoder.in_precision("bf16")
    assert converted.tokenizer is encoder.tokenizer and converted.settings == encoder.settings
    assert {weight.dtype for weight in converted.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}
    for (name, ours), (_, theirs) in zip(encoder.named_parameters(), converted.named_parameters(), strict=True):
        assert torch.equal(ours.bfloat16(), theirs), name
        assert ours.requires_grad == theirs.requires_grad, name
    modules = zip(encoder.model.modules(), converted.model.modules(), strict=True)
    assert all(ours is not theirs and ours.training == theirs.training for ours, theirs in modules)


def test_fp16_needs_a_gpu(encoder: TextEncoder) -> None:
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        encoder.embed(TEXTS, precision="fp16")


def test_titles_go_before_the_text(encoder: TextEncoder) -> None:
    joined = encoder.embed([f"{title} {text}".strip() for title, text in zip(TITLES, TEXTS, strict=True)])
    assert encoder.embed(TEXTS, TITLES).tolist() == joined.tolist()


def test_titles_as_a_pair_of_segments(encoder: TextEncoder) -> None:
    tokens = changed(encoder, pair=True).tokenize(["red river"], ["Hill"])
    words = encoder.tokenizer.convert_ids_to_tokens(tokens["input_ids"][0])
    middle = words.index("[SEP]")
    assert encoder.tokenizer.convert_tokens_to_string(words[1:middle]) == "hill"
    assert encoder.tokenizer.convert_tokens_to_string(words[middle + 1 : -1]) == "red river"
    assert tokens["token_type_ids"][0].tolist() == [0] * (middle + 1) + [1] * (len(words) - middle - 1)


def test_prompt_goes_before_everything(encoder: TextEncoder) -> None:
    prompted = changed(encoder, prompt="query: ")
    assert prompted.embed(["red"]).tolist() == encoder.embed(["query: red"]).tolist()
    assert prompted.embed(["red"], ["Hill"]).tolist() == encoder.embed(["query: Hill red"]).tolist()


@pytest.mark.parametrize("titles", [None, ["Hill"]])
@pytest.mark.parametrize("pair", [False, True])
def test_long_texts_are_cut(encoder: TextEncoder, pair: bool, titles: list[str] | None) -> None:
    short = changed(encoder, max_length=12, pair=pair)
    tokens = short.tokenize(["river " * 300], titles)
    assert tokens["input_ids"].shape == (1, 12)
    assert short.embed(["river " * 300], titles).tolist() == short.embed(["river " * 200], titles).tolist()


def test_normalised_vectors_have_length_one(encoder: TextEncoder) -> None:
    vectors, unit = encoder.embed(TEXTS), changed(encoder, normalize=True).embed(TEXTS)
    np.testing.assert_allclose(unit, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), rtol=1e-5)


def test_fingerprint_tells_encoders_apart(encoder: TextEncoder) -> None:
    tokenizer = encoder.tokenizer
    same = fresh_encoder(tokenizer, hidden_size=16, heads=2, max_length=32, seed=1)
    assert encoder.fingerprint() == same.fingerprint()
    others = [
        fresh_encoder(tokenizer, hidden_size=16, heads=2, max_length=32, seed=2),
        fresh_encoder(train_tokenizer(["b a"], len(tokenizer)), hidden_size=16, heads=2, max_length=32, seed=1),
        *(changed(encoder, **change) for change in ({"normalize": True}, {"prompt": "q"}, {"pooling": "cls"})),
    ]
    with torch.no_grad():
        same.model.encoder.layer[0].output.LayerNorm.bias[3] += 1e-6
    assert len({encoder.fingerprint(), same.fingerprint(), *(other.fingerprint() for other in others)}) == 7


def test_infinite_vectors_are_refused(encoder: TextEncoder) -> None:
    vectors = encoder.embed(TEXTS)
    check_finite(vectors, encoder)
    vectors[1, 2] = np.inf
    with pytest.raises(InputError, match="a fresh encoder gave vectors that are not finite"):
        check_finite(vectors, encoder)


def test_settings_are_those_of_a_plain_model() -> None:
    assert EncoderSettings() == EncoderSettings("cls", normalize=False, prompt="", max_length=512, pair=False)
