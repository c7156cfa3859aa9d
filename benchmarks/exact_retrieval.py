"""Retrieval from a knowledge source against exact search that shares no code with it.

    python benchmarks/exact_retrieval.py SOURCE ENCODER QUESTIONS [RECORD]

One side: Ragstone's question encoder and retriever. Other side: sentence-transformers for the questions, datasets for
the passage vectors, numpy's matrix product and sort. What was found is printed, and written to the file RECORD. Ends
with code 1 unless both find the same passages.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from datasets import load_from_disk
from sentence_transformers import SentenceTransformer

from ragstone.encoders.load import load_encoder
from ragstone.knowledge.source import KnowledgeSource
from ragstone.retrieval.local import LocalRetriever

N_DOCS = 20
TOLERANCE = 1e-5
"""Scores nearer than this are a tie, whose order rounding decides."""


def main(source: Path, encoder: str, questions_file: Path, record: Path | None = None) -> int:
    """Print, and write to `record`, how many of the questions' passages agree."""
    questions = questions_file.read_text(encoding="utf-8").splitlines()
    vectors = load_encoder(encoder, "question").embed(questions)
    knowledge = KnowledgeSource(source)
    n_docs = min(N_DOCS, len(knowledge))
    found = LocalRetriever(knowledge).retrieve(vectors, n_docs).ids

    passages = load_from_disk(str(source / "my_knowledge_dataset")).with_format("numpy")["embeddings"][:]
    queries = SentenceTransformer(encoder, device="cpu").encode(questions, batch_size=64, convert_to_numpy=True)
    scores = queries @ np.stack(passages).T
    exact = np.argsort(-scores, axis=1, kind="stable")[:, :n_docs]

    same = found == exact
    tied = np.abs(np.take_along_axis(scores, found, 1) - np.take_along_axis(scores, exact, 1)) < TOLERANCE
    said = (
        f"{len(questions):,} questions, {len(passages):,} passages, {n_docs} each: "
        f"{same.mean():.4%} at the same place, "
        f"{(tied & ~same).sum()} exchanged with a tie, {(~tied & ~same).sum()} different"
    )
    print(said)
    if record is not None:
        record.write_text(f"{said}\n", encoding="utf-8")
    return int((~tied & ~same).any())


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit("usage: python benchmarks/exact_retrieval.py SOURCE ENCODER QUESTIONS [RECORD]")
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:])))
