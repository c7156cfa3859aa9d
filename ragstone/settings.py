"""Settings: a frozen dataclass per command, filled from a YAML file and flags, saved as YAML beside the results.

Knows nothing about any command: it takes the dataclass that describes one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

from ragstone.errors import InputError
from ragstone.flags import NOTHING, Flag, check_values, flags_of, read_flags, refuse_missing

S = TypeVar("S")


def parse_settings(settings_class: type[S], arguments: Sequence[str], program: str, description: str) -> S:
    """Fill `settings_class` from command line `arguments`.

    `--config FILE.yaml` gives defaults for the other flags. How flags may be spelt stands in ragstone.flags. Prints
    and exits with code 0 after `--help`.

    Raises:
        InputError: a flag that there is not, one with a wrong value, or a required one missing; the YAML file is
            missing, malformed or has such a flag; or the class's own checks fail.
    """
    import tyro

    flags = flags_of(settings_class)
    words = list(arguments)
    if "-h" not in words and "--help" not in words:
        remaining, config_path = _take_config_flag(words)
        given = {} if config_path is None else _read_settings_file(flags, config_path)
        given |= read_flags(remaining, flags)
        refuse_missing(given, flags)
        words = [word for name, values in given.items() for word in flags[name].words(values)]
    else:
        settings_class = _as_shown(settings_class, flags)
    return tyro.cli(
        settings_class,
        args=words,
        prog=program,
        description=f"{description}\n--config FILE.yaml gives defaults that flags override.",
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def save_settings(settings: Any, path: Path) -> None:
    """Write the resolved settings as YAML that `--config` reads back."""
    import yaml

    values = plain_settings(settings)
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def plain_settings(settings: Any) -> dict[str, Any]:
    """The settings as YAML can hold them: paths as text, tuples as lists."""
    return {field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}


def _as_shown(settings_class: type[S], flags: dict[str, Flag]) -> type[S]:
    """`settings_class` as --help shows it: what a flag takes in plain words, and no default where None is one."""
    import tyro

    def default(value: str) -> str:
        return "" if value in ("", NOTHING) else f"(default: {value})"

    hints = {
        name: Annotated[hint, tyro.conf.arg(metavar=flags[name].metavar, help_behavior_hint=default)]
        for name, hint in get_type_hints(settings_class).items()
    }
    return type(settings_class.__name__, (settings_class,), {"__annotations__": hints})


def _take_config_flag(arguments: list[str]) -> tuple[list[str], Path | None]:
    """The arguments without --config, and the path behind the last one."""
    others, path, rest = [], None, list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--config":
            if not rest:
                raise InputError("--config needs the path of a YAML file behind it.")
            path = Path(rest.pop(0))
        elif argument.startswith("--config="):
            path = Path(argument.removeprefix("--config="))
        else:
            others.append(argument)
    return others, path


def _read_settings_file(flags: dict[str, Flag], path: Path) -> dict[str, list[str]]:
    """The values that a YAML file gives to each flag; an empty entry gives none."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"The settings file {path} cannot be read ({error}); give --config a YAML file in UTF-8."
        ) from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"The settings file {path} is not YAML ({reason}); write lines of the form 'name: value'."
        ) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"The settings file {path} must hold lines of the form 'name: value'.")
    given: dict[str, list[str]] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in flags:
            raise InputError(f"The settings file {path} names {key!r}, which this command does not know; see --help.")
        if value is not None:
            texts = [str(item) for item in value] if isinstance(value, list) else [str(value)]
            try:
                given[name] = check_values(flags[name], texts)
            except InputError as error:
                raise InputError(f"The settings file {path}: {error}") from error
    return given


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        # An empty list is no value: that is how the file says that a flag is not given.
        return [_plain(item) for item in value] or None
    return value
