"""Reads the configuration's files, and the environment over them, into a Config; tells every mistake at once."""

import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import SecretStr

from webhookd.config import ownership, positions
from webhookd.config.config import Config, build, endpoints_directory
from webhookd.config.config import section as section_of
from webhookd.config.schema import Database, Shape
from webhookd.errors import ConfigError
from webhookd.message.signing import EXAMPLE
from webhookd.store.dsn import Located

S = TypeVar("S", bound=Shape)

_PLACES: Final = (Path("/etc/webhookd/webhookd.toml"), Path("config/webhookd.toml"))
_MAX_FILE: Final = 8 * 1024 * 1024
_LONG_NUMBER: Final = re.compile(r"[0-9_]{4000}")
_NAME_OF_SECRET: Final = re.compile(r"[\w-]{1,64}\.(secret|key|pem|crt|cert|token|password|txt|json)")
_PASSWORD: Final = re.compile(r"//[^/]*:[^/]*@|password")  # in a DSN
_MAX_SECRET: Final = 64 * 1024  # a short-lived database token may be some KiB


def find(path: Path | None, environ: Mapping[str, str]) -> Path:
    """The main file: the argument, else $WEBHOOKD_CONFIG, else the first usual place that has it. Or ConfigError."""
    named = path or environ.get("WEBHOOKD_CONFIG")
    if named:
        return _no_folder(Path(named))
    for place in _PLACES:
        if _there(place):
            return place
    looked = " and ".join(str(place) for place in _PLACES)
    raise ConfigError(
        [
            f"there is no configuration: $WEBHOOKD_CONFIG is not set, and {looked} do not exist; "
            'run "webhookd init", or name a file with --config'
        ]
    )


def _no_folder(path: Path) -> Path:
    inside = path / _PLACES[0].name
    if os.path.isfile(inside):
        raise ConfigError([f"{path}: is a folder; name the file in it, {inside}"])
    return path


def load(
    path: Path, environ: Mapping[str, str], *, may_be_empty: bool = False, exposed: list[Path] | None = None
) -> Config:
    """The configuration of this file, of the endpoints directory it names and of the environment.

    Raises ConfigError with every mistake in all of them. Relative paths start at the folder of the file that has them.
    Without any endpoint it is a mistake, too, unless it `may_be_empty` or serves an API; `empty` says what is missing.
    `exposed` gets the files with secrets that every user of this machine can read.
    """
    texts: dict[str, str] = {}
    document = _parsed(path, texts)  # without the main file nothing else can be judged
    mistakes: list[str] = []
    directory = path.parent / endpoints_directory(document, environ)
    documents: list[tuple[str, dict[str, Any]]] = []
    for file in _endpoint_files(directory, mistakes):
        try:
            documents.append((str(file), _parsed(file, texts)))
        except ConfigError as error:
            mistakes += error.mistakes
    empty = ""
    if not mistakes and not any(each.get("endpoint") for each in (document, *(tables for _, tables in documents))):
        missing = "has no endpoint" if directory.is_dir() else "does not exist, and there is no other endpoint"
        empty = f"{directory}: {missing}; write [endpoint.NAME] in a file such as {directory / 'orders.toml'}"
    try:
        secrets: dict[Path, str] = {}
        config = build(
            document,
            documents,
            environ,
            lambda name, origin: _read_secret(name, origin, secrets),
            str(path),
            lambda file: positions.lines(texts[file]),
        )
    except ConfigError as error:
        raise ConfigError([*mistakes, *error.mistakes]) from None
    if empty and not may_be_empty and not config.api.listen:  # by which tenants make their own
        mistakes.append(empty)
    if mistakes:
        raise ConfigError(mistakes)
    config = replace(config, database=_beside(path, config.database), empty=empty)
    if exposed is not None:
        private = [file for file, text in secrets.items() if "-----BEGIN" not in text or "PRIVATE KEY" in text]
        private += [Path(file) for file, tables in ((str(path), document), *documents) if _has_secret(tables)]
        private += [Path(config.database.dsn_file)] if config.database.dsn_file else []
        exposed += [file for file in dict.fromkeys(private) if file.exists() and ownership.is_open(file)]
    return config


def _has_secret(found: Any, key: str = "") -> bool:
    """True when a document has a secret itself, and not only where to find it."""
    if isinstance(found, dict):
        return any(_has_secret(each, name) for name, each in found.items())
    if isinstance(found, list):
        return any(_has_secret(each, key) for each in found)
    if key in ("dsn", "direct_dsn"):
        return bool(_PASSWORD.search(str(found)))
    return isinstance(found, str) and key in ("secret", "secrets", "client_secret") and found != EXAMPLE


def section(path: Path, environ: Mapping[str, str], model: type[S]) -> S:
    """What the main file and the environment say in one section, whatever is wrong elsewhere, also in other files.

    Raises ConfigError with the mistakes of this section, or when the file is no TOML.
    """
    texts: dict[str, str] = {}
    document = _parsed(path, texts)
    made = section_of(
        model,
        document,
        environ,
        lambda name, origin: _read_secret(name, origin, {}),
        str(path),
        lambda file: positions.lines(texts[file]),
    )
    return _beside(path, made)


