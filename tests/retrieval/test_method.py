"""What flags, checkpoint and knowledge source make of --retriever."""

from __future__ import annotations

from typing import Any

import pytest

from ragstone.errors import InputError
from ragstone.knowledge.source import Indexes
from ragstone.retrieval.method import Method, MethodRequest

VECTORS, WORDS, BOTH = Indexes(True, False), Indexes(False, True), Indexes(True, True)
HYBRID = Method("hybrid", "sum", 0.3)


@pytest.mark.parametrize(
    ("asked", "recorded", "indexes", "expected"),
    [
        ({}, None, VECTORS, Method("dense")),
        ({}, None, BOTH, Method("dense")),
        ({}, None, WORDS, Method("bm25")),
        ({"retriever": "bm25"}, None, BOTH, Method("bm25")),
        ({"retriever": "hybrid"}, None, BOTH, Method("hybrid", "sum", 0.5)),
        ({"retriever": "hybrid", "hybrid_weight": 0.2}, None, BOTH, Method("hybrid", "sum", 0.2)),
        ({"retriever": "hybrid", "hybrid_fusion": "rrf"}, None, BOTH, Method("hybrid", "rrf")),
        ({}, {"retriever": "hybrid", "hybrid_fusion": "rrf"}, BOTH, Method("hybrid", "rrf")),
        ({}, HYBRID.settings(), BOTH, HYBRID),
        ({"hybrid_weight": 0.4}, HYBRID.settings(), BOTH, Method("hybrid", "sum", 0.4)),
        ({"retriever": "dense"}, {"retriever": "bm25"}, BOTH, Method("dense")),
        ({}, {"retriever": "bm25"}, BOTH, Method("bm25")),
    ],
)
def test_resolved(asked: dict[str, Any], recorded: Any, indexes: Indexes, expected: Method) -> None:
    assert MethodRequest(**asked).resolve(recorded, indexes, "source").settings() == expected.settings()


def test_settings_are_those_that_change_what_is_found() -> None:
    assert Method().settings() == {}
    assert Method("bm25").settings() == {"retriever": "bm25"}
    assert Method("hybrid", "rrf").settings() == {"retriever": "hybrid", "hybrid_fusion": "rrf"}
    assert HYBRID.settings() == {"retriever": "hybrid", "hybrid_fusion": "sum", "hybrid_weight": 0.3}


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ({"retriever": "bm25", "hybrid_fusion": "sum"}, "--hybrid_fusion is for --retriever hybrid, not bm25"),
        ({"retriever": "dense", "hybrid_weight": 0.5}, "--hybrid_weight is for --retriever hybrid, not dense"),
        ({"retriever": "hybrid", "hybrid_fusion": "rrf", "hybrid_weight": 0.5}, "is for --hybrid_fusion sum"),
        ({"retriever": "hybrid", "hybrid_weight": 0.0}, "--hybrid_weight is 0.0, but must lie between 0 and 1"),
        ({"retriever": "hybrid", "hybrid_weight": 1.0}, "--hybrid_weight is 1.0, but must lie between 0 and 1"),
        ({"retriever": "hybrid", "hybrid_weight": float("nan")}, "must lie between 0 and 1"),
    ],
)
def test_flags_that_contradict_each_other(asked: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError, match=part):
        MethodRequest(**asked)


@pytest.mark.parametrize(
    ("asked", "indexes", "part"),
    [
        ({"retriever": "dense"}, WORDS, "The knowledge source here has no vectors"),
        ({"retriever": "hybrid"}, WORDS, "The knowledge source here has no vectors"),
        (
            {"retriever": "bm25"},
            VECTORS,
            "here has no BM25 index, which --retriever bm25 searches; build it with --bm25",
        ),
        ({"retriever": "hybrid"}, VECTORS, "here has no BM25 index, which --retriever hybrid searches"),
        ({}, Indexes(False, False), "here has no BM25 index"),
        ({"hybrid_fusion": "rrf"}, BOTH, "--hybrid_fusion is for --retriever hybrid, not dense"),
    ],
)
def test_a_source_that_cannot_be_searched_so(asked: dict[str, Any], indexes: Indexes, part: str) -> None:
    with pytest.raises(InputError, match=part):
        MethodRequest(**asked).resolve(None, indexes, "here")
