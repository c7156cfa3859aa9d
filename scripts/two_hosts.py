"""Training on two hosts, shown on one machine.

    .venv/bin/python scripts/two_hosts.py

Two network namespaces stand for two hosts; their only link is a cable between them. A tiny model is trained by one
process, for comparison; then on both hosts by torchrun, and with Ray workers on both hosts that search. In all kinds of
run the link is cut after a checkpoint: the run must end in time and say what it has lost, and go on once the link is
back; or, where each Ray worker has the whole source, come to its end with the one that is left. Every run must come to
the same losses. Needs root, the program ip of iproute2, and Ray. All that it makes goes when it ends, and the exit code
is 0 only if all was as it should be.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from network_hosts import SECONDS_TO_WAIT, Host, Process, UnexpectedError, two_hosts

from ragstone.__main__ import INTERRUPTED, UNUSABLE_INPUT
from ragstone.__main__ import main as ragstone
from ragstone.errors import InputError
from ragstone.interrupt import stop_like_interrupt
from ragstone.processes.ray_cluster import refuse_without_ray

TORCHRUN_PORT = 29500
RAY_PORT = 6379

STEPS = 100
INTERVAL = 20
"""Steps between validations, each of which writes a checkpoint."""
TORCHRUN_TIMEOUT = 15
RAY_TIMEOUT = 30
"""--distributed_timeout of the runs that are cut. Ray itself gives up a host after about a minute."""
SECONDS_TO_TELL = 10
"""That a run has beyond its time-out until it says what it has lost: it watches for 4 s who still lives."""
SECONDS_TO_LEAVE = 30
"""That its processes, torchrun's included, have beyond the time-out until they are gone."""
CLOSE = 1e-4
"""Relative difference of losses that rounding explains."""

DOCUMENTS = {
    "lighthouse": "the lighthouse of the north cape is white",
    "harbour": "the harbour behind the cape was yellow",
    "ferry": "greta built the wooden ferry",
    "cape": "ivar built the white lighthouse at the cape",
    "captain": "signe was the captain of the yellow ferry",
    "market": "a market is what the captain built",
}
QUESTIONS = [
    ("who built the lighthouse ?", "ivar", "cape"),
    ("what is white ?", "the lighthouse", "lighthouse"),
    ("who was captain of the ferry ?", "signe", "captain"),
    ("who built the ferry ?", "greta", "ferry"),
    ("what is yellow ?", "the harbour", "harbour"),
    ("what is the lighthouse ?", "white", "lighthouse"),
    ("what is the ferry ?", "yellow", "captain"),
    ("what was behind the cape ?", "a harbour", "harbour"),
]
"""Question, answer, and the title of the document that has it."""
COMMANDS = (
    "train-retriever --train_path dpr.json --output_dir encoders --held_out 0 --hidden_size 16 --num_heads 2 "
    "--max_steps 2 --precision fp32",
    "build-knowledge --csv_path documents.tsv --output_dir knowledge "
    "--dpr_ctx_encoder_model_name encoders/passage_encoder --precision fp32",
    "new-generator --dest generator --csv_path documents.tsv --data_dir pairs --d_model 32 --heads 2 "
    "--encoder_layers 1 --decoder_layers 1 --dropout 0",
    "consolidate --model_type rag_sequence --dest rag --generator_name_or_path generator "
    "--question_encoder_name_or_path encoders/question_encoder",
)
FINETUNE = f"""\
data_dir: pairs
model_name_or_path: rag
passages_path: knowledge
n_docs: 3
max_steps: {STEPS}
num_train_epochs: {STEPS}
val_check_interval: {INTERVAL}
val_max_target_length: 8
num_beams: 1
learning_rate: 0.002
gpus: 0
"""


def make_materials() -> None:
    """Write documents and questions, and make a knowledge source and a checkpoint without dropout of them."""
    Path("documents.tsv").write_text("".join(f"{title}\t{text}\n" for title, text in DOCUMENTS.items()))
    Path("pairs").mkdir()
    for split, part in (("train", QUESTIONS), ("val", QUESTIONS[:4])):
        for ending, column in (("source", 0), ("target", 1)):
            Path(f"pairs/{split}.{ending}").write_text("".join(f"{row[column]}\n" for row in part))
    entries = [
        {
            "question": question,
            "answers": [answer],
            "positive_ctxs": [{"title": title, "text": DOCUMENTS[title]}],
            "negative_ctxs": [],
            "hard_negative_ctxs": [],
        }
        for question, answer, title in QUESTIONS
    ]
    Path("dpr.json").write_text(json.dumps(entries))
    for line in COMMANDS:
        print(f"$ ragstone {line}", flush=True)
        code = ragstone(line.split())
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code != 0:
            raise UnexpectedError(f"It ended with exit code {code}.")
    # Two processes draw other dropout than one does; no flag sets the question encoder's.
    config = json.loads(Path("rag/config.json").read_text())
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        config["question_encoder"][name] = 0.0
    Path("rag/config.json").write_text(json.dumps(config))
    Path("finetune.yaml").write_text(FINETUNE)
    print(f"finetune.yaml:\n{FINETUNE}", flush=True)


