"""Commands that keep the schema: `webhookd migrate` and `webhookd maintain`."""

import os
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from webhookd.cli.options import AsJson, ConfigFile, Usage, dsn_for, environment, ran, who
from webhookd.cli.tables import counted, say, show_json
from webhookd.config import loader
from webhookd.config.schema import Daemon, Retention
from webhookd.errors import ConfigError, WebhookdError
from webhookd.store import migrations
from webhookd.store.database import Database
from webhookd.store.registry import Registry
from webhookd.store.statements import GRANTS

MOST_PIECES = 10_000


class Owed(StrEnum):
    """What becomes of what a copy owes."""

    DELIVER = "deliver"
    DROP = "drop"


def migrate(
    config: ConfigFile = None,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL for an empty database; connect to none.")] = False,
    directory: Annotated[
        Path | None, typer.Option("--sql-files", metavar="DIR", help="Write it into DIR, one file per version.")
    ] = None,
    wake: Annotated[
        bool | None,
        typer.Option(
            "--wake/--no-wake",
            help="Make or drop the trigger that wakes daemons; transactions that PREPARE must do without.",
            show_default=False,
        ),
    ] = None,
    rebase: Annotated[
        bool, typer.Option("--rebase", help="Take over a copy of another deployment's database; say what with --owed.")
    ] = False,
    owed: Annotated[
        Owed | None, typer.Option(help="With --rebase: what becomes of what the copy owes.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create the schema `webhookd`, or bring it up to date."""
    if rebase != (owed is not None):
        raise Usage("--rebase and --owed go together: write --rebase --owed=deliver, or --rebase --owed=drop")
    if sql or directory:
        if as_json:
            raise Usage("--json goes neither with --sql nor with --sql-files, which give SQL")
        _scripts(migrations.as_sql(wake=wake), directory)
        return
    dsn, environment = dsn_for(config), ""
    if rebase:
        environment = loader.section(loader.find(config, os.environ), os.environ, Daemon).environment
    applied = ran(migrations.migrate(dsn, wake=wake))
    if not as_json:
        say("\n".join(f"applied {name}" for name in applied) or "the schema is up to date")
    rebased = None if owed is None else ran(migrations.rebase(dsn, environment, owed.value, who()))
    if as_json:
        of_copy = None if rebased is None else {"environment": environment, "owed": owed, **rebased._asdict()}
        show_json({"applied": applied, "rebased": of_copy})
    elif owed is not None:
        say(_taken_over(rebased, owed, environment))


def grants(
    sql: Annotated[bool, typer.Option("--sql", help="Print it. Nothing else can be done yet.")] = False,
) -> None:
    """Print the rights of the roles, as SQL for the owner.

    For psql, after each `webhookd migrate`: `webhookd grants --sql | psql DSN`. The roles are made before, as its first
    lines say; other names of yours can take the place of theirs.
    """
    if not sql:
        raise Usage("rights are given by the owner of the schema: `webhookd grants --sql | psql DSN`")
    say(GRANTS.rstrip("\n"))


def _scripts(scripts: Mapping[str, str], directory: Path | None) -> None:
    if directory is None:
        say("\n".join(scripts.values()))
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in scripts.items():
            (directory / name).write_text(text)
            say(str(directory / name))
    except OSError as error:
        raise Usage(f"--sql-files: {error.filename} cannot be written: {error.strerror}") from None


def _taken_over(found: migrations.Rebased | None, owed: Owed, environment: str) -> str:
    if found is None:
        return f"the database belongs to this server and to environment {environment} already"
    return (
        f"the database belongs to this server and to environment {environment} now; "
        f"{counted(found.events, 'event')} that nobody had read, {counted(found.batches, 'batch', 'batches')} in hand, "
        f"{counted(found.deliveries, 'delivery', 'deliveries')} to be tried again and "
        f"{counted(found.later, 'scheduled event')} {'will be delivered' if owed is Owed.DELIVER else 'were dropped'}"
    )


def maintain(
    config: ConfigFile = None,
    large: Annotated[
        bool, typer.Option("--large", help="Also what INSERTs wait for, some seconds: a large DEFAULT partition.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make partitions ahead, and end what is past its time.

    It also deletes what nothing refers to any longer. A daemon does this itself, unless [retention] manage_partitions
    is false. Exit code 1 when something is in the way.
    """
    keep = _retention(config)
    done: list[str] = []
    tell: Callable[[str], object] = done.append if as_json else say
    problems = ran(_maintain(dsn_for(config), keep, large, tell))
    if as_json:
        show_json({"done": done, "problems": [{"what": what, "why": why} for what, why in problems]})
        raise typer.Exit(1 if problems else 0)
    if problems:
        raise NotDone("\n".join(f"{what}: {why}" for what, why in problems))
    say("nothing more to do")


class NotDone(WebhookdError):
    """Something is in the way."""


def _retention(config: Path | None) -> Retention:
    try:
        file = loader.find(config, os.environ)
    except ConfigError:
        if "WEBHOOKD_DSN" in os.environ:
            return Retention()  # no configuration, only a database
        raise
    # Where a file has a mistake it may be in what is to be kept for how long, and what went too early is gone.
    # What may be called is nothing to it, so that it goes without --dev on files that need it.
    return loader.load(file, environment(True), may_be_empty=True).retention


async def _maintain(dsn: str, keep: Retention, large: bool, tell: Callable[[str], object]) -> list[tuple[str, str]]:
    """What is in the way, and why; what was done is told when it is."""
    async with Database(dsn or None, size=1) as database:
        registry = Registry(database)
        for _ in range(MOST_PIECES):
            pieces = await registry.maintain(keep.events, keep.attempts, large=large)
            for done in (done for done, problem in pieces if problem is None):
                tell(done)
            if all(problem is not None for _, problem in pieces):
                return [(done, problem) for done, problem in pieces if problem is not None]
    return [("the work", f"is not done after {MOST_PIECES} pieces; run it again")]
