"""Both sides of compare on one machine: works done in turn, results held against each other, peaks of memory."""

from __future__ import annotations

import dataclasses
import datetime
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.compare_once import Task
from benchmarks.compare_record import Record
from benchmarks.compare_sides import BEAMS, MAX_LENGTH, SIDES, Ragstone, Reference, Setup
from benchmarks.compare_turns import Variant, take_turns
from benchmarks.compare_works import (
    ANSWERED,
    OPEN,
    WORKS,
    Inputs,
    Operations,
    Work,
    candidates,
    context_lengths,
    unlike_answers,
)
from benchmarks.fresh import run_fresh
from benchmarks.machine import commit, multiply_rate, processor
from benchmarks.synthetic_source import SyntheticSource
from benchmarks.timeline import Timeline
from ragstone.arithmetic import Precision
from ragstone.data.examples import read_examples, texts_of
from ragstone.encoders.precision import best_device, fast_bfloat16
from ragstone.errors import InputError
from ragstone.knowledge.source import KnowledgeSource
from ragstone.model.decoding import Decoding
from ragstone.model.model_type import RagType
from ragstone.output import write_lines


@dataclass(frozen=True)
class Material:
    """What is compared."""

    checkpoint: Path
    source: Path
    passage_encoder: Path
    data_dir: Path
    """Has test.source and test.target."""
    work_dir: Path
    """Where more may be made."""
    n_docs: int
    evaluated: int
    """Questions."""
    embedded: int
    """Passages."""


@dataclass(frozen=True)
class Measured:
    """What both sides took for a work, in some precision each."""

    choice: Mapping[str, Precision]
    seconds: list[float]
    """The reference's and Ragstone's."""
    mib: list[float]
    agreement: str
    runs: int
    operations: Operations = dataclasses.field(default_factory=dict)
    parts: dict[str, float] = dataclasses.field(default_factory=dict)