def finetune(output: Path, batch_size: int) -> list[str]:
    """The command line of a run, from the command's name on."""
    return ["finetune", "--config", "finetune.yaml", "--output_dir", str(output), "--train_batch_size", str(batch_size)]


def losses(output: Path) -> dict[int, float]:
    """The loss per token that each validation of a run tells, by step."""
    records = json.loads((output / "metrics.json").read_text())["val"]
    return {record["step_count"]: record["loss_per_token"] for record in records}


def show_losses(name: str, output: Path, expected: dict[int, float] | None = None) -> None:
    """Print a run's losses.

    Raises:
        UnexpectedError: they are not as `expected`.
    """
    found = losses(output)
    line = f"losses of {name}: " + "  ".join(f"step {step} {loss:.6f}" for step, loss in found.items())
    if expected is None:
        print(line, flush=True)
        return
    if found.keys() != expected.keys():
        raise UnexpectedError(f"{line}\nThese are not the steps {list(expected)}.")
    difference = max(abs(found[step] - loss) / loss for step, loss in expected.items())
    print(f"{line}; off by at most {difference:.1e}", flush=True)
    if difference > CLOSE:
        raise UnexpectedError(f"The losses are off by more than {CLOSE:.0e} from {expected}.")


def wait_for_checkpoint(output: Path, processes: Sequence[Process]) -> None:
    """Wait until a run has written its first checkpoint."""
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while not (output / "last").exists():
        for process in processes:
            if not process.runs():
                raise process.unexpected("ended before the first checkpoint")
        if time.monotonic() > deadline:
            raise processes[0].unexpected("has written no checkpoint")
        time.sleep(0.02)


def cut_the_link(host: Host, processes: Sequence[Process]) -> float:
    """Pull the cable out of `host` in the middle of a run; when that was."""
    host.set_link("down")
    for process in processes:
        if not process.runs():
            raise process.unexpected("ended before the link was cut; this machine needs more STEPS")
    return time.monotonic()


@dataclass(frozen=True)
class Ending:
    """How a process must end when the link is cut."""

    named: str
    """What its sentence names."""
    code: int
    """Exit code of its command."""


Start = Callable[[Path, Sequence[str]], list[Process]]
"""Starts a run in an output folder, with further flags."""


def lose_the_link(host: Host, start: Start, output: Path, timeout: int, endings: Sequence[Ending]) -> None:
    """Pull the cable out of `host` after a run's first checkpoint, see the run end, plug it in, and let the run finish.

    Args:
        host: see above.
        start: starts the run.
        output: its folder.
        timeout: seconds in which it must notice.
        endings: of each of its processes.
    """
    flags = ["--distributed_timeout", str(timeout)]
    processes = start(output, flags)
    wait_for_checkpoint(output, processes)
    cut = cut_the_link(host, processes)
    for process, ending in zip(processes, endings, strict=True):
        code = process.wait(cut + timeout + SECONDS_TO_LEAVE)
        told = [(at - cut, line) for at, line in process.lines if line.startswith("ragstone finetune: ")]
        if len(told) != 1 or ending.named not in told[0][1] or code != ending.code:
            raise process.unexpected(f"should have named {ending.named!r} and ended {ending.code}, but ended {code}")
        at, line = told[0]
        print(f"{at:5.1f} s after the cut: {line}\n{process.ended - cut:5.1f} s after the cut: exit code {code}")
        if at > timeout + SECONDS_TO_TELL:
            raise UnexpectedError(f"That is more than {SECONDS_TO_TELL} s beyond the time-out of {timeout} s.")
    kept = int(re.sub(r"\D", "", (output / "last").resolve().name))
    host.set_link("up")
    processes = start(output, [*flags, "--resume"])
    for process in processes:
        process.succeed()
    shown = [re.match(r"step (\d+)/", line) for _, line in processes[0].lines]
    steps = [int(found[1]) for found in shown if found is not None]
    if not steps or steps[0] <= kept:
        raise processes[0].unexpected(f"should have gone on from step {kept}")
    print(f"went on from the checkpoint of step {kept}: validated at steps {steps}", flush=True)


def show_workers(hosts: Sequence[Host]) -> None:
    """Print who searches on each host.

    Raises:
        UnexpectedError: not one worker on each.
    """
    for host in hosts:
        workers = host.workers()
        print(f"host {host.number} runs {', '.join(workers) or 'no worker'}", flush=True)
        if len(workers) != 1:
            raise UnexpectedError("It should run one retrieval worker.")


