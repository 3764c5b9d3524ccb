"""Reads the configuration's files, and the environment over them, into a Config; tells every mistake at once."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from webhookd.config import Config, build, endpoints_directory
from webhookd.errors import ConfigError

_PLACES: Final = (Path("/etc/webhookd/webhookd.toml"), Path("config/webhookd.toml"))
_MAX_FILE: Final = 1024 * 1024
_MAX_SECRET: Final = 64 * 1024  # a short-lived database token may be some KiB


def find(path: Path | None, environ: Mapping[str, str]) -> Path:
    """The main file: the argument, else $WEBHOOKD_CONFIG, else the first usual place that has it. Or ConfigError."""
    if path is not None:
        return path
    if named := environ.get("WEBHOOKD_CONFIG"):
        return Path(named)
    for place in _PLACES:
        if place.is_file():
            return place
    looked = " and ".join(str(place) for place in _PLACES)
    raise ConfigError(
        [
            f"there is no configuration: $WEBHOOKD_CONFIG is not set, and {looked} do not exist; "
            'run "webhookd init", or name a file with --config'
        ]
    )


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """The configuration of this file, of the endpoints directory it names and of the environment.

    Raises ConfigError with every mistake in all of them. Relative paths start at the folder of the file that has them.
    """
    document = _parsed(path)  # without the main file nothing else can be judged
    mistakes: list[str] = []
    directory = path.parent / endpoints_directory(document, environ)
    documents: list[tuple[str, dict[str, Any]]] = []
    for file in _endpoint_files(directory, mistakes):
        try:
            documents.append((str(file), _parsed(file)))
        except ConfigError as error:
            mistakes += error.mistakes
    if not mistakes and not any(each.get("endpoint") for each in (document, *(tables for _, tables in documents))):
        missing = "has no endpoint" if directory.is_dir() else "does not exist, and there is no other endpoint"
        mistakes.append(f"{directory}: {missing}; write [endpoint.NAME] in a file such as {directory / 'orders.toml'}")
    try:
        config = build(document, documents, environ, _read_secret, str(path))
    except ConfigError as error:
        raise ConfigError([*mistakes, *error.mistakes]) from None
    if mistakes:
        raise ConfigError(mistakes)
    if not config.database.dsn_file:
        return config
    file = path.parent / config.database.dsn_file
    return replace(config, database=config.database.model_copy(update={"dsn_file": str(file)}))


def dsn(config: Config) -> str:
    """Where the database is, `dsn_file` read anew each time; "" leaves it to the PG* variables. Raises ConfigError."""
    if not (file := config.database.dsn_file):
        return config.database.dsn.get_secret_value()
    try:
        return _text(Path(file), _MAX_SECRET).strip()
    except ValueError as error:
        raise ConfigError([f"{file}: {error}"]) from None


def _endpoint_files(directory: Path, mistakes: list[str]) -> list[Path]:
    try:
        return sorted(file for file in directory.iterdir() if file.suffix == ".toml" and not file.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        mistakes.append(f"{directory}: cannot be read: {error.strerror}")
        return []


def _parsed(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(file, _MAX_FILE))
    except tomllib.TOMLDecodeError as error:
        # "(at line 3, column 5)" becomes "line 3"; the rest of the text never shows what stands in the file.
        text = str(error)
        line = re.search(r" \(at line (\d+), column \d+\)", text)
        place = f"line {line[1]}" if line else "the end"
        what = re.sub(r" \(at .*\)$", "", text)
        raise ConfigError([f"{file}: {place} is not TOML: {what}"]) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{file}: {error}"]) from None


def _read_secret(path: str, origin: str) -> str:
    """The text of a secret's file without the newline at its end; ValueError, which hides the path, says why not."""
    try:
        return _text(Path(origin).parent / path, _MAX_SECRET).rstrip("\r\n")
    except ValueError as error:
        raise ValueError(f"the file it names {error}; a relative path starts at {Path(origin).parent}") from None


def _text(file: Path, limit: int) -> str:
    """What stands in a file; ValueError, the end of a sentence that begins with the file, says why it cannot be had."""
    try:
        with file.open("rb") as opened:
            content = opened.read(limit + 1)
        if len(content) > limit:
            raise ValueError(f"is larger than {limit // 1024} KiB")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"is not UTF-8 in line {line}") from None
