"""`webhookd status`: how things stand, of the database alone."""

import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.filesize import decimal
from rich.text import Text

from webhookd.cli.options import AsJson, ConfigFile, dsn_for, ran
from webhookd.cli.tables import cell, counted, document, inert, say, span, table
from webhookd.cli.watch import drawn, printed, watch
from webhookd.janitor import BEAT_SECONDS, DEAD_AFTER_BEATS
from webhookd.store.database import Database
from webhookd.store.reports import Health, Owed, Reports, Status

DAYS_ALARM = 7  # of partitions ahead, when 30 are made
HEADS = (
    "endpoint",
    "fed",
    "behind",
    "retrying",
    "held",
    "exhausted",
    "rejected",
    "next try",
    "delivered/min",
    "failed/min",
)


def status(
    config: ConfigFile = None,
    as_json: AsJson = False,
    live: Annotated[bool, typer.Option("--watch", help="Go on showing it each second, until Ctrl-C.")] = False,
) -> None:
    """Show what waits, what is owed, and who delivers."""
    dsn = dsn_for(config)
    if live:
        draws = sys.stdout.isatty() and not as_json
        with drawn(_picture) if draws else printed(_json_line if as_json else _line) as view:
            ran(watch(dsn, _ask, view))
        return
    found = ran(_once(dsn))
    say(document(_document(found)) if as_json else "\n".join(_lines(found)))


async def _once(dsn: str) -> Status:
    async with Database(dsn or None, size=1) as database:
        return await _ask(database)


async def _ask(database: Database) -> Status:
    return await Reports(database).status(BEAT_SECONDS * DEAD_AFTER_BEATS)


def _differ(found: Status) -> bool:
    return len({daemon.config_hash for daemon in found.daemons}) > 1


def _document(found: Status) -> dict[str, Any]:
    delivered, failed = _last_minute(found)
    return {
        "waiting": {"events": found.waiting.events, "oldest_seconds": found.waiting.seconds},
        "scheduled": {"events": found.scheduled.events, "first_due_seconds": found.scheduled.seconds},
        "open_batches": {
            "batches": found.open.batches,
            "events": found.open.events,
            "oldest_seconds": found.open.seconds,
        },
        "database": {
            "bytes": found.health.bytes,
            "oldest_event_seconds": found.health.oldest_event,
            "oldest_owed_seconds": found.health.owed,
            "cursor_seconds": found.health.cursor,
            "days_ahead": found.health.days_ahead,
            "rows_in_default": found.health.rows_in_default,
            "unreadable_events": found.health.unreadable,
        },
        "daemons": [
            {
                "id": daemon.id,
                "host": daemon.host,
                "version": daemon.version,
                "config_hash": daemon.config_hash,
                "config_problem": daemon.config_problem,
                "problem": daemon.problem,
                "beat_seconds": daemon.seconds,
            }
            for daemon in found.daemons
        ],
        "configurations_differ": _differ(found),
        "endpoints": [
            {
                "tenant": owed.tenant,
                "name": owed.name,
                "backlog": {key: getattr(owed, key) for key in ("retrying", "held", "exhausted", "rejected")},
                "next_try_seconds": owed.due_in,
                "fed": owed.fed,
                "behind_seconds": owed.behind,
                "last_minute": {"delivered": owed.delivered, "failed": owed.failed},
            }
            for owed in found.endpoints
        ],
        "last_minute": {
            "delivered": delivered,
            "failed": failed,
        },
    }


def _lines(found: Status) -> Iterator[str]:
    yield from _headlines(found)
    if found.endpoints:
        yield from columns([HEADS, *map(_row, found.endpoints)])
    else:
        yield "no endpoint is known yet: the first `webhookd run` makes those of the configuration known"


def _picture(found: Status) -> Group:
    owing = any(owed.retrying or owed.held for owed in found.endpoints)
    heads = (HEADS[0], *(f">{head}" for head in HEADS[1:]))
    rows = ([cell(text, "dim" if text == "0" else "") for text in _row(owed)] for owed in found.endpoints)
    lines = (Text(line, "red" if line.startswith("problem") else "") for line in _headlines(found))
    return Group(*lines, table(heads, rows), Text("owed: see `webhookd deliveries`" if owing else "", "dim"))


