"""Options that were not given come from the environment, then from `config.toml`: read and checked here.

The option `--file-size` of `search` is `file-size` in the table `[search]` of the file, and in the environment
`MERINO_EDGE_SEARCH_FILE_SIZE`. What says which thing a command works on, or what it does, is no setting.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import click

from merino_edge.errors import InvalidFileError, MerinoEdgeError, UsageError, did_you_mean
from merino_edge.settings import VARIABLES, Settings, read_settings

PREFIX = "MERINO_EDGE_"
NO_SETTINGS = frozenset(
    {
        *("json", "help", "device", "run", "model", "from", "compare", "baseline", "suite", "save"),
        *("bundle", "sha256", "release", "all", "list", "rollback", "dry-run", "estimate"),
        *("profile.host", "deploy.keep"),
    }
)

Find = Callable[[str], click.Command | None]
"""Returns a command by its name."""


@dataclass(frozen=True)
class Setting:
    """A value and where it comes from.

    Attributes:
        name: `device`, or `search.latency`.
        value: As it was written; None where nothing is set and there is no default.
        source: What it comes from.
        where: The variable's or the file's name; None for a default.
    """

    name: str
    value: Any
    source: Literal["environment", "file", "default"]
    where: str | None


def options_of(command: click.Command) -> dict[str, click.Option]:
    """Return the options of a command that may be set, by their long names without dashes."""
    found = {}
    for parameter in command.params:
        names = [name[2:] for name in parameter.opts if name.startswith("--")]
        if not names or not isinstance(parameter, click.Option) or parameter.nargs != 1:
            continue
        if names[0] not in NO_SETTINGS and f"{command.name}.{names[0]}" not in NO_SETTINGS:
            found[names[0]] = parameter
    return found


def variable_of(command: str, option: str) -> str:
    """Return the environment variable of an option."""
    return f"{PREFIX}{command}_{option}".upper().replace("-", "_")


def apply_settings(names: list[str], find: Find) -> dict[str, dict[str, Any]]:
    """Check the whole file and the environment; put the file's folders where an unset variable would be looked for.

    Args:
        names: Of all commands.
        find: Returns one of them.

    Returns:
        click's `default_map`: for each command the values of its parameters.

    Raises:
        InvalidFileError: the file holds an unknown table or key, or a value that its option refuses.
        UsageError: a variable holds a value that its option refuses.
    """
    settings, defaults = read_settings(), {}
    check_tables(settings, names, find)
    for name in names:
        prefix = variable_of(name, "")
        if name in settings.tables or any(variable.startswith(prefix) for variable in os.environ):
            command = find(name)
            assert command is not None
            defaults[name] = {
                str(options_of(command)[s.name.partition(".")[2]].name): s.value
                for s in command_settings(name, command, settings)
                if s.source != "default"
            }
    for key in ("runs", "data"):  # `device` is chosen where a run's own device is known
        if key in settings.values and not os.environ.get(VARIABLES[key]):
            os.environ[VARIABLES[key]] = settings.values[key]
    return defaults


def check_tables(settings: Settings, names: list[str], find: Find) -> None:
    """Refuse tables, keys and values of the file that are none."""
    for name, table in settings.tables.items():
        command = find(name) if name in names else None
        known = options_of(command) if command is not None else {}
        if not known:
            text = f"{settings.path}: unknown table [{name}]{did_you_mean(name, names)}"
            raise InvalidFileError(
                text if command is None else f"{settings.path}: [{name}] has no settings", hint=f"edit {settings.path}"
            )
        edit = f"edit {settings.path}; what may stand there: merino-edge {name} --help"
        for key, value in table.items():
            where = f"{settings.path}: [{name}] {key}"
            if key not in known:
                raise InvalidFileError(
                    f"{settings.path}: unknown key '{key}' in [{name}]{did_you_mean(key, known)}", hint=edit
                )
            assert command is not None
            try:
                _convert(command, known[key], _normal(known[key], value))
            except (click.ClickException, MerinoEdgeError, ValueError) as error:
                raise InvalidFileError(f"{where}: {_words(error)}", hint=_hint(error, edit)) from error


def command_settings(name: str, command: click.Command, settings: Settings) -> Iterator[Setting]:
    """Yield every setting of a command: from the environment, else the file, else the default."""
    for key, option in options_of(command).items():
        variable = variable_of(name, key)
        text = os.environ.get(variable)
        if text:
            value = text.split() if option.multiple else text
            try:
                _convert(command, option, value)
            except (click.ClickException, MerinoEdgeError) as error:
                raise UsageError(
                    f"${variable}: {_words(error)}", hint=_hint(error, f"change it, or: unset {variable}")
                ) from error
            yield Setting(f"{name}.{key}", value, "environment", f"${variable}")
        elif key in settings.tables.get(name, {}):
            value = _normal(option, settings.tables[name][key])
            yield Setting(f"{name}.{key}", value, "file", str(settings.path))
        else:
            default = option.get_default(click.Context(command), call=True)
            plain = default if isinstance(default, str | int | float | bool | None) else None
            yield Setting(f"{name}.{key}", plain, "default", None)


def first_level(settings: Settings) -> Iterator[Setting]:
    """Yield `device`, `runs` and `data`."""
    defaults: Mapping[str, str | None] = {"device": "local", "runs": "runs", "data": None}
    for key, variable in VARIABLES.items():
        if os.environ.get(variable) and os.environ[variable] != settings.values.get(key):
            yield Setting(key, os.environ[variable], "environment", f"${variable}")
        elif key in settings.values:
            yield Setting(key, settings.values[key], "file", str(settings.path))
        else:
            yield Setting(key, defaults[key], "default", None)


def _normal(option: click.Option, value: Any) -> Any:
    """Return a TOML value as click takes it from a command line; ValueError where it is of another kind."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise ValueError(f"must be true or false, not {value!r}")
        return value
    if isinstance(value, list) and option.multiple:
        return [_normal_one(item) for item in value]
    return [_normal_one(value)] if option.multiple else _normal_one(value)


def _normal_one(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"must be a text in quotes or a number, not {value!r}")
    return str(value)


def _convert(command: click.Command, option: click.Option, value: Any) -> Any:
    return option.type_cast_value(click.Context(command), value)


def _words(error: Exception) -> str:
    if isinstance(error, MerinoEdgeError):
        return error.message.partition(": ")[2] or error.message
    return error.message if isinstance(error, click.ClickException) else str(error)


def _hint(error: Exception, otherwise: str) -> str:
    own = error.hint if isinstance(error, MerinoEdgeError) else None
    return f"{own}; {otherwise}" if own else otherwise