def outlive_the_link(hosts: Sequence[Host], start: Start, output: Path) -> None:
    """Pull the cable between hosts after a run's first checkpoint, and see the run come to its end without it."""
    processes = start(output, [])
    wait_for_checkpoint(output, processes)
    show_workers(hosts)
    cut = cut_the_link(hosts[1], processes)
    for process in processes:
        process.succeed()
        lost = "of 2 cannot be reached; others are asked until it is back."
        told = [(at - cut, line) for at, line in process.lines if line.endswith(lost)]
        if len(told) != 1:
            raise process.unexpected("should have said that it lost a worker")
        at, line = told[0]
        print(f"{at:5.1f} s after the cut: {line}\n{process.ended - cut:5.1f} s after the cut: it has come to its end")
    hosts[1].set_link("up")


def show_torchrun(hosts: tuple[Host, Host], expected: dict[int, float]) -> None:
    """A trainer on each host, of which the first searches for both; without and with a cut."""

    def start(output: Path, flags: Sequence[str]) -> list[Process]:
        processes = []
        for rank, host in enumerate(hosts):
            place = ["--nnodes", "2", "--nproc_per_node", "1", "--node_rank", str(rank)]
            meeting = ["--master_addr", hosts[0].address, "--master_port", str(TORCHRUN_PORT)]
            command = ["-m", "ragstone", *finetune(output, 2), *flags]
            processes.append(host.start("torchrun", *place, *meeting, *command))
        return processes

    print("\n== torchrun on two hosts, half of each batch on each")
    whole, output = Path("run-torchrun"), Path("run-torchrun-cut")
    for process in start(whole, []):
        process.succeed()
    show_losses("the two hosts", whole, expected)

    print("\n== The same, with the link cut after the first checkpoint")
    # torchrun ends with 1 whatever its process ended with.
    endings = [Ending("rank 1 ", 1), Ending(f"rank 0's host {hosts[0].address}", 1)]
    lose_the_link(hosts[1], start, output, TORCHRUN_TIMEOUT, endings)
    show_losses("the resumed run", output, losses(whole))


def show_ray(hosts: tuple[Host, Host], expected: dict[int, float]) -> None:
    """A trainer on the first host and a Ray worker on each; without and with cuts."""
    head = f"{hosts[0].address}:{RAY_PORT}"

    def start_with(division: str) -> Start:
        def start(output: Path, flags: Sequence[str]) -> list[Process]:
            ray = ["--distributed_retriever", "ray", "--ray_address", head, division, "2"]
            return [hosts[0].start("ragstone", *finetune(output, 4), *ray, *flags)]

        return start

    replicas, shards = start_with("--num_retrieval_workers"), start_with("--index_shards")

    print("\n== A Ray cluster of two hosts: one trains, a worker on each searches")
    roles = (["--head", "--port", str(RAY_PORT), "--include-dashboard", "false"], ["--address", head])
    for host, role in zip(hosts, roles, strict=True):
        size = ["--num-cpus", "2", "--object-store-memory", "80000000"]
        host.start("ray", "start", *role, "--node-ip-address", host.address, *size).succeed()
    whole = Path("run-ray")
    processes = replicas(whole, [])
    wait_for_checkpoint(whole, processes)
    show_workers(hosts)
    processes[0].succeed()
    show_losses("the run with Ray workers", whole, expected)

    print("\n== The same with half of the source for each worker, and the link cut after the first checkpoint")
    output = Path("run-ray-shards")
    lose_the_link(hosts[1], shards, output, RAY_TIMEOUT, [Ending("of 2 does not answer any more", 3)])
    show_losses("the resumed run", output, expected)

    print("\n== The whole source for each again, and the link cut after the first checkpoint")
    output = Path("run-ray-cut")
    outlive_the_link(hosts, replicas, output)
    show_losses("the run that lost a worker", output, expected)


def show(hosts: tuple[Host, Host]) -> None:
    """Do all that this program is for, in the working directory."""
    os.environ.update(RAY_TMPDIR=str(Path.cwd()), RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    # torch would otherwise complain in every process that the hosts' addresses have no names.
    os.environ.update(OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1", TORCH_CPP_LOG_LEVEL="ERROR")
    print("== A knowledge source and a checkpoint")
    make_materials()
    print("\n== One process with the whole batch, for comparison")
    output = Path("run-one")
    hosts[0].start("ragstone", *finetune(output, 4)).succeed()
    show_losses("one process", output)
    show_torchrun(hosts, losses(output))
    show_ray(hosts, losses(output))


def main() -> int:
    began = time.monotonic()
    try:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise InputError("Hosts are made as network namespaces, which takes root and the program ip (iproute2).")
        refuse_without_ray("scripts/two_hosts.py")
        # A closed terminal stops it as SIGTERM does, which cleans up.
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
        with (
            stop_like_interrupt(),
            # Ray's sockets need a short path.
            TemporaryDirectory(prefix="two-hosts-", dir="/tmp") as folder,
            chdir(folder),
            two_hosts() as hosts,
        ):
            show(hosts)
    except (InputError, UnexpectedError) as error:
        print(f"two_hosts: {error}", file=sys.stderr)
        return UNUSABLE_INPUT if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("two_hosts: interrupted", file=sys.stderr)
        return INTERRUPTED
    print(f"\nAll was as it should be. It took {time.monotonic() - began:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