def directories(path: Path, environ: Mapping[str, str]) -> tuple[Path, Path]:
    """Where the files are that make up this configuration: the main one's folder, and that of the endpoints."""
    return path.parent, path.parent / endpoints_directory(_parsed(path, {}), environ)


def dsn(database: Database, main: Path) -> str:
    """Where the database is, `dsn_file` read anew each time; "" leaves it to the PG* variables. Raises ConfigError."""
    if not (file := database.dsn_file):
        return _located(database.dsn, "dsn", main)
    try:
        if not (text := _text(Path(file), _MAX_SECRET).strip()):
            raise ValueError("is empty; write the DSN into it, postgresql://…")
        return Located(text, file)
    except ValueError as error:
        raise ConfigError([f"{file}: {error}"]) from None


def direct_dsn(database: Database, main: Path) -> str:
    """Where LISTEN finds the database, or "" where that is no other way."""
    return _located(database.direct_dsn, "direct_dsn", main)


def _located(given: SecretStr, key: str, main: Path) -> str:
    text = given.get_secret_value()
    return text and Located(text, f"[database] {key} of {main}")


def _beside(path: Path, section: S) -> S:
    """The section of this main file; where it is that of the database, with the whole path of dsn_file."""
    if not isinstance(section, Database) or not section.dsn_file:
        return section
    return section.model_copy(update={"dsn_file": str(path.parent / section.dsn_file)})


def _there(place: Path) -> bool:
    try:
        return place.is_file()
    except OSError:
        return True  # whoever reads it is told why that cannot be


def _endpoint_files(directory: Path, mistakes: list[str]) -> Iterator[Path]:
    """Each *.toml in it. Links may lead around in it, as those of Kubernetes volumes do, but not out of it."""
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".toml") and not name.startswith("."))
        real = directory.resolve()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        mistakes.append(f"{directory}: {_refused(error)}")
        return
    for file in (directory / name for name in names):
        if file.is_symlink() and not Path(os.path.realpath(file)).is_relative_to(real):
            mistakes.append(f"{file}: is a link out of {directory}; put the file itself there")
        else:
            yield file


def _parsed(file: Path, texts: dict[str, str]) -> dict[str, Any]:
    """The document in a file, whose text is kept for the lines of its mistakes."""
    text = ""
    try:
        content = _content(file, _MAX_FILE)
        text = texts[str(file)] = content.decode("utf-8-sig")
        if positions.may_be_endless(text) and (excess := positions.excess(text)):
            raise ConfigError([f"{file}:{excess[0]}: {excess[1]}"])
        return tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{file}:{line}: is not UTF-8"]) from None
    except tomllib.TOMLDecodeError as error:
        # "(at line 3, column 5)" goes before the sentence; the rest never shows what stands in the file.
        what, _, place = str(error).rpartition(" (at ")
        found = re.match(r"line (\d+)", place)
        last = text.rstrip("\n").count("\n") + 1
        raise ConfigError([f"{file}:{found[1] if found else last}: is not TOML: {what}"]) from None
    except RecursionError:
        line, what = positions.excess(text) or (1, "has more in each other than can be read")
        raise ConfigError([f"{file}:{line}: {what}"]) from None
    except ValueError as error:
        raise ConfigError([f"{file}{_number_mistake(text) or f': {error}'}"]) from None


def _number_mistake(text: str) -> str | None:
    """What is wrong in a text with a number that Python refuses to read for its length, from the line on."""
    number = _LONG_NUMBER.search(text)
    return f":{text.count(chr(10), 0, number.start()) + 1}: has a number of thousands of digits" if number else None


def _read_secret(path: str, origin: str, found: dict[Path, str]) -> str:
    """The text of a secret's file, also into `found`; ValueError says why not.

    It shows the path only where something is, or where the name is one for a file: what stands in its place may be a
    secret.
    """
    folder = Path(origin).parent
    file = folder / path
    try:
        found[file] = _text(file, _MAX_SECRET)
        return Located(found[file], str(file))
    except ValueError as error:
        if "\0" not in path and (os.path.lexists(file) or _NAME_OF_SECRET.fullmatch(file.name)):
            raise ValueError(f"{file} {error}") from None
        start = "" if os.path.isabs(path) else f"; a relative path starts at {folder}"
        raise ValueError(f"the file it names {error}{start}") from None


def _text(file: Path, limit: int) -> str:
    """What stands in a file; ValueError, the end of a sentence that begins with the file, says why it cannot be had."""
    try:
        return _content(file, limit).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None


def _content(file: Path, limit: int) -> bytes:
    if "\0" in str(file):
        raise ValueError("cannot be read: its path has a NUL character")
    try:
        # Opening a pipe without a writer would block.
        with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("is no regular file")
            if mistake := ownership.mistake(file, status):
                raise ValueError(mistake)
            content = opened.read(limit + 1)
    except OSError as error:
        raise ValueError(_refused(error)) from None
    if len(content) > limit:
        raise ValueError(f"is larger than {limit // 1024} KiB")
    return content


def _refused(error: OSError) -> str:
    """The rest of a sentence about a file or directory that the system does not give. Does not show its name."""
    mend = '; let the group of webhookd read it: "chgrp webhookd FILE; chmod g+rX FILE"'
    return f"cannot be read: {error.strerror}{mend if isinstance(error, PermissionError) else ''}"
