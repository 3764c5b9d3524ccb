"""The environment's values over those of the main file."""

import json
import re
import tomllib
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, Final, get_args, get_origin

from webhookd.config import positions
from webhookd.config.mistakes import Mistake, unknown
from webhookd.config.schema import SECTIONS

_VARIABLE: Final = re.compile(r"WEBHOOKD_([A-Z0-9]+)__([A-Z0-9_]+)")
_ALIASES: Final = {"WEBHOOKD_DSN": ("database", "dsn")}


def variable(section: str, key: str) -> str:
    """The environment variable of a key."""
    return f"WEBHOOKD_{section}__{key}".upper()


def variables_of(section: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that says something about this section."""
    aliases = {alias for alias, (of, _) in _ALIASES.items() if of == section}
    return {name: text for name, text in environ.items() if name in aliases or name.startswith(variable(section, ""))}


def overlay(
    document: Mapping[str, Any], environ: Mapping[str, str], named: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, dict[str, str]], list[Mistake]]:
    """The document with the environment's values over it; section -> key -> variable of those values; and mistakes.

    `named` are the variables that the files name, which hold something else, whatever they are called.
    """
    mistakes: list[Mistake] = []
    merged = {name: dict(table) if isinstance(table, Mapping) else table for name, table in document.items()}
    known = {
        variable(section, key): (section, key) for section, model in SECTIONS.items() for key in model.model_fields
    }
    known.update(_ALIASES)
    variables: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for name, text in sorted(environ.items()):
        if name not in known:
            if (parts := _VARIABLE.fullmatch(name)) and name not in named:
                mistakes.append(Mistake("", (), f"{name}: {_unknown(parts[1].lower(), parts[2].lower(), name, known)}"))
            continue
        section, key = known[name]
        if other := variables[section].get(key):
            mistakes.append(Mistake("", (), f"{other} and {name}: set only one of them"))
        if (section, key) == ("database", "dsn") and not text.strip():  # or another database than was meant is used
            mistakes.append(Mistake("", (), f"{name}: is empty; write postgresql://… into it, or unset it"))
            continue
        variables[section][key] = name
        table = merged.setdefault(section, {})
        if isinstance(table, dict):
            table[key] = _typed(SECTIONS[section].model_fields[key].annotation, text)
    # One way to name the database in the environment replaces the other way in the file.
    database = merged.get("database")
    for key, other in (("dsn", "dsn_file"), ("dsn_file", "dsn")):
        if isinstance(database, dict) and key in variables["database"] and other not in variables["database"]:
            database.pop(other, None)
    return merged, variables, mistakes


def _unknown(section: str, key: str, name: str, known: Collection[str]) -> str:
    later = unknown((section,), "", ()), unknown((section, key), "", ())
    return next((each for each in later if "not there yet" in each), unknown((name,), "setting", known))


def _typed(annotation: object, text: str) -> object:
    """A variable's text as the file would have given it; what does not parse is left for the validator."""
    if get_origin(annotation) is tuple:
        if text.lstrip().startswith("["):  # as in the file, for lists of tables
            with suppress(ValueError, RecursionError):  # TOMLDecodeError, and numbers of thousands of digits
                if positions.excess(f"list = {text}"):
                    return text
                return tomllib.loads(f"list = {text}")["list"]
        return [each.strip() for each in text.split(",") if each.strip()]
    if {bool, int, float}.intersection(get_args(annotation) or (annotation,)):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text
        return value if isinstance(value, (bool, int, float)) else text
    return text
