"""The flags of a settings class as a user spells them: what they may hold, and errors that name the flag.

A flag may be written with underscores or dashes, its value behind a space or an equals sign. A boolean is --flag,
--no_flag, or --flag True and --flag False. Where a flag is repeated, the last one counts.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ragstone.errors import InputError

NOTHING = "None"
"""What a user writes to take back an optional value that a settings file gives."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """One setting on the command line."""

    name: str
    kind: Any
    """int, float, str, Path, bool or a Literal: what one value is."""
    many: bool
    """Takes one value or more."""
    optional: bool
    """None is a value."""
    required: bool
    positional: bool = False
    """A value without a flag before it is this one's."""

    @property
    def choices(self) -> tuple[str, ...]:
        """The only values allowed; empty where there is no such list."""
        return tuple(map(str, get_args(self.kind))) if get_origin(self.kind) is Literal else ()

    @property
    def metavar(self) -> str | None:
        """What --help shows behind the flag; None for a boolean, which needs nothing there."""
        if self.kind is bool and not self.optional:
            return None
        if self.choices or self.kind is bool:
            return "{" + ",".join(self.choices or ("True", "False")) + "}"
        name = {int: "INT", float: "FLOAT", Path: "PATH"}.get(self.kind, "TEXT")
        return f"{name} ..." if self.many else name

    def words(self, values: Sequence[str]) -> list[str]:
        """The flag with `values`, in the one spelling that the parser is given."""
        if self.many:
            return [f"--{self.name}", *values]
        (value,) = values
        if self.kind is bool and not self.optional:
            return [f"--{self.name}" if value == "True" else f"--no_{self.name}"]
        return [f"--{self.name}={value}"]


def flags_of(settings_class: type[Any]) -> dict[str, Flag]:
    """The flags of a settings dataclass by name."""
    hints = get_type_hints(settings_class)
    return {field.name: _flag(field, hints[field.name]) for field in dataclasses.fields(settings_class)}


def read_flags(words: Sequence[str], flags: dict[str, Flag]) -> dict[str, list[str]]:
    """The values that command line `words` give to each flag.

    Raises:
        InputError: an unknown flag, a value without a flag, too few or too many values, or one of the wrong type.
    """
    found: dict[str, list[str]] = {}
    positional = next((flag.name for flag in flags.values() if flag.positional), None)
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not _is_flag(word) and positional is not None and positional not in found:
            found[positional] = [word]
            continue
        if not _is_flag(word):
            raise InputError(f"{word!r} belongs to no flag; put the name of one before it, see --help.")
        spelt, equals, value = word.partition("=")
        values = [value] if equals else []
        while not equals and rest and not _is_flag(rest[0]):
            values.append(rest.pop(0))
        flag, negated = _find(spelt, flags)
        found[flag.name] = check_values(flag, _negate(spelt, values) if negated else values)
    return found


def check_values(flag: Flag, values: list[str]) -> list[str]:
    """`values` as the parser takes them.

    Raises:
        InputError: too few or too many of them, or one of the wrong type.
    """
    if flag.kind is bool and not values:
        return ["True"]
    if not values:
        raise InputError(f"--{flag.name} needs a value: {_expected(flag)}.")
    if len(values) > 1 and not flag.many:
        given = " ".join(values)
        raise InputError(f"--{flag.name} takes one value, not {len(values)} ({given}); put one with spaces in quotes.")
    return [_check_value(flag, value) for value in values]


def refuse_missing(given: dict[str, list[str]], flags: dict[str, Flag]) -> None:
    """Refuse a command line that lacks required flags.

    Raises:
        InputError: names them.
    """
    missing = [f"--{flag.name}" for flag in flags.values() if flag.required and flag.name not in given]
    if missing:
        raise InputError(f"{' and '.join(missing)} must be given; --help lists all flags.")


def _flag(field: dataclasses.Field[Any], hint: Any) -> Flag:
    kinds = list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]
    optional = type(None) in kinds
    kind = next(kind for kind in kinds if kind is not type(None))
    many = get_origin(kind) in (list, tuple)
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    positional = bool(field.metadata.get("positional"))
    return Flag(field.name, get_args(kind)[0] if many else kind, many, optional, required, positional)


def _is_flag(word: str) -> bool:
    """A dash begins a flag, unless a number follows it: --x 1e-5 and --x -1 are a flag and its value."""
    if not word.startswith("-") or word == "-":
        return False
    try:
        float(word)
    except ValueError:
        return True
    return False


def _find(spelt: str, flags: dict[str, Flag]) -> tuple[Flag, bool]:
    """The flag that `spelt` names, and whether it is the negation of it."""
    name = spelt.removeprefix("--").replace("-", "_")
    if spelt.startswith("--") and name in flags:
        return flags[name], False
    positive = name.removeprefix("no_")
    if spelt.startswith("--") and positive != name and positive in flags and flags[positive].kind is bool:
        return flags[positive], True
    close = difflib.get_close_matches(name, flags, n=1)
    hint = f"did you mean --{close[0]}?" if close else "see --help for all flags."
    raise InputError(f"There is no flag {spelt}; {hint}")


def _negate(spelt: str, values: list[str]) -> list[str]:
    if values:
        raise InputError(f"{spelt} takes no value, but {' '.join(values)} follows it; leave that out.")
    return ["False"]


def _check_value(flag: Flag, value: str) -> str:
    if flag.optional and value == NOTHING:
        return value
    if flag.kind is bool and value.lower() in ("true", "false"):
        return value.capitalize()
    if flag.kind is bool or (flag.choices and value not in flag.choices):
        raise InputError(f"--{flag.name} is {value!r}, but must be {_expected(flag)}.")
    if flag.kind in (int, float):
        try:
            flag.kind(value)
        except ValueError:
            raise InputError(f"--{flag.name} is {value!r}, but must be {_expected(flag)}.") from None
    return value


def _expected(flag: Flag) -> str:
    if flag.choices:
        return "one of " + ", ".join(flag.choices)
    return {int: "a whole number", float: "a number", bool: "True or False", Path: "a path"}.get(flag.kind, "a text")
