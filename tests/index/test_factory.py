from __future__ import annotations

import pytest

from ragstone.errors import InputError
from ragstone.index.factory import POINTS_PER_CENTROID, factory_string


def test_names_become_factory_strings() -> None:
    assert factory_string("flat", 768, 10, 128) == "Flat"
    assert factory_string("hnsw", 768, 10, 128) == "HNSW128,Flat"
    assert factory_string("hnsw", 768, 10, 16) == "HNSW16,Flat"
    assert factory_string("IVF64,SQ8", 768, 10, 128) == "IVF64,SQ8"


@pytest.mark.parametrize(
    ("dimension", "count", "expected"),
    [
        (768, 1_000_000, "IVF4096,PQ96x8"),
        (384, 21_015_300, "IVF16384,PQ48x8"),
        (384, 10_000, "IVF256,PQ48x8"),
        (100, 10_000, "IVF256,PQ10x8"),
        (7, 10_000, "IVF256,PQ1x8"),
        (384, 256, "IVF6,PQ48x8"),
    ],
)
def test_ivfpq_suits_the_size(dimension: int, count: int, expected: str) -> None:
    factory = factory_string("ivfpq", dimension, count, 128)
    assert factory == expected
    lists, code = factory.removeprefix("IVF").removesuffix("x8").split(",PQ")
    assert int(lists) * POINTS_PER_CENTROID <= count
    assert dimension % int(code) == 0


def test_too_few_vectors_for_ivfpq() -> None:
    with pytest.raises(InputError, match="only 255 passages; use --index flat"):
        factory_string("ivfpq", 384, 255, 128)


def test_a_graph_needs_two_links() -> None:
    with pytest.raises(InputError, match="--m is 1"):
        factory_string("hnsw", 384, 100, 1)
