"""ragstone demo: the whole job on an invented almanac, on two cores in minutes, by the commands a user would type."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragstone.commands.make_almanac import refuse_too_few
from ragstone.commands.table import load_command
from ragstone.errors import InputError
from ragstone.output import refuse_used_folder, write_text
from ragstone.settings import parse_settings, save_settings

RETRIEVER_STEPS = 200
JOINT_STEPS = 100
VOCABULARY = 800
"""So small that names are always spelt by syllables: a name that training never saw looks like those that it saw."""
MAX_SEED = 2**32


@dataclass(frozen=True)
class DemoSettings:
    output_dir: Path = Path("demo")
    """Folder for everything the demo makes; new or empty."""
    entities: int = 6000
    """Articles of the almanac."""
    max_steps: int = 900
    """Optimiser steps of the first fine-tuning, which learns to read."""
    seed: int = 7
    """Seed of the almanac and of training."""

    def __post_init__(self) -> None:
        refuse_too_few(self.entities)
        if self.max_steps < 2:
            raise InputError(f"--max_steps is {self.max_steps}, but must be at least 2: it validates halfway too.")
        if not 0 <= self.seed < MAX_SEED:
            raise InputError(f"--seed is {self.seed}, but must be at least 0 and below {MAX_SEED}.")


@dataclass(frozen=True)
class Demo:
    """What the demo measured, in percent."""

    folder: Path
    test_em: float
    test_f1: float
    precision_at_1: float
    swapped_em: float
    """Right under the new facts, after the knowledge source was swapped without training."""
    stale_em: float
    """Still the old fact after the swap."""
    seconds: float


def demo(settings: DemoSettings) -> Demo:
    """Invent an almanac, train a retriever and a generator on it, evaluate, ask, and swap the facts."""
    from ragstone.encoders.precision import best_device, fast_bfloat16

    began = time.perf_counter()
    folder, seed = settings.output_dir, settings.seed
    refuse_used_folder(folder, "--output_dir")
    _print_title("An invented almanac, with questions; the test asks about entities that training never asks about")
    where = shlex.quote(str(folder))
    almanac = _ragstone(f"make-almanac --output_dir {where} --entities {settings.entities} --seed {seed}")
    save_settings(settings, folder / "settings.yaml")
    data, retriever = f"{where}/data", f"{where}/retriever"
    knowledge, changed = f"{where}/knowledge", f"{where}/knowledge_changed"

    _print_title("A retriever: question and passage encoder, from scratch")
    _ragstone(
        f"train-retriever --train_path {where}/retriever.json --output_dir {retriever} --shared --batch_size 64 "
        f"--vocab_size {VOCABULARY} --max_steps {RETRIEVER_STEPS} --seed {seed}"
    )
    _print_title("The almanac as a searchable knowledge source")
    build = f"build-knowledge --dpr_ctx_encoder_model_name {retriever}/passage_encoder"
    _ragstone(f"{build} --csv_path {where}/almanac.tsv --output_dir {knowledge}")

    _print_title("A small generator from scratch, joined with the question encoder")
    _ragstone(
        f"new-generator --dest {where}/generator --csv_path {where}/almanac.tsv --data_dir {data} "
        f"--vocab_size {VOCABULARY} --seed {seed}"
    )
    _ragstone(
        f"consolidate --model_type rag_sequence --dest {where}/rag --generator_name_or_path {where}/generator "
        f"--question_encoder_name_or_path {retriever}/question_encoder"
    )
    precision = "--bf16 " if fast_bfloat16(best_device()) else ""
    train = f"finetune --data_dir {data} --passages_path {knowledge} {precision}--dropout 0 --num_beams 1 --seed {seed}"
    _print_title("Fine-tuning: first to read the best passage, until copying names from it is learned")
    _ragstone(
        f"{train} --output_dir {where}/reading --model_name_or_path {where}/rag --n_docs 1 --train_batch_size 64 "
        f"--max_steps {settings.max_steps} --num_train_epochs 100 --learning_rate 2e-3 --warmup_steps 50 "
        f"--freeze_question_encoder --val_check_interval {settings.max_steps // 2}"
    )
    _print_title("Fine-tuning: then question encoder and generator together, three passages marginalised out")
    _ragstone(
        f"{train} --output_dir {where}/run --model_name_or_path {where}/reading/best --n_docs 3 "
        f"--train_batch_size 32 --max_steps {JOINT_STEPS} --learning_rate 3e-4 --question_encoder_learning_rate 1e-5 "
        f"--val_check_interval {JOINT_STEPS // 2}"
    )
    _print_title("How well it retrieves and answers")
    best = f"{where}/run/best"
    evaluate = f"eval --model_name_or_path {best} --evaluation_set {data}/test.source --num_beams 2"
    retrieved = _ragstone(
        f"{evaluate} --eval_mode retrieval --gold_data_path {data}/test.pages --predictions_path {where}/test.titles"
    )
    answered = _ragstone(
        f"{evaluate} --gold_data_path {data}/test.gold_qa.tsv --predictions_path {where}/test.predictions"
    )
    _print_title("Questions, with the passages behind the answers")
    tested = almanac.tested
    for question in tested[:3]:
        _ragstone(f"ask --model_name_or_path {best} --question {shlex.quote(question)}")

    _print_title("Other facts: the knowledge source is swapped, the model stays as it is")
    _ragstone(f"{build} --csv_path {where}/almanac_changed.tsv --output_dir {changed}")
    after = f"{evaluate} --passages_path {changed} --predictions_path {where}/changed.predictions"
    swapped = _ragstone(f"{after} --gold_data_path {data}/changed.gold_qa.tsv")
    stale = _ragstone(f"{after} --gold_data_path {data}/test.gold_qa.tsv")
    _ragstone(f"ask --model_name_or_path {best} --passages_path {changed} --question {shlex.quote(tested[0])}")

    result = Demo(
        folder,
        test_em=_value(answered, "em"),
        test_f1=_value(answered, "f1"),
        precision_at_1=_value(retrieved, "precision_at_1"),
        swapped_em=_value(swapped, "em"),
        stale_em=_value(stale, "em"),
        seconds=round(time.perf_counter() - began, 1),
    )
    write_text(folder / "metrics.json", json.dumps(_numbers(result), indent=2) + "\n")
    return result


def show(result: Demo) -> None:
    """Print the numbers that metrics.json holds."""
    _print_title(f"Summary, also in {result.folder / 'metrics.json'}")
    for name, value in _numbers(result).items():
        print(f"{name:<15} {value:.1f}")


def _numbers(result: Demo) -> dict[str, float]:
    names = ("test_em", "test_f1", "precision_at_1", "swapped_em", "stale_em", "seconds")
    return {name: getattr(result, name) for name in names}


def _value(evaluated: Any, metric: str) -> float:
    return round(float(evaluated.evaluations[0].scores[metric].value), 2)


def _print_title(title: str) -> None:
    print(f"\n== {title}\n", flush=True)


def _ragstone(line: str) -> Any:
    """Show a command line, run it as the command line would, and return its result."""
    print(f"$ ragstone {line}", flush=True)
    name, *words = shlex.split(line)
    command = load_command(name)
    result = command.run(parse_settings(command.settings_class, words, f"ragstone {name}", command.purpose))
    command.show(result)
    print(flush=True)
    return result
