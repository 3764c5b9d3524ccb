"""`webhookd check`: is the configuration right, and what would it change?"""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from webhookd.cli.options import AsJson, ConfigFile, Dev, loaded, other_hash, other_way, ran, spelled
from webhookd.cli.tables import counted, show_json, tell
from webhookd.config import loader
from webhookd.config.config import Config
from webhookd.config.reference import json_schema
from webhookd.engine.janitor import BEAT_SECONDS, DEAD_AFTER_BEATS
from webhookd.errors import DsnUnusable, OtherPlace, SchemaMismatch, StoreForbidden, StoreUnavailable, WebhookdError
from webhookd.message.signing import EXAMPLE, parse_secret
from webhookd.policy.difference import Difference, difference, refusal
from webhookd.store.database import Database
from webhookd.store.dial import ignored, target
from webhookd.store.registry import Registry
from webhookd.store.reports import Alive, Deployed, Reports
from webhookd.store.rights import Rights, rights

SHOWN = 20  # endpoints of a kind; --json has all


class _Against(NamedTuple):
    """What the files mean to what runs."""

    change: Difference
    refusal: str | None
    others: tuple[Alive, ...]  # live daemons with another configuration
    daemons: int
    twins: frozenset[int]  # of the others, those that run these very files with --dev, when we read them without
    rights: Rights = Rights("", (), only_reads=False)


def check(
    config: ConfigFile = None,
    dev: Dev = False,
    offline: Annotated[bool, typer.Option("--offline", help="Read the files only; ask no database.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of the files, for editors; read nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find mistakes, and show what would change.

    Reads the whole configuration, and compares its endpoints with those that the daemons run. Where the database is
    away it says what it found in the files all the same.
    Ends with 0 when all is well, 1 when daemons would refuse it, 69 without the database or a right that they need
    there, 78 with a mistake, or where `run` would take the database for a copy.
    """
    if schema:
        show_json(json_schema())
        return
    exposed: list[Path] = []
    file, found = loaded(config, dev, exposed)
    against, problem = None, None
    if not offline:
        try:
            deployed, mine = ran(_ask(_where(found, file), found.daemon.environment))
        except DsnUnusable:
            raise  # a mistake of the configuration, which is told alone, as any is
        except (StoreUnavailable, SchemaMismatch, OtherPlace) as error:
            problem = error
        else:
            command = spelled("reload", "--accept-removals", config=config, dev=dev)
            against = _against(file, found, dev, deployed, command)._replace(rights=mine)
    if as_json:
        asked = {} if offline else {"database_problem": None if problem is None else str(problem)}
        show_json(_document(file, found, against) | asked | {"exposed": list(map(str, exposed))})
    else:
        tell("\n".join(_lines(file, found, dev, against)))
        for each in exposed:
            mend = f'run "chmod o-rwx {shlex.quote(str(each))}"'
            tell(f"{each} has a secret that everyone on this machine can read; {mend}")
        if problem and not _answered(problem):
            command = spelled("check", "--offline", config=config, dev=dev)
            tell(f"database: it could not be asked what would change; `{command}` checks the files alone")
    if problem:
        raise problem
    raise typer.Exit(1 if against and against.refusal else 0)


def _answered(problem: WebhookdError) -> bool:
    """True when the database is there and in order, and not for us."""
    return isinstance(problem, (StoreForbidden, OtherPlace))


def _where(found: Config, file: Path) -> str:
    """The DSN, once the one for LISTEN is known to be none that `run` would refuse."""
    if direct := loader.direct_dsn(found.database, file):
        target(direct)
    return loader.dsn(found.database, file)


async def _ask(dsn: str, environment: str) -> tuple[Deployed, Rights]:
    async with Database(dsn or None, size=1) as database:
        mine = await rights(database)
        if mine.lacking and not mine.only_reads:
            raise StoreForbidden("\n".join(mine.sentences()))
        await database.expect_all_rows()
        deployed = await Reports(database).deployed(BEAT_SECONDS * DEAD_AFTER_BEATS)
        await Registry(database).expect_ours(environment)
        return deployed, mine


def _against(file: Path, found: Config, dev: bool, deployed: Deployed, command: str) -> _Against:
    change = difference(deployed.specs, found.specs)
    others = tuple(each for each in deployed.daemons if each.config_hash != found.config_hash)
    other = other_hash(file, dev) if others else ""
    twins = frozenset(each.id for each in others if each.config_hash == other)
    return _Against(change, refusal(change, len(deployed.specs), command), others, len(deployed.daemons), twins)


def _document(file: Path, found: Config, against: _Against | None) -> dict[str, Any]:
    document: dict[str, Any] = {
        "file": str(file),
        "config_hash": found.config_hash,
        "endpoints": len(found.endpoints),
        "inactive": _inactive(found),
        "example_secrets": _with_example_secret(found),
    }
    if against:
        document |= {
            **against.change._asdict(),
            "refusal": against.refusal,
            "daemons": against.daemons,
            "role_only_reads": against.rights.only_reads,
            "daemons_that_differ": [
                {"id": each.id, "host": each.host, "config_hash": each.config_hash} for each in against.others
            ],
        }
    return document


def _inactive(found: Config) -> int:
    return sum(not endpoint.active for endpoint in found.endpoints)


def _with_example_secret(found: Config) -> list[str]:
    """The endpoints that sign with what everybody can look up."""
    known = parse_secret(EXAMPLE).raw
    return [each.label for each in found.endpoints if each.active and any(key.raw == known for key in each.secrets)]


def _notes(found: Config, file: Path, against: _Against | None) -> Iterator[str]:
    if labels := _with_example_secret(found):
        more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
        sign = "signs" if len(labels) == 1 else "sign"
        yield (
            f"{', '.join(labels[:SHOWN])}{more} {sign} with the secret of the examples, which everybody knows: make "
            "one with `webhookd secret new`"
        )
    if against is None:
        return
    yield from ignored(loader.dsn(found.database, file))
    if against.rights.only_reads:
        yield (
            f"{against.rights.role} only reads: that is enough for `webhookd status` and listings, and no daemon can "
            "run as it"
        )


def _lines(file: Path, found: Config, dev: bool, against: _Against | None) -> Iterator[str]:
    inactive, with_dev = _inactive(found), " with --dev" if dev else ""
    yield (
        f"{file}: no mistake; {counted(len(found.endpoints), 'endpoint')}"
        f"{f', {inactive} inactive' if inactive else ''}; configuration {found.config_hash}{with_dev}"
    )
    yield from (f"note: {each}" for each in _notes(found, file, against))
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
        another = f"another configuration, {each.config_hash}, until it reloads"
        yield f"daemon {each.id} on {each.host} runs {f'it {other_way(dev)}' if each.id in against.twins else another}"
    if not against.daemons:
        yield "daemons: none is alive"
    elif not against.others:
        who = "the one that is alive runs" if against.daemons == 1 else f"all {against.daemons} that are alive run"
        yield f"daemons: {who} this configuration"
    if against.refusal:
        yield f"a reload would be refused: {against.refusal}"
