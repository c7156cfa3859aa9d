"""The errors that are told in a sentence: what a user gave cannot be used, or what a run needs has gone."""

LOST = 3
"""The exit code of a command that has lost what it needs."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one sentence that names what was given (file, line, value) and what to do about it. The command
    line prints it without a traceback and exits with code 2; whoever calls Ragstone from Python may catch it.
    """


class LostError(Exception):
    """A process, a worker or a host that the run needs has gone, or does not answer in time.

    The message names it and says how to go on. The command line prints it without a traceback and exits with code LOST.
    """


def one_line(error: BaseException, most: int = 300) -> str:
    """What a library's error says, in at most so many characters of one line, without a full stop at the end."""
    return " ".join(str(error).split())[:most].rstrip(".")


def refused_by_system(error: OSError) -> str | None:
    """The sentence for what the system refuses with a file (permission, no space left), which is no fault of the
    program's; None where `error` is about no file."""
    return None if error.filename is None or error.strerror is None else f"{error.filename}: {error.strerror}."
