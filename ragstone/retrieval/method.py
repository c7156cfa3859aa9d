"""By what passages are found: vectors, words or both. Imports nothing heavy: settings use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from ragstone.errors import InputError
from ragstone.knowledge.no_vectors import no_vectors

if TYPE_CHECKING:
    from ragstone.knowledge.source import Indexes

RetrieverName = Literal["dense", "bm25", "hybrid"]
FusionName = Literal["sum", "rrf"]
EVEN = 0.5
VECTORS_ALONE = (
    "Ray workers search vectors, not words: leave out --distributed_retriever ray with --retriever bm25 or hybrid, "
    "whose source every process opens for itself; the memory map is shared on a host."
)


@dataclass(frozen=True)
class Method:
    """How a model finds passages."""

    retriever: RetrieverName = "dense"
    """dense: by question vector; bm25: by the question's words; hybrid: by both."""
    hybrid_fusion: FusionName = "sum"
    """What makes one ranking of hybrid's two: the sum of their scores, or their ranks."""
    hybrid_weight: float = EVEN
    """Of the dense scores in a sum; that of BM25's is 1 less it."""

    @property
    def by_vectors(self) -> bool:
        return self.retriever != "bm25"

    @property
    def by_words(self) -> bool:
        return self.retriever != "dense"

    def settings(self) -> dict[str, Any]:
        """The flags that change what is found; none for dense."""
        settings = asdict(self)
        kept = {"dense": 0, "bm25": 1, "hybrid": 3 if self.hybrid_fusion == "sum" else 2}[self.retriever]
        return dict(list(settings.items())[:kept])


@dataclass(frozen=True)
class MethodRequest:
    """What flags say of it; None leaves it to the checkpoint and the knowledge source."""

    retriever: RetrieverName | None = None
    hybrid_fusion: FusionName | None = None
    hybrid_weight: float | None = None

    def __post_init__(self) -> None:
        if self.retriever not in (None, "hybrid"):
            for name in ("hybrid_fusion", "hybrid_weight"):
                if getattr(self, name) is not None:
                    raise InputError(f"--{name} is for --retriever hybrid, not {self.retriever}; leave it out.")
        if self.hybrid_weight is None:
            return
        if self.hybrid_fusion == "rrf":
            raise InputError("--hybrid_weight is for --hybrid_fusion sum; rrf counts ranks, so leave it out.")
        if not 0 < self.hybrid_weight < 1:
            raise InputError(
                f"--hybrid_weight is {self.hybrid_weight}, but must lie between 0 and 1; for one side alone take "
                "--retriever bm25 or dense."
            )

    def resolve(self, recorded: Mapping[str, Any] | None, indexes: Indexes, source: str) -> Method:
        """The method for a model over a source.

        Args:
            recorded: Method.settings of the model's checkpoint; None where it has none.
            indexes: what the source can be searched by.
            source: what messages call the source.

        Raises:
            InputError: the source cannot be searched so, or a flag has no meaning with the method.
        """
        known = dict(recorded or {})
        retriever = self.retriever or known.get("retriever") or ("dense" if indexes.vectors else "bm25")
        # A weight is for a sum: to name one is to ask for one.
        fusion = self.hybrid_fusion or ("sum" if self.hybrid_weight else known.get("hybrid_fusion")) or "sum"
        method = Method(retriever, fusion, self.hybrid_weight or known.get("hybrid_weight") or EVEN)
        # By what the method is now, a flag may be out of place that was not without the checkpoint.
        MethodRequest(retriever, self.hybrid_fusion, self.hybrid_weight)
        if method.by_vectors and not indexes.vectors:
            raise InputError(no_vectors(source))
        if method.by_words and not indexes.words:
            raise InputError(
                f"The knowledge source {source} has no BM25 index, which --retriever {retriever} searches; build it "
                "with --bm25, or take --retriever dense."
            )
        return method
