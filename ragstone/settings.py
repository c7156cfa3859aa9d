"""Settings: a frozen dataclass per command, filled from a YAML file and flags, saved as YAML beside the results.

Knows nothing about any command: it takes the dataclass that describes one.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from ragstone.errors import InputError

S = TypeVar("S")


def parse_settings(settings_class: type[S], arguments: Sequence[str], program: str, description: str) -> S:
    """Fill `settings_class` from command line `arguments`.

    `--config FILE.yaml` gives defaults for the other flags. Flags may be spelt with underscores or dashes. Prints and
    exits with code 2 on unknown flags and wrong types, with 0 after `--help`.

    Raises:
        InputError: the YAML file is missing, malformed or names an unknown setting, or the class's own checks fail.
    """
    import tyro

    remaining, config_path = _take_config_flag(list(arguments))
    defaults = [] if config_path is None else _flags_of_file(settings_class, config_path)
    return tyro.cli(
        settings_class,
        args=[*defaults, *remaining],
        prog=program,
        description=f"{description}\n\n--config FILE.yaml gives defaults that flags override.",
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def plain_settings(settings: Any) -> dict[str, Any]:
    """The settings as YAML can hold them: paths as text, tuples as lists."""
    return {field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}


def save_settings(settings: Any, path: Path) -> None:
    """Write the resolved settings as YAML that `--config` reads back."""
    import yaml

    values = plain_settings(settings)
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _take_config_flag(arguments: list[str]) -> tuple[list[str], Path | None]:
    for i, argument in enumerate(arguments):
        if argument == "--config":
            if i + 1 == len(arguments):
                raise InputError("--config needs the path of a YAML file behind it.")
            return arguments[:i] + arguments[i + 2 :], Path(arguments[i + 1])
        if argument.startswith("--config="):
            return arguments[:i] + arguments[i + 1 :], Path(argument.removeprefix("--config="))
    return arguments, None


def _flags_of_file(settings_class: type[Any], path: Path) -> list[str]:
    """The YAML file's entries as flags, so that one parser checks both."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The settings file {path} cannot be read ({error}).") from error
    except yaml.YAMLError as error:
        raise InputError(f"The settings file {path} is not YAML: {' '.join(str(error).split())}.") from error
    if values is None:
        return []
    if not isinstance(values, dict):
        raise InputError(f"The settings file {path} must hold lines of the form 'name: value'.")
    known = {field.name for field in dataclasses.fields(settings_class)}
    flags: list[str] = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise InputError(f"The settings file {path} names {key!r}, which this command does not know; see --help.")
        if value is None:
            continue
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no_{name}")
        elif isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        else:
            flags.append(f"--{name}={value}")
    return flags


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def command_line() -> str:
    """The command as it was typed, for records of a run."""
    return " ".join(["ragstone", *sys.argv[1:]])
