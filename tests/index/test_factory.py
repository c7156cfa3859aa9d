from __future__ import annotations

import pytest

from ragstone.errors import InputError
from ragstone.index.factory import BY_SIZE, NAMES, POINTS_PER_CENTROID, factory_string, refuse_unknown_index


def test_names_become_factory_strings() -> None:
    assert factory_string("flat", 768, 10, 128) == "Flat"
    assert factory_string("hnsw", 768, 10, 128) == "HNSW128,Flat"
    assert factory_string("hnsw", 768, 10, 16) == "HNSW16,Flat"
    assert factory_string("IVF64,SQ8", 768, 100, 128) == "IVF64,SQ8"


@pytest.mark.parametrize(
    ("dimension", "count", "expected"),
    [
        # 64 MiB, which is 2^24 numbers, and a vector more.
        (768, 21_845, "Flat"),
        (768, 21_846, "HNSW16,Flat"),
        (1024, 2**14, "Flat"),
        (1024, 2**14 + 1, "HNSW16,Flat"),
    ],
)
def test_few_vectors_are_searched_exactly_by_default(dimension: int, count: int, expected: str) -> None:
    assert factory_string(BY_SIZE, dimension, count, 16) == expected


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


@pytest.mark.parametrize("index", ["hnsw", BY_SIZE])
def test_a_graph_needs_two_links(index: str) -> None:
    with pytest.raises(InputError, match="--m is 1"):
        factory_string(index, 384, 100, 1)


@pytest.mark.parametrize(
    ("index", "dimension", "expected"),
    [
        ("nonsense", 8, "FAISS factory string; "),
        ("PQ3", 8, "for 8 dimensions"),
        ("HNSW01,Flat", 8, "fewer than 2 links"),
    ],
)
def test_what_faiss_does_not_know(index: str, dimension: int, expected: str) -> None:
    with pytest.raises(InputError, match=f"--index '{index}' .*{expected}"):
        refuse_unknown_index(index, dimension)


@pytest.mark.parametrize("index", [*NAMES, "PQ3", "PQ48", "HNSW32_SQ8", "PCA64,IVF4096_HNSW32,PQ16x4fs", "IVF10,Flat"])
def test_what_may_fit_some_dimension_is_not_refused_before_that_is_known(index: str) -> None:
    refuse_unknown_index(index)


@pytest.mark.parametrize("factory", ["IVF0,Flat", "IVF101,Flat", "PQ2", "PCA4,IVF2,PQ2", "IVF2,PQ2x7"])
def test_more_centroids_than_vectors(factory: str) -> None:
    with pytest.raises(InputError, match=f"The index {factory} cannot be built over 100 vectors"):
        factory_string(factory, 8, 100, 128)


@pytest.mark.parametrize(
    ("index", "size"),
    [
        # 3,072 bytes of a vector and 258 links of 4; 8-bit codes; lists of codes, their numbers and the sample.
        ("hnsw", 3072 + 4 * 258),
        ("HNSW32_SQ8", 768 + 4 * 66),
        ("PCA64,HNSW32", 256 + 4 * 66),
        ("HNSW32_SQ8,RFlat", 768 + 4 * 66 + 3072),
        ("IVF4096,SQ8", 768 + 8),
    ],
)
def test_more_vectors_than_memory(index: str, size: int) -> None:
    count = 10**10
    with pytest.raises(InputError, match=r"over 10,000,000,000 vectors takes at least .* GiB of memory") as said:
        factory_string(index, 768, count, 128)
    needed = float(str(said.value).split(" takes at least ")[1].split()[0])
    assert needed == pytest.approx(count * size / 2**30, rel=0.01)
    assert factory_string("flat", 768, count, 128) == factory_string("Flat", 768, count, 128) == "Flat"


def test_what_does_not_say_how_much_memory_it_takes_is_not_refused() -> None:
    assert factory_string("NSG32,Flat", 64, 100_000, 128) == "NSG32,Flat"
