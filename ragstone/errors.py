"""The one error that a user's input can cause."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one sentence that names what was given (file, line, value) and what to do about it. The command
    line prints it without a traceback and exits with code 2; whoever calls Ragstone from Python may catch it.
    """
