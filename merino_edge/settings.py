"""Your settings: where they lie by the XDG rules, and what `config.toml` may say.

    device = "pi4"          # what commands mean without --device
    runs = "~/runs"         # the folder of all runs
    data = "~/texts"        # real text for training, evaluation and tests

    [search]                # one table a command, its keys the long options without their dashes
    latency = "50ms"

A flag wins over an environment variable, that over this file, the file over the default. Here the file is read and its
first level checked; the tables are checked by the command line, which knows the options.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merino_edge.errors import InvalidFileError, did_you_mean
from merino_edge.files import read_text

# Key of the first level -> the environment variable that wins over it.
VARIABLES = {"device": "MERINO_EDGE_DEVICE", "runs": "MERINO_EDGE_RUNS", "data": "MERINO_EDGE_DATA"}


@dataclass(frozen=True)
class Settings:
    """What `config.toml` says.

    Attributes:
        path: The file, which need not exist.
        values: The first level: keys of `VARIABLES`; folders with `~` resolved.
        tables: One a command, unchecked.
    """

    path: Path
    values: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def data_home() -> Path:
    """Return `$XDG_DATA_HOME/merino-edge`, by default under ~/.local/share."""
    return _xdg("XDG_DATA_HOME", ".local/share") / "merino-edge"


def cache_home() -> Path:
    """Return `$XDG_CACHE_HOME/merino-edge`, by default under ~/.cache: what can be had again."""
    return _xdg("XDG_CACHE_HOME", ".cache") / "merino-edge"


def config_file() -> Path:
    """Return the path of the configuration file, which need not exist."""
    return _xdg("XDG_CONFIG_HOME", ".config") / "merino-edge" / "config.toml"


def _xdg(variable: str, default: str) -> Path:
    value = os.environ.get(variable, "")
    return Path(value) if os.path.isabs(value) else Path.home() / default  # the standard says: ignore relative paths


def read_settings() -> Settings:
    """Read the configuration file; where there is none, nothing is set.

    Raises:
        InvalidFileError: it is no TOML, or its first level holds an unknown key or a value that cannot be.
    """
    path = config_file()
    if not path.exists():
        return Settings(path)
    edit = f"edit {path}"
    try:
        document = tomllib.loads(read_text(path, "configuration"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidFileError(f"configuration {path} is not valid TOML: {error}", hint=edit) from error
    tables = {key: value for key, value in document.items() if isinstance(value, dict) and key not in VARIABLES}
    values: dict[str, str] = {}
    for key, value in document.items():
        if key in tables:
            continue
        if key not in VARIABLES:
            raise InvalidFileError(f"{path}: unknown key '{key}'{did_you_mean(key, VARIABLES)}", hint=edit)
        if not isinstance(value, str) or not value:
            kind = "name" if key == "device" else "folder"
            raise InvalidFileError(f"{path}: {key} must be a {kind} in quotes, not {value!r}", hint=edit)
        values[key] = value if key == "device" else str(Path(value).expanduser())
    return Settings(path, values, tables)
