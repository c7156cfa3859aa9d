"""Retrieval by Ray workers, with a real Ray: the same passages, and what happens when workers die."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragstone.errors import InputError, LostError
from ragstone.index.searcher import best_of
from ragstone.index.vector_index import build_index
from ragstone.knowledge.manifest import FILE_NAME, Manifest
from ragstone.knowledge.source import KnowledgeSource
from ragstone.processes.processes import OneProcess
from ragstone.processes.ray_cluster import RayCluster
from ragstone.replacement import new_version
from ragstone.retrieval import ray_line
from ragstone.retrieval.choice import RetrievalSettings, connected
from ragstone.retrieval.connection import WATCHED, Address
from ragstone.retrieval.local import LocalRetriever
from ragstone.retrieval.location import SourceLocation
from ragstone.retrieval.message import Request, decode, decode_found
from ragstone.retrieval.ray_crew import NAMESPACE, Board, BoardLine, Crew, SharedBoard, call_each, let_all
from ragstone.retrieval.ray_line import Call, Line, unreached
from ragstone.retrieval.ray_retriever import InRayWorkers, RayRetriever, mapped_store, open_everywhere
from ragstone.retrieval.ray_worker import RetrievalWorker
from ragstone.types import FloatArray, Retrieved
from tests.retrieval.conftest import DIMENSION, UNMAPPED_DIMENSION, write_unmapped_source

pytestmark = pytest.mark.xdist_group("ray")
ray = pytest.importorskip("ray")
TIMEOUT = 200.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster("local") as running:
        yield running


def open_workers(folder: Path, **settings: Any) -> RayRetriever:
    info, retriever = InRayWorkers(OneProcess(), timeout=TIMEOUT, **settings).open(SourceLocation(str(folder)))
    assert isinstance(retriever, RayRetriever)
    assert dataclasses.asdict(info) == dataclasses.asdict(KnowledgeSource(folder).info())
    return retriever


@pytest.fixture(scope="module")
def lasting_pair(cluster: RayCluster, large_source: Path) -> Iterator[RayRetriever]:
    """Two workers, each with the whole source."""
    retriever = open_workers(large_source, workers=2)
    yield retriever
    retriever.close()


@pytest.fixture
def pair(lasting_pair: RayRetriever) -> RayRetriever:
    """The same, both there: a test before may have killed one."""
    for line in lasting_pair._crews[0]._lines:
        await_return(line, time.monotonic())
    return lasting_pair


def await_return(line: Line, began: float) -> None:
    """Until an actor is back that was away."""
    while not line.is_there():
        assert time.monotonic() - began < TIMEOUT
        time.sleep(0.1)


@pytest.fixture(scope="module")
def alone(large_source: Path) -> LocalRetriever:
    return LocalRetriever(KnowledgeSource(large_source))


def queries(count: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)


REQUEST = Request("retrieve", None, 5, queries(8).tobytes())


def assert_equal(found: Retrieved, expected: Retrieved) -> None:
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.vectors, expected.vectors)
    assert found.passages == expected.passages


def assert_as_alone(retriever: RayRetriever, alone: LocalRetriever) -> None:
    for count, n_docs in ((1, 5), (32, 5), (3, 100), (0, 4)):
        asked = queries(count, seed=count)
        assert_equal(retriever.retrieve(asked, n_docs), alone.retrieve(asked, n_docs))


def from_afar(retriever: RayRetriever, folder: Path) -> RayRetriever:
    """Asks the same workers as a process does on whose host there is none of them."""
    return RayRetriever(retriever._crews, KnowledgeSource(folder).info(), [], None)


def request_to(crew: Crew, worker: int) -> Call:
    """A request that the worker of this number has got; idle workers take turns."""
    while (call := crew.start(REQUEST)).worker != worker:
        crew.finish(call)
    return call


def passages(answer: bytearray) -> Retrieved:
    return decode(np.frombuffer(answer, np.uint8))


def process_of(retriever: RayRetriever, worker: int, part: int = 0) -> int:
    return int(ray.get(retriever._crews[part]._lines[worker].promise("process").reference))


def stop(process: int) -> None:
    """Until it goes on, or is killed."""
    os.kill(process, signal.SIGSTOP)
    while Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "T":
        time.sleep(0.001)


def resident(process: int, path: Path) -> int:
    """Bytes of the file at `path` that a process has in its memory map and has touched."""
    found, inside = 0, False
    for line in Path(f"/proc/{process}/smaps").read_text(encoding="utf-8").splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            inside = line.endswith(f" {path}")
        elif inside and name == "Rss:":
            found += 1024 * int(values[0])
    return found


def test_the_same_passages_as_in_this_process(pair: RayRetriever, large_source: Path, alone: LocalRetriever) -> None:
    assert pair._store is not None
    assert_as_alone(pair, alone)
    assert_as_alone(from_afar(pair, large_source), alone)


def test_passages_that_are_not_those_of_the_workers_are_not_read_here(
    cluster: RayCluster, source_folder: Path, tmp_path: Path
) -> None:
    """Nor those whose vectors are not mapped: each process would hold them."""
    shutil.copytree(source_folder, tmp_path / "source")
    retriever = open_workers(tmp_path / "source")
    info = KnowledgeSource(tmp_path / "source").info()
    assert retriever._store is not None and mapped_store(info) is not None
    assert mapped_store(dataclasses.replace(info, fingerprint="another")) is None
    assert mapped_store(dataclasses.replace(info, passages_path=str(tmp_path / "elsewhere"))) is None
    retriever.close()
    unmapped = write_unmapped_source(tmp_path / "unmapped")
    retriever = open_workers(unmapped)
    assert retriever._store is None
    asked = np.random.default_rng(3).normal(size=(4, UNMAPPED_DIMENSION)).astype(np.float32)
    assert_equal(retriever.retrieve(asked, 3), LocalRetriever(KnowledgeSource(unmapped)).retrieve(asked, 3))
    retriever.close()


def test_a_new_worker_does_not_mix_versions_of_a_source(
    cluster: RayCluster, source_folder: Path, tmp_path: Path
) -> None:
    """The others go on with the version that they have opened, whatever stands in its place."""
    folder = tmp_path / "source"
    shutil.copytree(source_folder, folder)
    retriever = open_workers(folder)
    far = from_afar(retriever, folder)
    asked = np.random.default_rng(3).normal(size=(4, 16)).astype(np.float32)
    expected = retriever.retrieve(asked, 2)
    with new_version(folder) as new:
        shutil.copytree(folder, new, dirs_exist_ok=True)
        manifest = Manifest.load(new)
        assert manifest is not None
        dataclasses.replace(manifest, documents=manifest.documents + 1).save(new)
    assert_equal(retriever.retrieve(asked, 2), expected)
    os.kill(process_of(retriever, 0), signal.SIGKILL)
    for asking in (retriever, far):
        with pytest.raises(InputError, match=f"^{folder} was updated since this run began, and a retrieval worker"):
            asking.retrieve(asked, 2)
    retriever.close()


def test_a_new_worker_does_not_take_a_source_with_a_manifest_for_one_without(
    cluster: RayCluster, source_folder: Path, tmp_path: Path
) -> None:
    """As where a source of the reference's script is built anew."""
    folder = tmp_path / "source"
    shutil.copytree(source_folder, folder)
    (folder / FILE_NAME).unlink()
    retriever = open_workers(folder)
    far = from_afar(retriever, folder)
    asked = np.random.default_rng(3).normal(size=(4, 16)).astype(np.float32)
    expected = retriever.retrieve(asked, 2)
    os.kill(process_of(retriever, 0), signal.SIGKILL)
    for asking in (retriever, far):
        assert_equal(asking.retrieve(asked, 2), expected)
    shutil.copy2(source_folder / FILE_NAME, folder)
    os.kill(process_of(retriever, 0), signal.SIGKILL)
    for asking in (retriever, far):
        with pytest.raises(InputError, match=f"^{folder} was updated since this run began, and a retrieval worker"):
            asking.retrieve(asked, 2)
    retriever.close()