class Bench:
    """Compares both sides, work by work."""

    def __init__(self, material: Material, size: str, repeats: int | None = None, precise: bool = False) -> None:
        """`size` is what records call the checkpoint; `precise` leaves all but fp32 out."""
        self._material = material
        self._size = size
        self._repeats = repeats
        self._precise = precise
        self._source = KnowledgeSource(material.source)
        self._folder = tempfile.TemporaryDirectory()
        self._inputs = self._make_inputs()
        # Before the figures, which may be written into the tree, make it another one.
        self._commit = commit()
        self._rates = {
            name: multiply_rate(dtype, best_device())
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
            if name == "fp32" or fast_bfloat16(best_device())
        }

    def compare(self, name: str) -> list[Record]:
        """Records of a work: in fp32, and in the precisions in which each side is fastest.

        Raises:
            InputError: the sides do not agree.
        """
        work = WORKS[name]
        precisions: list[Precision] = ["fp32"]
        if not work.precise and not self._precise and fast_bfloat16(best_device()):
            precisions.append("bf16")
        repeats = self._repeats or work.repeats
        folder = Path(self._folder.name)
        Task(self._setup(work.model_type), self._inputs).save(folder)
        peaks: dict[Variant, float] = {}
        if work.fresh:
            seconds, results = self._time_fresh(name, precisions, repeats, peaks)
        else:
            seconds, results = take_turns(folder, list(SIDES), name, precisions, repeats)
        medians = {variant: statistics.median(taken) for variant, taken in seconds.items()}
        choices: list[dict[str, Precision]] = [dict.fromkeys(SIDES, precisions[0])]
        if len(precisions) > 1:
            choices.append({side: min(precisions, key=lambda each: medians[side, each]) for side in SIDES})
        # Lengths and answers are those of the checkpoint; training moves the weights.
        ragstone, untouched = (Ragstone(self._setup(work.model_type)) for _ in range(2))
        operations = {} if work.operations is None else work.operations(untouched, self._inputs)
        records = []
        for choice in choices:
            variants: list[Variant] = [(side, choice[side]) for side in SIDES]
            agreement = self._agreement(name, untouched, [results[variant] for variant in variants], choice)
            for variant in variants:
                if variant not in peaks:
                    peaks[variant] = self._fresh(name, variant)[1]
            measured = Measured(
                choice,
                [medians[variant] for variant in variants],
                [peaks[variant] for variant in variants],
                agreement,
                repeats,
                operations,
                {} if work.fresh else parts(work, ragstone, self._inputs, choice["ragstone"]),
            )
            what = f"{self._material.evaluated} {work.what}" if work.fresh else work.what
            records.append(self._record(name, what, measured))
        return records

    def open(self, passages: int) -> list[Record]:
        """A record of the way from the start of a process to its first answer, over a source of so many passages.

        Raises:
            InputError: the answers differ.
        """
        material = self._material
        config = json.loads((material.checkpoint / "config.json").read_text(encoding="utf-8"))
        dimension = int(config["retrieval_vector_size"])
        source = SyntheticSource(material.work_dir / "synthetic", passages, dimension)
        source.write_passages()
        place = [str(material.checkpoint), str(source.passages_path), str(source.write_reference_index())]
        question, numbers = self._inputs.questions[0], [str(material.n_docs), str(BEAMS), str(MAX_LENGTH)]
        flags = ("model_name_or_path", "passages_path", "index_path", "n_docs", "num_beams", "max_length", "question")
        words = [f"--{flag}={value}" for flag, value in zip(flags, [*place, *numbers, question], strict=True)]
        ways = {
            "reference": ("benchmarks.reference_answer", [*place, *numbers, question]),
            "ragstone": ("ragstone", ["ask", "--json", "--model_type=rag_sequence", *words]),
        }
        seconds: dict[str, list[float]] = {side: [] for side in ways}
        mib, own, said = {}, {}, {}
        repeats = self._repeats or 3
        # Once before, for what the system keeps in memory of files.
        for _ in range(1 + repeats):
            for side, (module, arguments) in ways.items():
                done = run_fresh(module, arguments)
                seconds[side].append(done.seconds)
                mib[side], own[side], said[side] = done.mib, done.own_mib, done.lines[0]
        ours = str(json.loads(said["ragstone"])["answer"])
        if ours != said["reference"]:
            raise InputError(f"open gives {said['reference']!r} in the reference but {ours!r} in Ragstone.")
        measured = Measured(
            dict.fromkeys(SIDES, "fp32"),
            [statistics.median(seconds[side][1:]) for side in SIDES],
            [mib[side] for side in SIDES],
            f"the answers alike; without mapped files {own['reference']:.0f} and {own['ragstone']:.0f} MiB",
            repeats,
        )
        return [self._record(OPEN, f"process start to first answer, source of {passages:,} passages", measured)]

    def described(self) -> list[str]:
        """Sentences on the questions and on what the checkpoint makes of them."""
        model: Any = (side := Ragstone(self._setup("rag_sequence"))).model
        questions = self._inputs.questions[:ANSWERED]
        contexts, different = context_lengths(side, questions), candidates(side, questions)
        answers = model.generate(questions, Decoding(num_beams=BEAMS, max_length=MAX_LENGTH))
        mean = statistics.mean(len(found[0].labels) for found in answers)
        return [
            f"Contexts of the first {len(questions)} questions have {min(contexts)} to {max(contexts)} tokens, "
            f"{statistics.mean(contexts):.0f} on average; the reference pads each to "
            f"{model.options.context.max_length}.",
            f"Answers have {mean:.1f} tokens on average, their end included. The beams of {model.n_docs} passages "
            f"propose {BEAMS * model.n_docs} answers to a question, of which "
            f"{statistics.mean(map(len, different)):.1f} are different ones.",
        ]

    def _setup(self, model_type: RagType) -> Setup:
        info, material = self._source.info(), self._material
        return Setup(
            str(material.checkpoint),
            info.passages_path,
            str(info.index_path),
            str(material.passage_encoder),
            model_type,
            material.n_docs,
        )

    def _make_inputs(self) -> Inputs:
        """Questions in the spelling that both sides read, see compare_sides, and passages that no quoting changes."""
        material, folder, store = self._material, Path(self._folder.name), self._source.store
        questions, answers = texts_of(read_examples(material.data_dir, "test", material.evaluated))
        questions = Reference(self._setup("rag_sequence")).spelled(questions)
        rows = np.linspace(0, len(store) - 1, min(len(store), 2 * material.embedded)).astype(np.int64)
        found = [[passage.title, passage.text] for passage in store.passages(rows)]
        plain = [row for row in found if all(row) and not set('"\t\n') & set("".join(row))]
        inputs = Inputs(
            questions,
            answers,
            store.vectors(np.linspace(0, len(store) - 1, ANSWERED).astype(np.int64)),
            folder / "documents.tsv",
            folder / "asked.source",
            folder / "expected.target",
        )
        write_lines(inputs.documents, ["\t".join(row) for row in plain[: material.embedded]])
        write_lines(inputs.asked, questions)
        write_lines(inputs.expected, answers)
        return inputs

    def _agreement(
        self, name: str, untouched: Ragstone, results: Sequence[Any], choice: Mapping[str, Precision]
    ) -> str:
        work, (theirs, ours), exact = WORKS[name], results, set(choice.values()) == {"fp32"}
        agreement = work.equal(theirs, ours, exact)
        if agreement is not None and exact and work.likeliest:
            unlike = unlike_answers(untouched, self._inputs.questions, theirs, ours)
            agreement = None if unlike is None else agreement + unlike
        if agreement is None:
            raise InputError(f"{name} gives {str(theirs)[:200]} in the reference but {str(ours)[:200]} in Ragstone.")
        return agreement

    def _time_fresh(
        self, name: str, precisions: Sequence[Precision], repeats: int, peaks: dict[Variant, float]
    ) -> tuple[dict[Variant, list[float]], dict[Variant, Any]]:
        """As take_turns, by fresh processes, whose peaks of memory go into `peaks`."""
        seconds: dict[Variant, list[float]] = {(side, precision): [] for precision in precisions for side in SIDES}
        results = {}
        for _ in range(repeats):
            for variant, taken in seconds.items():
                done, peaks[variant] = self._fresh(name, variant)
                taken.append(done["seconds"])
                results[variant] = done["result"]
        return seconds, results

    def _fresh(self, name: str, variant: Variant) -> tuple[dict[str, Any], float]:
        """What a fresh process says that does a work once, and its peak of memory."""
        side, precision = variant
        done = run_fresh("benchmarks.compare_once", [self._folder.name, side, name, precision])
        return json.loads(done.lines[-1]), done.mib

    def _record(self, name: str, work: str, measured: Measured) -> Record:
        theirs, ours = measured.seconds
        device, operations = best_device(), sum(measured.operations.values())
        limits = [
            operations / took / self._rates[measured.choice[side]] if operations else None
            for side, took in zip(SIDES, measured.seconds, strict=True)
        ]
        return Record(
            name=name,
            work=work,
            precision=" / ".join(measured.choice[side] for side in SIDES),
            reference_s=theirs,
            ragstone_s=ours,
            ratio=theirs / ours,
            reference_mib=measured.mib[0],
            ragstone_mib=measured.mib[1],
            agreement=measured.agreement,
            operations=measured.operations,
            of_limit=limits[1],
            reference_of_limit=limits[0],
            parts=measured.parts,
            runs=measured.runs,
            size=self._size,
            device="cpu" if device.type == "cpu" else torch.cuda.get_device_name(),
            threads=torch.get_num_threads(),
            fp32_gflops=self._rates["fp32"] / 1e9,
            bf16_gflops=self._rates["bf16"] / 1e9 if "bf16" in self._rates else None,
            date=str(datetime.date.today()),
            commit=self._commit,
            processor=processor(),
        )


def parts(work: Work, side: Ragstone, inputs: Inputs, precision: Precision) -> dict[str, float]:
    """Seconds of one run, which another has warmed up, by the part of the model in which they pass."""
    side.precision, side.timeline = precision, Timeline()
    with side.settings():
        (work.settles or work.do)(side, inputs)
        with side.watched():
            side.timeline.start()
            work.do(side, inputs)
    return side.timeline.seconds
