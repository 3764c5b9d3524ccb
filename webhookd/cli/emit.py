"""`webhookd emit`: an event by hand."""

import json
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Never

import typer

from webhookd.cli.options import DEAD_AFTER, AsJson, ConfigFile, Dev, Usage, dsn_for, environment, ran, spelled
from webhookd.cli.tables import say, show_json
from webhookd.config.checks import type_mistake
from webhookd.errors import StoreRefused, WebhookdError
from webhookd.model import Event
from webhookd.policy.matching import OWN_TYPES, Subscriber, why_not
from webhookd.store import reports
from webhookd.store.database import Database
from webhookd.store.reports import NewEvent
from webhookd.units import duration, quoted

if TYPE_CHECKING:
    from webhookd.config.config import Config

_EVENT_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


def emit(
    type_: Annotated[str, typer.Argument(metavar="TYPE", help="Such as order.created.")],
    payload: Annotated[str, typer.Argument(metavar="PAYLOAD", help="JSON, @FILE, or - for standard input.")],
    config: ConfigFile = None,
    dev: Dev = False,
    tenant: Annotated[str, typer.Option(help="Whose event it is.")] = "",
    metadata: Annotated[str | None, typer.Option(metavar="JSON", help="Labels for filters and headers.")] = None,
    event_id: Annotated[str | None, typer.Option(help="What receivers deduplicate on; else a new UUID.")] = None,
    ordering_key: Annotated[str | None, typer.Option(help="What the event is about, such as an order.")] = None,
    deliver_after: Annotated[
        str | None, typer.Option(metavar="WHEN", help='A duration such as "10m", or a time with its offset.')
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add an event to the outbox and print its event_id.

    It also says so when no live endpoint gets the event: of those that run, or, when no daemon is alive, of those in
    the files.
    """
    _check_type(type_)
    if event_id is not None and not _EVENT_ID.fullmatch(event_id):
        raise Usage("--event-id: write 1 to 128 of A-Z, a-z, 0-9, '_' and '-'")
    event = NewEvent(
        type_,
        json_text("PAYLOAD", _text(payload)),
        tenant,
        ordering_key,
        None if metadata is None else _labels(metadata.encode(errors="surrogateescape")),
        event_id,
        None if deliver_after is None else _moment(deliver_after),
    )
    event_id, subscribers = ran(_emit(dsn_for(config), event))
    files, dev = _files(config, dev)
    of_files = None if files is None else files.endpoints
    count = _count(event, of_files if subscribers is None else subscribers)
    why = spelled("explain", event_id, config=config, dev=dev) if count == 0 else None
    if as_json:
        show_json({"event_id": event_id, "endpoints": count, "explain": why})
        return
    say(event_id)
    if why:
        say(f"webhookd: accepted, but it goes to nobody: no live endpoint subscribes to it. `{why}` says why", err=True)


def _check_type(type_: str) -> None:
    """Usage, unless it is a type that an application may give an event."""
    if not type_.strip():
        raise Usage("TYPE is empty: write one such as order.created")
    if mistake := type_mistake(type_):
        raise Usage(f"TYPE: {mistake}")
    if type_.startswith(OWN_TYPES):
        raise Usage(f"TYPE: {quoted(type_)} would be an event of webhookd's own; begin with another word")


def _labels(content: bytes) -> bytes:
    """The bytes as they are, once they are known to be a JSON object."""
    if not isinstance(json.loads(json_text("--metadata", content)), dict):
        raise Usage("""--metadata is no JSON object: write labels such as '{"region": "eu"}'""")
    return content


def _count(event: NewEvent, among: Iterable[Subscriber] | None) -> int | None:
    """How many of these are owed the event; None when nobody knows of any."""
    if among is None:
        return None
    about = supposed(event.type, event.tenant, event.metadata, event.payload)
    return sum(why_not(each, about) is None for each in among)


def _files(config: Path | None, dev: bool) -> tuple["Config | None", bool]:
    """The configuration, if there is one without a mistake, and whether that is so with --dev."""
    from webhookd.config import loader  # after the event is in the outbox, which is all that was asked for

    for way in (dev, not dev):
        with suppress(WebhookdError):
            return loader.load(loader.find(config, os.environ), environment(way), may_be_empty=True), way
    return None, dev


def supposed(type_: str, tenant: str, metadata: bytes | None, payload: bytes | None) -> Event:
    """An event as matching sees it, whether it is in the outbox or not."""
    return Event(0, "", datetime.now(UTC), type_, tenant, None, metadata, None, len(payload or b""), 0, payload)


async def _emit(dsn: str, event: NewEvent) -> tuple[str, list[reports.Subscriber] | None]:
    """The event_id, and who is owed new events, if a daemon is alive and this role may know it."""
    async with Database(dsn or None, size=1) as database:
        try:
            event_id = await reports.Producer(database).emit(event)
        except StoreRefused as error:
            raise WebhookdError(f"the outbox does not take this event: {error}") from error
        with suppress(WebhookdError):  # such as a producer's
            return event_id, await reports.Reports(database).subscribers(DEAD_AFTER)
        return event_id, None


def _text(payload: str) -> bytes:
    if payload == "-":
        return sys.stdin.buffer.read()
    if not payload.startswith("@"):
        return payload.encode(errors="surrogateescape")
    try:
        return Path(payload[1:]).read_bytes()
    except OSError as error:
        raise Usage(f"PAYLOAD: {payload[1:]} cannot be read: {error.strerror}") from None


def json_text(what: str, content: bytes) -> bytes:
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