def test_workers_divide_the_cores_that_they_may_use(pair: RayRetriever, large_source: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    share = (max(1, cores // 2),) * 2
    assert let_all(pair._crews, "threads") == [share, share]
    alone = open_workers(large_source)
    assert ray.get(alone._crews[0]._lines[0].promise("threads").reference) == (cores, cores)
    alone.close()


def test_a_divided_source_gives_what_the_undivided_one_gives(
    cluster: RayCluster, large_source: Path, alone: LocalRetriever
) -> None:
    """Ids, vectors and texts, without tolerance; a killed worker of a part is replaced as well.

    Each worker reads its third of the index alone, from the map.
    """
    retriever = open_workers(large_source, parts=3)
    assert_as_alone(retriever, alone)
    assert_as_alone(from_afar(retriever, large_source), alone)
    index = alone.source.index_path
    size = index.stat().st_size
    for part in range(3):
        # The system maps what lies around a page that is touched, how much depends on it: at both ends, and the header.
        assert 0.3 * size < resident(process_of(retriever, 0, part), index) < 0.8 * size
    os.kill(process_of(retriever, 0), signal.SIGKILL)
    assert_as_alone(retriever, alone)
    retriever.close()


def test_scores_of_the_parts_are_those_of_the_flat_index(
    cluster: RayCluster, large_source: Path, alone: LocalRetriever, tmp_path: Path
) -> None:
    """To the last bit. A divided source is searched exactly whatever its index is, as build-knowledge's own HNSW."""
    asked = queries(16)
    store, index = alone.source.store, tmp_path / "hnsw.faiss"
    build_index(store.vector_chunks, len(store), DIMENSION, "HNSW8,Flat", index)
    expected = alone.searcher.search(asked, 7)
    for location in (SourceLocation(str(large_source)), SourceLocation(str(large_source), str(index))):
        _, retriever = InRayWorkers(OneProcess(), parts=3, timeout=TIMEOUT).open(location)
        assert isinstance(retriever, RayRetriever)
        request = Request("search", None, 7, asked.tobytes())
        answers = [crew.call(request) for crew in retriever._crews]
        found = best_of([decode_found(answer, len(asked)) for answer in answers], 7)
        np.testing.assert_array_equal(found[1], expected[1])
        if location.index_path is None:
            np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
        assert_equal(retriever.retrieve(asked, 7), alone.retrieve(asked, 7))
        retriever.close()


def test_parts_with_several_workers_each_and_more_passages_than_there_are(
    cluster: RayCluster, source_folder: Path
) -> None:
    asked = np.random.default_rng(3).normal(size=(4, 16)).astype(np.float32)
    expected = LocalRetriever(KnowledgeSource(source_folder)).retrieve(asked, 9)
    assert (expected.ids[:, 6:] == -1).all()
    retriever = open_workers(source_folder, parts=2, workers=2)
    processes = {process_of(retriever, worker, part) for part in range(2) for worker in range(2)}
    assert len(processes) == 4
    os.kill(process_of(retriever, 0, part=1), signal.SIGKILL)
    # Workers take turns, so that each is asked.
    for asking in (retriever, from_afar(retriever, source_folder)):
        for _ in range(4):
            assert_equal(asking.retrieve(asked, 9), expected)
    retriever.close()


def test_each_worker_has_the_index_in_its_memory_map(pair: RayRetriever, large_source: Path) -> None:
    source = KnowledgeSource(large_source)
    for _ in range(2):
        pair.retrieve(queries(1), 1)  # They take turns, and one that was replaced opens it when it is asked.
    for worker in range(2):
        maps = Path(f"/proc/{process_of(pair, worker)}/maps").read_text(encoding="utf-8")
        assert str(source.index_path) in maps
        assert str(source.store.folder) in maps


def test_a_killed_worker_is_replaced_and_its_request_repeated(pair: RayRetriever, alone: LocalRetriever) -> None:
    expected = alone.retrieve(queries(8), 5)
    killed = process_of(pair, 0)
    crew = pair._crews[0]
    stop(killed)
    request = request_to(crew, 0)
    os.kill(killed, signal.SIGKILL)
    assert_equal(passages(crew.finish(request)), expected)
    assert process_of(pair, 0) != killed


def test_workers_that_are_killed_together_are_waited_for(pair: RayRetriever, alone: LocalRetriever) -> None:
    """By a request that one hands to the other: whichever is there first answers."""
    for worker in range(2):
        os.kill(process_of(pair, worker), signal.SIGKILL)
    for _ in range(4):
        assert_equal(pair.retrieve(queries(8), 5), alone.retrieve(queries(8), 5))


@contextmanager
def far_host(cluster: RayCluster) -> Iterator[None]:
    """A host of the cluster that alone has what Ray's resource "far" stands for."""
    ray_command = str(Path(sys.executable).with_name("ray"))
    place = ["--address", cluster.address, "--num-cpus", "1", "--resources", '{"far": 1}', "--block"]
    with subprocess.Popen([ray_command, "start", *place], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            while "far" not in ray.cluster_resources():
                assert process.poll() is None
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.communicate()


@pytest.mark.slow
def test_a_worker_whose_host_is_lost_is_done_without_until_it_is_back(
    cluster: RayCluster,
    large_source: Path,
    alone: LocalRetriever,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """No other host has room for it, so that Ray does not start it anew before."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    monkeypatch.setattr(ray_line, "PATIENCE", 0.5)
    expected = alone.retrieve(queries(8), 5)
    lasting: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "namespace": NAMESPACE}
    location = SourceLocation(str(large_source))
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    places: list[dict[str, Any]] = [{"scheduling_strategy": here}, {"resources": {"far": 1}}]
    worker: Any = ray.remote(RetrievalWorker)
    with far_host(cluster):
        held = [
            worker.options(name=f"host-{number}", **place, **lasting).remote(location, 0, 1, "cpu", 1, "here")
            for number, place in enumerate(places)
        ]
        crew = Crew(["host-0", "host-1"], None, TIMEOUT)
        let_all([crew], "info")
    began = time.monotonic()
    assert_equal(passages(crew.finish(request_to(crew, 1))), expected)
    for _ in range(3):
        call = crew.start(REQUEST)
        assert call.worker == 0
        assert_equal(passages(crew.finish(call)), expected)
    assert time.monotonic() - began < TIMEOUT / 3
    told = "Retrieval worker 2 of 2 cannot be reached; others are asked until it is back.\n"
    assert capfd.readouterr().err.count(told) == 1
    with far_host(cluster):
        await_return(crew._lines[1], began)
        assert_equal(passages(crew.finish(request_to(crew, 1))), expected)
        assert "Retrieval worker 2 of 2 is back.\n" in capfd.readouterr().err
        crew.close()
        for actor in held:
            ray.kill(actor)


@pytest.mark.slow
def test_a_worker_that_comes_back_without_the_source_is_done_without(
    cluster: RayCluster, source_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And why is told once. The other one has the source open."""
    folder = tmp_path / "source"
    shutil.copytree(source_folder, folder)
    retriever = open_workers(folder, workers=2)
    asked = np.random.default_rng(3).normal(size=(4, 16)).astype(np.float32)
    expected = retriever.retrieve(asked, 2)
    killed = process_of(retriever, 0)
    folder.rename(tmp_path / "elsewhere")
    os.kill(killed, signal.SIGKILL)
    why = f"Retrieval worker 1 of 2 was found, but cannot be asked: There is no knowledge source {folder}; make one"
    said, began = "", time.monotonic()
    while why not in said:
        assert time.monotonic() - began < TIMEOUT
        assert_equal(retriever.retrieve(asked, 2), expected)
        said += capfd.readouterr().err
    for _ in range(30):
        assert_equal(retriever.retrieve(asked, 2), expected)
        time.sleep(0.1)
    assert "cannot be asked" not in capfd.readouterr().err
    (tmp_path / "elsewhere").rename(folder)
    await_return(retriever._crews[0]._lines[0], began)
    assert "Retrieval worker 1 of 2 is back." in capfd.readouterr().err
    retriever.close()


@pytest.mark.slow
def test_a_worker_that_hangs_without_a_connection_is_started_anew(
    pair: RayRetriever, alone: LocalRetriever, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its system still takes connections for it. Others are asked meanwhile."""
    monkeypatch.setattr(ray_line, "PATIENCE", 0.5)
    monkeypatch.setattr(ray_line, "HUNG", 1.0)
    crew = pair._crews[0]
    line, hung = crew._lines[0], process_of(pair, 0)
    line.close()
    stop(hung)
    assert_equal(passages(crew.finish(request_to(crew, 0))), alone.retrieve(queries(8), 5))
    assert not line.is_there()
    await_return(line, time.monotonic())
    assert process_of(pair, 0) != hung
    assert_equal(passages(crew.finish(request_to(crew, 0))), alone.retrieve(queries(8), 5))
    said = capfd.readouterr().err
    for what in ("cannot be reached; others", "has not answered Ray for 1 s; it is started anew.", "is back."):
        assert said.count(f"Retrieval worker 1 of 2 {what}") == 1


def test_requests_go_round_a_worker_that_is_busy(pair: RayRetriever, alone: LocalRetriever) -> None:
    """One of two workers is stopped in the middle of a request: the requests that follow go to the other."""
    crew = pair._crews[0]
    stopped = process_of(pair, 0)
    stop(stopped)
    try:
        hanging = request_to(crew, 0)
        for _ in range(5):
            assert_equal(pair.retrieve(queries(8), 5), alone.retrieve(queries(8), 5))
    finally:
        os.kill(stopped, signal.SIGCONT)
    crew.finish(hanging)


def test_the_least_busy_worker_gets_the_request() -> None:
    board = Board(3)
    assert [board.take([0, 1, 2]) for _ in range(4)] == [0, 1, 2, 0]
    board.release(1)
    assert board.take([0, 1, 2]) == 1
    board.release(2)
    assert board.take([0, 1]) == 1
    assert board.take([0, 1, 2]) == 2


def test_idle_workers_take_turns() -> None:
    board = Board(2)
    taken = []
    for _ in range(4):
        taken.append(board.take([0, 1]))
        board.release(taken[-1])
    assert taken == [0, 1, 0, 1]


def test_the_source_may_be_named_relative_to_the_working_directory(
    cluster: RayCluster, large_source: Path, alone: LocalRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is not that of the workers."""
    monkeypatch.chdir(large_source.parent)
    _, retriever = InRayWorkers(OneProcess(), timeout=TIMEOUT).open(SourceLocation(large_source.name))
    assert_equal(retriever.retrieve(queries(3), 5), alone.retrieve(queries(3), 5))
    retriever.close()


def test_a_worker_that_hangs_is_not_waited_for_longer_than_said(
    pair: RayRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    for line in pair._crews[0]._lines:
        monkeypatch.setattr(line, "_timeout", 2.0)
    process = process_of(pair, 0)
    stop(process)
    try:
        with pytest.raises(LostError, match=r"^Retrieval worker 1 of 2 does not answer any more \(time-out 2 s\):"):
            for _ in range(2):
                pair.retrieve(queries(2), 3)
    finally:
        os.kill(process, signal.SIGCONT)


def test_a_worker_that_hangs_is_started_anew(
    pair: RayRetriever, alone: LocalRetriever, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever waits for it gets an answer, of the other one here, also where two ask for it to be started anew."""
    monkeypatch.setattr(ray_line, "PATIENCE", 0.5)
    monkeypatch.setattr(ray_line, "HUNG", 1.0)
    crew = pair._crews[0]

    def ask_twice() -> list[Call]:
        requests = [Call(REQUEST.encode(), time.monotonic(), worker=0) for _ in range(2)]
        for request in requests:
            crew._lines[0].send(request)
        return requests

    for request in ask_twice():
        crew.finish(request)
    hung = process_of(pair, 0)
    stop(hung)
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(crew.finish, ask_twice()))
    for answer in answers:
        assert_equal(passages(answer), alone.retrieve(queries(8), 5))
    assert process_of(pair, 0) != hung
    said = "Retrieval worker 1 of 2 has not answered Ray for 1 s; it is started anew.\n"
    assert capfd.readouterr().err.count(said) == 2


def test_workers_that_are_gone_for_good(cluster: RayCluster, large_source: Path, alone: LocalRetriever) -> None:
    """One is left out; that all are gone is said at once."""
    retriever = open_workers(large_source, workers=2)
    first, second = (line._actor for line in retriever._crews[0]._lines)
    ray.kill(first, no_restart=True)
    for _ in range(3):
        assert_equal(retriever.retrieve(queries(8), 5), alone.retrieve(queries(8), 5))
    ray.kill(second, no_restart=True)
    began = time.monotonic()
    with pytest.raises(LostError, match=r"^The 2 retrieval workers do not answer any more \(time-out .* s\): .*resume"):
        # Ray kills it in a moment, not at once.
        for _ in range(1000):
            retriever.retrieve(queries(2), 3)
    assert time.monotonic() - began < TIMEOUT
    retriever.close()


def test_the_part_whose_workers_are_gone_is_named(cluster: RayCluster, large_source: Path) -> None:
    retriever = open_workers(large_source, parts=2)
    ray.kill(retriever._crews[1]._lines[0]._actor, no_restart=True)
    with pytest.raises(LostError, match=r"^The retrieval worker for part 2 of 2 does not answer any more"):
        # Ray kills it in a moment, not at once.
        for _ in range(1000):
            retriever.retrieve(queries(2), 3)
    retriever.close()


def test_no_source_is_said_as_in_this_process(cluster: RayCluster, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^There is no knowledge source {tmp_path / 'nowhere'}; make one"):
        open_workers(tmp_path / "nowhere")


def test_workers_look_where_they_are_told(cluster: RayCluster, tmp_path: Path) -> None:
    """Not where a symbolic link of the first host leads, which another host may not have."""
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match=f"^There is no knowledge source {tmp_path / 'link' / 'nowhere'}; make one"):
        open_workers(tmp_path / "link" / "nowhere")


def test_a_host_without_the_source_is_named(cluster: RayCluster, tmp_path: Path) -> None:
    """By a worker that has another home than its own host."""
    location = SourceLocation(str(tmp_path / "nowhere"))
    worker: Any = ray.remote(RetrievalWorker).options(name="away", num_cpus=0, namespace=NAMESPACE)
    held = worker.remote(location, 0, 1, "cpu", 1, "another host")
    with (
        closing(Crew(["away"], None, TIMEOUT)) as crew,
        pytest.raises(InputError, match=f"^On {socket.gethostname()}, where a retrieval worker runs: There is no"),
    ):
        let_all([crew], "info")
    ray.kill(held)


class Elsewhere(RetrievalWorker):
    """Gives an address at which nobody listens, as where the way there is barred."""

    def address(self) -> Address:
        if not hasattr(self, "_taken"):
            self._taken = socket.socket()
            self._taken.bind(("127.0.0.1", 0))
        return Address("127.0.0.1", self._taken.getsockname()[1], bytes(32))


def test_a_worker_that_cannot_be_reached_is_named(cluster: RayCluster, large_source: Path) -> None:
    location = SourceLocation(str(large_source))
    options: dict[str, Any] = {"num_cpus": 0, "namespace": NAMESPACE}
    held = [
        ray.remote(kind).options(name=f"barred-{number}", **options).remote(location, 0, 1, "cpu", 2, "here")
        for number, kind in enumerate((RetrievalWorker, Elsewhere))
    ]
    with pytest.raises(
        LostError, match=r"^Retrieval worker 2 of 2 cannot be reached at 127\.0\.0\.1:\d+ \(Connection refused\); work"
    ):
        Crew(["barred-0", "barred-1"], None, TIMEOUT)
    for actor in held:
        ray.kill(actor)


class Moving(RetrievalWorker):
    """At its first address it takes nothing that it is sent, as one whose host is cut off."""

    def address(self) -> Address:
        if not hasattr(self, "_deaf"):
            self._deaf = socket.create_server(("127.0.0.1", 0))
            return Address("127.0.0.1", self._deaf.getsockname()[1], bytes(32))
        return super().address()


@pytest.mark.parametrize("count", [8, 20_000])
def test_a_request_that_is_not_taken_goes_to_where_the_worker_is(
    cluster: RayCluster, large_source: Path, alone: LocalRetriever, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Long before the time-out; one that fits into the system's buffers, and one that does not."""
    monkeypatch.setattr("ragstone.retrieval.ray_line.PATIENCE", 1.0)
    monkeypatch.setitem(WATCHED, "TCP_USER_TIMEOUT", 1000)
    location = SourceLocation(str(large_source))
    options: dict[str, Any] = {"name": f"moving-{count}", "num_cpus": 0, "namespace": NAMESPACE}
    held = ray.remote(Moving).options(**options).remote(location, 0, 1, "cpu", 1, "here")
    asked = queries(count)
    with closing(Crew([f"moving-{count}"], None, TIMEOUT)) as crew:
        let_all([crew], "info")
        began = time.monotonic()
        answer = crew.call(Request("retrieve", None, 1, asked.tobytes()))
        assert time.monotonic() - began < TIMEOUT / 3
    assert_equal(passages(answer), alone.retrieve(asked, 1))
    ray.kill(held)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ConnectionRefusedError(111, "Connection refused"),
            r"\(Connection refused\); workers answer at ports of",
        ),
        (TimeoutError("timed out"), r"\(nothing within 5 s\); workers answer at ports of their own, .* through to\.$"),
        (
            ssl.SSLError(1, "verify failed"),
            r"\(verify failed\); the certificates that Ray has .* that host's address\.$",
        ),
    ],
)
def test_why_a_worker_cannot_be_reached(error: OSError, message: str) -> None:
    told = str(unreached("Retrieval worker 0", Address("10.0.0.1", 7, b""), error))
    assert re.match(rf"^Retrieval worker 0 cannot be reached at 10\.0\.0\.1:7 {message}", told)


def test_a_search_that_takes_long_is_waited_for(
    pair: RayRetriever, alone: LocalRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray is asked meanwhile, and says that the worker is where it was."""
    monkeypatch.setattr("ragstone.retrieval.ray_line.PATIENCE", 1e-4)
    asked = queries(2000, seed=7)
    assert_equal(pair.retrieve(asked, 50), alone.retrieve(asked, 50))


def test_workers_that_have_different_sources(cluster: RayCluster, large_source: Path, source_folder: Path) -> None:
    """As where a host has another version; one that is gone is not asked."""
    worker: Any = ray.remote(RetrievalWorker)
    options: dict[str, Any] = {"num_cpus": 0, "namespace": NAMESPACE}
    held = [
        worker.options(name=f"odd-{number}", **options).remote(SourceLocation(str(folder)), 0, 1, "cpu", 3, "here")
        for number, folder in enumerate((large_source, large_source, source_folder))
    ]
    alike, unlike = Crew(["odd-0", "odd-1"], None, TIMEOUT), Crew(["odd-2"], None, TIMEOUT)
    expected = KnowledgeSource(large_source).info()
    assert open_everywhere([alike]) == expected
    with pytest.raises(InputError, match=r"^The knowledge source .* is not the same for all retrieval workers; put"):
        open_everywhere([alike, unlike])
    request = Request("search", "another version", 2, queries(3).tobytes())
    with pytest.raises(InputError, match=r"^.* was updated since this run began, and a retrieval worker"):
        # Nothing is left of what the others were asked meanwhile.
        call_each([unlike, alike], [request] * 2)
    ray.kill(held[0], no_restart=True)
    # Ray kills it in a moment, not at once.
    for _ in range(1000):
        assert open_everywhere([alike]) == expected
        if alike._gone:
            break
    assert list(alike._gone) == [0]
    assert open_everywhere([alike]) == expected
    for crew in (alike, unlike):
        crew.close()
    for actor in held[1:]:
        ray.kill(actor)


def test_gpus_that_the_cluster_does_not_have_are_not_waited_for(cluster: RayCluster) -> None:
    wanted = cluster.gpus + 1
    settings = RetrievalSettings("ray", cluster.address, workers=wanted, device="cuda")
    message = rf"^--index_device cuda: .* a GPU.*, and the Ray cluster at {cluster.address} has {cluster.gpus}; leave"
    with pytest.raises(InputError, match=message), connected(settings, OneProcess()):
        pass


def test_workers_do_without_torch() -> None:
    """Each is a process of its own: what it imports, it holds in memory once more. Exact search alone needs torch."""
    check = "import sys, ragstone.retrieval.ray_worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_a_board_that_hangs_is_started_anew(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And knows nothing of what the workers had to do, until they have done it."""
    monkeypatch.setattr(ray_line, "PATIENCE", 0.5)
    monkeypatch.setattr(ray_line, "HUNG", 1.0)
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    board: Any = ray.remote(SharedBoard).options(**options).remote(2)
    with closing(BoardLine(board, TIMEOUT)) as line:
        assert [line.take([0, 1]) for _ in range(3)] == [0, 1, 0]
        line.release(0)
        hung = ray.get(board.__ray_call__.remote(lambda _: os.getpid()))
        stop(hung)
        assert line.take([0, 1]) == 0
        assert ray.get(board.__ray_call__.remote(lambda _: os.getpid())) != hung
        for _ in range(2):
            line.release(0)
        assert line.take([0, 1]) == 1
    assert "divides the work among retrieval workers has not answered Ray for 1 s; it" in capfd.readouterr().err
    ray.kill(board)


def test_processes_that_ask_the_same_workers_share_a_board(
    cluster: RayCluster, large_source: Path, alone: LocalRetriever
) -> None:
    """What one asks of a worker, the other goes round; and says so when the board is gone."""
    options: dict[str, Any] = {"num_cpus": 0, "namespace": NAMESPACE}
    location = SourceLocation(str(large_source))
    held = [ray.remote(SharedBoard).options(name="shared-board", **options).remote(2)]
    for name in ("shared-0", "shared-1"):
        held.append(ray.remote(RetrievalWorker).options(name=name, **options).remote(location, 0, 1, "cpu", 2, "here"))
    one, other = (Crew(["shared-0", "shared-1"], "shared-board", TIMEOUT) for _ in range(2))
    let_all([one, other], "info")
    process = ray.get(held[1].process.remote())
    stop(process)
    try:
        hanging = request_to(one, 0)
        for _ in range(3):
            request = other.start(REQUEST)
            # By its own count it would take turns.
            assert request.worker == 1
            assert_equal(passages(other.finish(request)), alone.retrieve(queries(8), 5))
    finally:
        os.kill(process, signal.SIGCONT)
    assert_equal(passages(one.finish(hanging)), alone.retrieve(queries(8), 5))
    ray.kill(held[0])
    with pytest.raises(LostError, match="The board that divides the work among retrieval workers does not answer"):
        # Ray kills it in a moment, not at once.
        for _ in range(1000):
            other.call(REQUEST)
    for crew in (one, other):
        crew.close()
    for actor in held[1:]:
        ray.kill(actor)
