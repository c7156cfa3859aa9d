from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ragstone import allocation
from ragstone.arithmetic import Precision
from ragstone.encoders.load import load_encoder
from ragstone.encoders.text_encoder import TextEncoder
from ragstone.errors import InputError
from ragstone.knowledge import build
from ragstone.knowledge.corpus import read_corpus
from ragstone.knowledge.embedding import embed_groups
from ragstone.knowledge.store import PassageStore
from ragstone.types import Passage
from tests.conftest import DOCUMENTS

PASSAGES = [Passage(number, title, text) for number, (title, text) in enumerate(DOCUMENTS)]


@pytest.fixture
def encoder(models_folder: Path) -> TextEncoder:
    return load_encoder(str(models_folder / "passage_encoder"), "passage")


@pytest.mark.parametrize("size", [1, 4, 6])
def test_each_group_comes_with_its_vectors(encoder: TextEncoder, size: int) -> None:
    groups = [PASSAGES[start : start + size] for start in range(0, len(PASSAGES), size)]
    embedded = list(embed_groups(iter(groups), encoder, batch_size=2))
    assert [group for group, _ in embedded] == groups
    alone = np.concatenate([encoder.embed([passage.text], [passage.title]) for passage in PASSAGES])
    np.testing.assert_allclose(np.concatenate([vectors for _, vectors in embedded]), alone, rtol=1e-5, atol=1e-5)


def test_no_groups(encoder: TextEncoder) -> None:
    assert list(embed_groups(iter([]), encoder, batch_size=2)) == []


def test_a_fault_in_what_makes_the_groups_is_told(encoder: TextEncoder) -> None:
    def groups() -> Iterator[list[Passage]]:
        yield PASSAGES[:2]
        raise InputError("line 3 is broken")

    stream = embed_groups(groups(), encoder, batch_size=2)
    next(stream)
    with pytest.raises(InputError, match="line 3 is broken"):
        next(stream)


def test_vectors_that_are_not_finite_are_refused(encoder: TextEncoder) -> None:
    next(encoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(InputError, match="gave vectors that are not finite"):
        next(embed_groups(iter([PASSAGES]), encoder, batch_size=2))


def test_freed_memory_is_kept_meanwhile(encoder: TextEncoder) -> None:
    if allocation._glibc() is None:
        pytest.skip("not glibc, or set up by the environment")
    kept = [allocation._keeping for _ in embed_groups(iter([PASSAGES[:2], PASSAGES[2:4]]), encoder, batch_size=2)]
    assert [*kept, allocation._keeping] == [1, 1, 0]


def test_the_weights_are_converted_once(encoder: TextEncoder, tmp_path: Path) -> None:
    """For all groups of a build, and not for each of them anew."""
    copies = 0

    class Counted(TextEncoder):
        def in_precision(self, precision: Precision) -> TextEncoder:
            nonlocal copies
            copies += 1
            return super().in_precision(precision)

    counted = Counted(encoder.model, encoder.tokenizer, encoder.settings, encoder.name)
    documents = tmp_path / "a.tsv"
    documents.write_text("".join(f"{title}\t{text}\n" for title, text in DOCUMENTS), encoding="utf-8")
    corpus = read_corpus([documents], 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "PASSAGES_AT_ONCE", 3)
        build.embed_here(corpus, counted, build.BuildPlan(batch_size=2, precision="bf16"), tmp_path / "store")
    assert corpus.passages > 15
    assert copies == 1
    vectors = PassageStore(tmp_path / "store").vectors([0])
    np.testing.assert_allclose(vectors, encoder.embed(["the river"], ["river"]), atol=0.05)
