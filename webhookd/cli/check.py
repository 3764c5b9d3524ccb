"""`webhookd check`: is the configuration right, and what would it change?"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from webhookd import loader
from webhookd.cli.options import AsJson, ConfigFile, ran
from webhookd.cli.tables import counted, say, show_json
from webhookd.config import Config
from webhookd.difference import Difference, difference, refusal
from webhookd.janitor import BEAT_SECONDS, DEAD_AFTER_BEATS
from webhookd.reference import json_schema
from webhookd.store.database import Database
from webhookd.store.reports import Alive, Deployed, Reports

SHOWN = 20  # endpoints of a kind; --json has all


class _Against(NamedTuple):
    """What the files mean to what runs."""

    change: Difference
    refusal: str | None
    others: tuple[Alive, ...]  # live daemons with another configuration
    daemons: int


def check(
    config: ConfigFile = None,
    offline: Annotated[bool, typer.Option("--offline", help="Read the files only; ask no database.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of the files, for editors; read nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find mistakes, and show what would change.

    Reads the whole configuration, and compares its endpoints with those that the daemons run.
    Ends with 0 when all is well, 1 when daemons would refuse it, 69 without the database or a right that they need
    there, 78 with a mistake.
    """
    if schema:
        show_json(json_schema())
        return
    file = loader.find(config, os.environ)
    loaded = loader.load(file, os.environ)
    against = None if offline else _against(loaded, ran(_ask(loader.dsn(loaded.database))))
    if as_json:
        show_json(_document(file, loaded, against))
    else:
        say("\n".join(_lines(file, loaded, against)))
    raise typer.Exit(1 if against and against.refusal else 0)


async def _ask(dsn: str) -> Deployed:
    async with Database(dsn or None, size=1) as database:
        await database.expect_all_rows()
        return await Reports(database).deployed(BEAT_SECONDS * DEAD_AFTER_BEATS)


def _against(loaded: Config, deployed: Deployed) -> _Against:
    change = difference(deployed.specs, loaded.specs)
    return _Against(
        change,
        refusal(change, len(deployed.specs)),
        tuple(each for each in deployed.daemons if each.config_hash != loaded.config_hash),
        len(deployed.daemons),
    )


def _document(file: Path, loaded: Config, against: _Against | None) -> dict[str, Any]:
    document: dict[str, Any] = {
        "file": str(file),
        "config_hash": loaded.config_hash,
        "endpoints": len(loaded.endpoints),
        "inactive": _inactive(loaded),
    }
    if against:
        document |= {
            **against.change._asdict(),
            "refusal": against.refusal,
            "daemons": against.daemons,
            "daemons_that_differ": [
                {"id": each.id, "host": each.host, "config_hash": each.config_hash} for each in against.others
            ],
        }
    return document


def _inactive(loaded: Config) -> int:
    return sum(not endpoint.active for endpoint in loaded.endpoints)


def _lines(file: Path, loaded: Config, against: _Against | None) -> Iterator[str]:
    inactive = _inactive(loaded)
    yield (
        f"{file}: no mistake; {counted(len(loaded.endpoints), 'endpoint')}"
        f"{f', {inactive} inactive' if inactive else ''}; configuration {loaded.config_hash}"
    )
    if against is None:
        return
    if not any(against.change):
        yield "database: it knows the same endpoints"
    for kind, labels in against.change._asdict().items():
        for label in labels[:SHOWN]:
            yield f"{kind:<9}{label}"
        if len(labels) > SHOWN:
            yield f"{kind:<9}{len(labels) - SHOWN} more; --json lists all"
    for each in against.others:
        yield f"daemon {each.id} on {each.host} runs another configuration, {each.config_hash}, until it reloads"
    if not against.daemons:
        yield "daemons: none is alive"
    elif not against.others:
        who = "the one that is alive runs" if against.daemons == 1 else f"all {against.daemons} that are alive run"
        yield f"daemons: {who} this configuration"
    if against.refusal:
        yield f"a reload would be refused: {against.refusal}"
