"""Where the time of a piece of work goes: marks on a line of time, set by hooks on a model's parts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ragstone.retrieval.retriever import Retriever
from ragstone.types import FloatArray, Retrieved


class Timeline:
    """Seconds by name: each mark says what has run since the one before it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._marked: set[str] = set()
        self._last = time.perf_counter()

    def start(self) -> None:
        """Begin a piece of work: what was charged before, such as to warm up, is forgotten."""
        self.seconds.clear()
        self._marked.clear()
        self._last = self._now()

    def mark(self, name: str) -> None:
        """Charge what has passed since the last mark to `name`."""
        now = self._now()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def mark_once(self, name: str, moment: str) -> None:
        """Mark the first time that `moment` comes in this piece of work."""
        if moment not in self._marked:
            self._marked.add(moment)
            self.mark(name)

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()


class WatchedRetriever:
    """A retriever whose time is marked."""

    def __init__(self, inner: Retriever, timeline: Timeline) -> None:
        self._inner = inner
        self._timeline = timeline

    def retrieve(self, vectors: FloatArray, n_docs: int) -> Retrieved:
        """See Retriever.retrieve."""
        found = self._inner.retrieve(vectors, n_docs)
        self._timeline.mark("retrieval")
        return found

    def close(self) -> None:
        """See Retriever.close."""
        self._inner.close()


@contextmanager
def watched(model: Any, timeline: Timeline) -> Iterator[None]:
    """Mark the parts of a RagModel on `timeline` within the with-block: on the way forward, and back where it learns.

    What runs on the way back is charged to the part whose gradients it computes; the question encoder's, which come
    last, to the encoder.
    """
    generator = model.generator_model
    parts = {
        "question encoder": model.question_encoder,
        "encoder": generator.get_encoder(),
        "decoder": generator.get_decoder(),
        "vocabulary": generator.get_output_embeddings(),
    }
    before = {
        "question encoder": "tokenising",
        "encoder": "tokenising",
        "decoder": "search and bookkeeping",
        "vocabulary": "decoder",
    }
    handles = []
    for name, module in parts.items():
        handles.append(module.register_forward_pre_hook(_marker(timeline, before[name])))
        handles.append(module.register_forward_hook(_marker(timeline, name)))
    handles.append(parts["encoder"].register_forward_hook(_way_back(timeline, "decoder")))
    handles.append(parts["decoder"].register_forward_hook(_way_back(timeline, "vocabulary")))
    retriever = model.finder.retriever
    model.finder.retriever = WatchedRetriever(retriever, timeline)
    try:
        yield
    finally:
        model.finder.retriever = retriever
        for handle in handles:
            handle.remove()


@contextmanager
def watched_encoder(model: Any, timeline: Timeline) -> Iterator[None]:
    """Mark the passes of a text encoder's transformers model, and of copies that are made of it meanwhile."""
    handles = [
        model.register_forward_pre_hook(_marker(timeline, "tokenising")),
        model.register_forward_hook(_marker(timeline, "encoder")),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _marker(timeline: Timeline, name: str) -> Any:
    def hook(*_: Any) -> None:
        timeline.mark(name)

    return hook


def _way_back(timeline: Timeline, name: str) -> Any:
    """A hook that marks `name` when the gradient of a module's states is there."""

    def hook(_: Any, __: Sequence[Any], output: Any) -> None:
        states = output.last_hidden_state
        if states.requires_grad:
            states.register_hook(lambda _: timeline.mark_once(name, f"gradient before {name}"))

    return hook
