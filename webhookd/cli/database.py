"""Commands for the database: its schema, and events by hand."""

import re
import sys
from datetime import UTC, datetime, timedelta
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import Annotated, Never

import typer

from webhookd.cli.options import ConfigFile, Usage, dsn_for, ran
from webhookd.store import migrations
from webhookd.store.database import Database
from webhookd.store.reports import NewEvent, Producer
from webhookd.units import duration, quoted

_EVENT_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


def migrate(
    config: ConfigFile = None,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL for an empty database; connect to none.")] = False,
) -> None:
    """Create the schema `webhookd`, or bring it up to date."""
    if sql:
        typer.echo(migrations.as_sql())
        return
    applied = ran(migrations.migrate(dsn_for(config)))
    for name in applied:
        typer.echo(f"applied {name}")
    if not applied:
        typer.echo("the schema is up to date")


def emit(
    type_: Annotated[str, typer.Argument(metavar="TYPE", help="Such as order.created.")],
    payload: Annotated[str, typer.Argument(metavar="PAYLOAD", help="JSON, @FILE, or - for standard input.")],
    config: ConfigFile = None,
    tenant: Annotated[str, typer.Option(help="Whose event it is.")] = "",
    metadata: Annotated[str | None, typer.Option(metavar="JSON", help="Labels for filters and headers.")] = None,
    event_id: Annotated[str | None, typer.Option(help="What receivers deduplicate on; else a new UUID.")] = None,
    ordering_key: Annotated[str | None, typer.Option(help="What the event is about, such as an order.")] = None,
    deliver_after: Annotated[
        str | None, typer.Option(metavar="WHEN", help='A duration such as "10m", or a time with its offset.')
    ] = None,
) -> None:
    """Add an event to the outbox and print its event_id."""
    if not type_.strip():
        raise Usage("TYPE is empty: write one such as order.created")
    if event_id is not None and not _EVENT_ID.fullmatch(event_id):
        raise Usage("--event-id: write 1 to 128 of A-Z, a-z, 0-9, '_' and '-'")
    event = NewEvent(
        type_,
        _json("PAYLOAD", _text(payload)),
        tenant,
        ordering_key,
        None if metadata is None else _json("--metadata", metadata.encode(errors="surrogateescape")),
        event_id,
        None if deliver_after is None else _moment(deliver_after),
    )
    typer.echo(ran(_emit(dsn_for(config), event)))


async def _emit(dsn: str, event: NewEvent) -> str:
    async with Database(dsn or None, size=1) as database:
        return await Producer(database).emit(event)


def _text(payload: str) -> bytes:
    if payload == "-":
        return sys.stdin.buffer.read()
    if not payload.startswith("@"):
        return payload.encode(errors="surrogateescape")
    try:
        return Path(payload[1:]).read_bytes()
    except OSError as error:
        raise Usage(f"PAYLOAD: {payload[1:]} cannot be read: {error.strerror}") from None


def _json(what: str, content: bytes) -> bytes:
    """The bytes as they are, once they are known to be JSON that Postgres takes."""
    try:
        JSONDecoder(parse_constant=_constant).decode(content.decode())
    except JSONDecodeError as error:
        raise Usage(f"{what} is no JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except UnicodeDecodeError:
        raise Usage(f"{what} is no JSON: it is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise Usage(f"{what} is no JSON: {error}") from None
    return content


def _constant(name: str) -> Never:
    raise ValueError(f"{name} is no JSON number")


def _moment(text: str) -> datetime:
    try:
        return datetime.now(UTC) + timedelta(seconds=duration(text))
    except (ValueError, OverflowError):
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.min
    if moment.tzinfo is None:
        raise Usage(f'--deliver-after: {quoted(text)} is neither like "10m" nor like "2030-01-31T08:00:00Z"')
    return moment
