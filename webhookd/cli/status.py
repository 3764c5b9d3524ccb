"""`webhookd status`: how things stand, of the database alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import typer

from webhookd.cli.options import AsJson, ConfigFile, dsn_for, ran
from webhookd.janitor import BEAT_SECONDS, DEAD_AFTER_BEATS
from webhookd.store.database import Database
from webhookd.store.reports import Owed, Reports, Status

HEADS = ("endpoint", "retrying", "held", "exhausted", "rejected", "next try", "delivered/min", "failed/min")


def status(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show what waits, what is owed, and who delivers."""
    found = ran(_ask(config))
    if as_json:
        typer.echo(orjson.dumps(_document(found), option=orjson.OPT_INDENT_2).decode())
    else:
        typer.echo("\n".join(_lines(found)))


async def _ask(config: Path | None) -> Status:
    async with Database(dsn_for(config) or None, size=1) as database:
        return await Reports(database).status(BEAT_SECONDS * DEAD_AFTER_BEATS)


def _document(found: Status) -> dict[str, Any]:
    return {
        "waiting": {"events": found.waiting.events, "oldest_seconds": found.waiting.seconds},
        "scheduled": {"events": found.scheduled.events, "first_due_seconds": found.scheduled.seconds},
        "open_batches": {
            "batches": found.open.batches,
            "events": found.open.events,
            "oldest_seconds": found.open.seconds,
        },
        "daemons": [
            {"id": d.id, "host": d.host, "version": d.version, "config_hash": d.config_hash, "beat_seconds": d.seconds}
            for d in found.daemons
        ],
        "endpoints": [
            {
                "tenant": owed.tenant,
                "name": owed.name,
                "backlog": {key: getattr(owed, key) for key in ("retrying", "held", "exhausted", "rejected")},
                "next_try_seconds": owed.due_in,
                "last_minute": {"delivered": owed.delivered, "failed": owed.failed},
            }
            for owed in found.endpoints
        ],
        "last_minute": {
            "delivered": sum(owed.delivered for owed in found.endpoints),
            "failed": sum(owed.failed for owed in found.endpoints),
        },
    }


def _lines(found: Status) -> Iterator[str]:
    waiting, scheduled, batches = found.waiting, found.scheduled, found.open
    if not found.daemons:
        yield "daemons      none is alive: start one with `webhookd run`"
    for daemon in found.daemons:
        yield (
            f"daemon {daemon.id:<5} {daemon.host}, version {daemon.version}, configuration {daemon.config_hash}, "
            f"beat {span(daemon.seconds)} ago"
        )
    yield f"waiting      {counted(waiting.events, 'event')}{_since(', the oldest for ', waiting.seconds)}"
    if scheduled.events:
        yield f"scheduled    {counted(scheduled.events, 'event')}{_since(', the first due in ', scheduled.seconds)}"
    yield (
        f"in hand      {counted(batches.events, 'event')} in {counted(batches.batches, 'batch', 'batches')}"
        f"{_since(', the oldest for ', batches.seconds)}"
    )
    delivered, failed = sum(o.delivered for o in found.endpoints), sum(o.failed for o in found.endpoints)
    yield f"last minute  {delivered} delivered, {counted(failed, 'failed attempt')}"
    yield ""
    if not found.endpoints:
        yield "no endpoint is known yet: the first `webhookd run` makes those of the configuration known"
        return
    yield from columns([HEADS, *map(_row, found.endpoints)])


def _row(owed: Owed) -> tuple[str, ...]:
    label = f"{owed.tenant}/{owed.name}" if owed.tenant else owed.name
    due = "" if owed.due_in is None else "now" if owed.due_in <= 0 else f"in {span(owed.due_in)}"
    counts = (owed.retrying, owed.held, owed.exhausted, owed.rejected)
    return (label, *map(str, counts), due, str(owed.delivered), str(owed.failed))


def _since(words: str, seconds: float | None) -> str:
    return "" if seconds is None else words + span(seconds)


def counted(number: int, one: str, many: str = "") -> str:
    """The number with its noun."""
    return f"{number} {one}" if number == 1 else f"{number} {many or one + 's'}"


def span(seconds: float) -> str:
    """A duration, as precise as people want it."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """A table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()