def _line(found: Status) -> str:
    delivered, failed = _last_minute(found)
    owed = sum(each.retrying + each.held for each in found.endpoints)
    return (
        f"{datetime.now():%H:%M:%S}  {counted(len(found.daemons), 'daemon')}, {found.waiting.events} waiting, "
        f"{found.open.events} in hand, {owed} owed; last minute {delivered} delivered, "
        f"{counted(failed, 'failed attempt')}{''.join(f'; {problem}' for problem in _problems(found))}"
    )


def _json_line(found: Status) -> str:
    return document(_document(found), indent=False)


def _last_minute(found: Status) -> tuple[int, int]:
    return sum(owed.delivered for owed in found.endpoints), sum(owed.failed for owed in found.endpoints)


def _problems(found: Status) -> Iterator[str]:
    if _differ(found):
        yield "daemons run different configurations"
    ahead = found.health.days_ahead or 0.0
    if ahead < DAYS_ALARM:
        yield f"there are partitions for {max(ahead, 0):.0f} more days only: see `webhookd maintain`"
    if found.health.rows_in_default:
        yield "rows have fallen into a DEFAULT partition, which `webhookd maintain` mends: nothing is lost"
    if found.health.unreadable:
        yield f"{counted(found.health.unreadable, 'event')} could not be read: the table webhookd.unreadable says why"
    for daemon in found.daemons:
        if daemon.problem is not None:
            yield f"daemon {daemon.id}: {inert(daemon.problem)}"
        if daemon.config_problem is not None:
            yield f"daemon {daemon.id} keeps an older configuration: {inert(daemon.config_problem)}"


def _headlines(found: Status) -> Iterator[str]:
    waiting, scheduled, batches = found.waiting, found.scheduled, found.open
    if not found.daemons:
        yield "daemons      none is alive: start one with `webhookd run`"
    for daemon in found.daemons:
        yield (
            f"daemon {daemon.id:<5} {inert(daemon.host)}, version {daemon.version}, "
            f"configuration {daemon.config_hash}, beat {span(daemon.seconds)} ago"
        )
    for problem in _problems(found):
        yield f"problem      {problem}"
    yield f"waiting      {counted(waiting.events, 'event')}{_since(', the oldest for ', waiting.seconds)}"
    if scheduled.events:
        yield f"scheduled    {counted(scheduled.events, 'event')}{_since(', the first due in ', scheduled.seconds)}"
    yield (
        f"in hand      {counted(batches.events, 'event')} in {counted(batches.batches, 'batch', 'batches')}"
        f"{_since(', the oldest for ', batches.seconds)}"
    )
    yield from _tables(found.health)
    delivered, failed = _last_minute(found)
    yield f"last minute  {delivered} delivered, {counted(failed, 'failed attempt')}"
    yield ""


def _tables(health: Health) -> Iterator[str]:
    reach = [f"{decimal(health.bytes)}{_since(', events of ', health.oldest_event)}"]
    if health.owed is not None:
        reach.append(f"owed for {span(health.owed)}")
    if health.cursor is not None:
        reach.append(f"a cursor lags by {span(health.cursor)}")
    yield f"tables       {', '.join([*reach, f'partitions for {health.days_ahead or 0:.0f} days'])}"


def _row(owed: Owed) -> tuple[str, ...]:
    label = inert(f"{owed.tenant}/{owed.name}" if owed.tenant else owed.name)
    due = "" if owed.due_in is None else "now" if owed.due_in <= 0 else f"in {span(owed.due_in)}"
    counts = (owed.retrying, owed.held, owed.exhausted, owed.rejected)
    behind = "" if owed.behind is None else span(owed.behind)
    return (label, owed.fed, behind, *map(str, counts), due, str(owed.delivered), str(owed.failed))


def _since(words: str, seconds: float | None) -> str:
    return "" if seconds is None else words + span(seconds)


def columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """A table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()
