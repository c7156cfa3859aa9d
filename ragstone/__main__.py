"""The command line. `python -m ragstone` is the same as `ragstone`."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Sequence

from ragstone import __version__
from ragstone.commands.table import SUMMARIES, load_command
from ragstone.errors import LOST, InputError, LostError, refused_by_system
from ragstone.interrupt import stop_like_interrupt
from ragstone.processes.refusal import say_once

UNUSABLE_INPUT = 2
INTERRUPTED = 130
OUTPUT_CLOSED = 141


def program() -> int:
    """What the shell starts: `main`, and a quick end."""
    code = main()
    # On its way out Python would look for garbage among all that torch and transformers have made. What has to be done
    # at the end is registered for it (atexit), and memory goes with the process.
    gc.freeze()
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (without the program's name) and return the exit code.

    0 is done, 2 is unusable input, 3 is that a process or a host that the work needs has gone. As shells count, 130 is
    interrupted from the keyboard or by SIGTERM, and 141 that whoever read the output has gone.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still unwritten must go somewhere, or Python complains about it on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED
    return code


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"ragstone {__version__}")
        return 0
    name = words[0].replace("_", "-")
    if name not in SUMMARIES:
        return _refuse("ragstone", f"There is no command {words[0]!r}; the commands are {', '.join(SUMMARIES)}.")
    program = f"ragstone {words[0]}"
    try:
        return _run(name, program, words[1:])
    except InputError as error:
        return _refuse(program, str(error))
    except LostError as error:
        # Said at once and by each process, for what it has lost may be the way to the others.
        _say(program, str(error))
        return LOST
    except KeyboardInterrupt:
        _say(program, "interrupted")
        return INTERRUPTED
    except OSError as error:
        sentence = refused_by_system(error)
        if sentence is None:
            raise
        return _refuse(program, sentence)


def _run(name: str, program: str, arguments: list[str]) -> int:
    from ragstone.settings import parse_settings

    command = load_command(name)
    try:
        settings = parse_settings(command.settings_class, arguments, program, command.purpose)
    except SystemExit as stop:
        return int(stop.code or 0)
    _quiet_libraries()
    # Importing torch and transformers makes some 400,000 objects that stay. By default, all are looked through for
    # garbage time and again as each 700 come. It stays so for the whole command, which makes little garbage later.
    gc.set_threshold(50_000)
    with stop_like_interrupt():
        command.show(command.run(settings))
    return 0


def _quiet_libraries() -> None:
    """Libraries say what they do on every load; a command says what it does itself.

    They read this when they are imported, which the command does once it has checked what needs no library.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # peft imports it where it is installed, whether a generator is kept in few bits or not.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _overview() -> str:
    width = max(map(len, SUMMARIES))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in SUMMARIES.items()]
    return "\n".join(
        [
            "usage: ragstone COMMAND [flags]",
            "",
            "Retrieval-augmented generation, trained, evaluated and asked end to end.",
            "",
            "commands:",
            *lines,
            "",
            "ragstone COMMAND --help lists a command's flags; --config FILE.yaml gives defaults for them.",
        ]
    )


def _refuse(program: str, message: str) -> int:
    say_once(message, lambda: _say(program, message))
    return UNUSABLE_INPUT


def _say(program: str, message: str) -> None:
    print(f"{program}: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(program())
