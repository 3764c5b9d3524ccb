"""The SQL that comes with the package: migrations, grants, and the named statements of each module of the store.

Of a statement: its name, a sentence, its text. Limits stand in the SQL; the database's now() is the only clock in
predicates; keys are sorted before they are written, so that two daemons never deadlock.
"""

import re
from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import NamedTuple


class Migration(NamedTuple):
    """One version of the schema. A binary that does not know a `breaking` one must not run on it."""

    version: int
    name: str
    breaking: bool
    text: str


_HERE = files("webhookd.store") / "sql"


def _migrations() -> tuple[Migration, ...]:
    found = []
    for file in (_HERE / "migrations").iterdir():
        if named := re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name):
            text = file.read_text()
            breaking = text.startswith("-- breaking")
            found.append(Migration(int(named[1]), file.name.removesuffix(".sql"), breaking, text))
    return tuple(sorted(found))


def parse(text: str) -> Mapping[str, str]:
    """The statements of a file by name; each begins with a line `-- name: …` and ends before the next."""
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    return MappingProxyType({name: statement.strip() for name, statement in zip(parts[1::2], parts[2::2], strict=True)})


def _queries() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for file in (_HERE / "queries").iterdir():
        if file.name.endswith(".sql"):
            statements = parse(file.read_text())
            if twice := found.keys() & statements.keys():
                raise ValueError(f"two statements have the name {', '.join(sorted(twice))}")
            found |= statements
    return MappingProxyType(found)


MIGRATIONS = _migrations()
GRANTS = (_HERE / "grants.sql").read_text()
QUERIES = _queries()
