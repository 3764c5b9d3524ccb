"""`webhookd status`: how things stand, of the database alone."""

import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.text import Text

from webhookd.cli.options import AsJson, ConfigFile, dsn_for, ran
from webhookd.cli.tables import Fitted, Table, cell, counted, document, inert, show, show_json, span
from webhookd.cli.watch import drawn, printed, watch
from webhookd.engine.janitor import BEAT_SECONDS, DEAD_AFTER_BEATS
from webhookd.model import label
from webhookd.policy.endpoint_state import EndpointState
from webhookd.store import documents
from webhookd.store.database import Database
from webhookd.store.documents import COUNTS
from webhookd.store.listings import ASIDE, EndpointLine
from webhookd.store.reports import Health, Owed, Reports, Status

DAYS_ALARM = 7  # of partitions ahead, when 30 are made
SNAPSHOT_ALARM = 3_600.0  # seconds that a transaction is open
TROUBLE = {
    EndpointState.FAILING: ("fails, and is probed now and then", "fail, and are probed now and then"),
    EndpointState.DISABLED: ("is disabled until `webhookd enable`", "are disabled until `webhookd enable`"),
}
STYLES = {
    EndpointState.ACTIVE: "",
    EndpointState.INACTIVE: "dim",
    EndpointState.REMOVED: "dim",
    EndpointState.PAUSED: "yellow",
    EndpointState.FAILING: "red",
    EndpointState.DISABLED: "red",
}
NONE = "no endpoint is known yet: the first `webhookd run` makes those of the configuration known"
NAMED = 3  # endpoints in a line about some
DAEMONS = 10  # that have a line
HEADS = ("endpoint", "state", *(f">{each}" for each in ("behind", *COUNTS, "next try", "delivered/min", "failed/min")))
LEAST = ("held", "missed", "rejected", "behind", "delivered/min", "exhausted", "failed/min")  # for a narrow terminal


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
    if as_json:
        return show_json(documents.status(found, _problems(found)))
    return show(*map(_headline, _headlines(found)), _endpoints(found) if found.endpoints else Text(NONE))


async def _once(dsn: str) -> Status:
    async with Database(dsn or None, size=1) as database:
        return await _ask(database)


async def _ask(database: Database) -> Status:
    return await Reports(database).status(BEAT_SECONDS * DEAD_AFTER_BEATS)


def _endpoints(found: Status) -> Table:
    return Table(HEADS, map(_row, found.endpoints), LEAST)


def _picture(found: Status) -> Fitted:
    lines = [_headline(line) for line in _headlines(found)]
    return Fitted(lines, _endpoints(found), "endpoint") if found.endpoints else Fitted([*lines, Text(NONE)])


def _headline(line: str) -> Text:
    return Text(inert(line, None), "red" if line.startswith("problem") else "")


def _line(found: Status) -> str:
    delivered, failed = documents.last_minute(found)
    owed = sum(each.waiting + each.retrying + each.held + each.parked for each in found.endpoints)
    more = "+" if any(each.parked_more for each in found.endpoints) else ""
    return (
        f"{datetime.now():%H:%M:%S}  {counted(len(found.daemons), 'daemon')}, {found.waiting.events} waiting, "
        f"{found.open.events} in hand, {owed}{more} owed; last minute {delivered} delivered, "
        f"{counted(failed, 'failed attempt')}{''.join(f'; {problem}' for problem in _problems(found))}"
    )


def _json_line(found: Status) -> str:
    return document(documents.status(found, _problems(found)), indent=False)


def _problems(found: Status) -> Iterator[str]:
    if documents.differ(found):
        yield "daemons run different configurations"
    for daemon in found.daemons:
        if daemon.problem is not None:
            yield f"daemon {daemon.id}: {inert(daemon.problem)}"
        if daemon.config_problem is not None:
            why = daemon.config_problem.replace("\n", "; ")
            yield f"daemon {daemon.id} keeps an older configuration: {inert(why)}"
    for daemon in found.silent:
        yield f"daemon {daemon.id} has not been heard for {span(daemon.seconds)}: {inert(daemon.problem or '')}"
    for state, (of_one, of_some) in TROUBLE.items():
        if labels := [_label(owed) for owed in found.endpoints if owed.state is state]:
            named = ", ".join(labels[:NAMED]) + (f" and {len(labels) - NAMED} more" if len(labels) > NAMED else "")
            yield f"{counted(len(labels), 'endpoint')} {of_one if len(labels) == 1 else of_some}: {named}"
    for owed in found.endpoints:
        if owed.undecided:
            what = counted(owed.undecided, "delivery waits", "deliveries wait")
            listing = f"`webhookd deliveries --state held --endpoint {_label(owed)}`"
            yield f"{what} for somebody to resend or discard it, and what is behind it for that: {listing}"
    yield from _of_health(found.health)


def _of_health(health: Health) -> Iterator[str]:
    if health.exhausted:
        what = counted(health.exhausted, "delivery was", "deliveries were")
        yield f"{what} given up in the last 24 hours: `webhookd deliveries --state exhausted` lists them"
    if health.missed:
        what = counted(health.missed, "range of the log was", "ranges of the log were")
        yield f"{what} given up in the last 24 hours, behind endpoints that failed for their whole time"
    ahead = health.days_ahead or 0.0
    if ahead < DAYS_ALARM:
        yield f"there are partitions for {max(ahead, 0):.0f} more days only: see `webhookd maintain`"
    if health.rows_in_default:
        yield "rows have fallen into a DEFAULT partition, which `webhookd maintain` mends: nothing is lost"
    if (open_for := health.snapshot or 0.0) > SNAPSHOT_ALARM:
        who = inert(health.snapshot_holder or "")
        yield f"a transaction has been open for {span(open_for)}, so that dead rows stay: {who}"
    if health.unreadable:
        yield f"{counted(health.unreadable, 'event')} could not be read: the table webhookd.unreadable says why"


def _headlines(found: Status) -> Iterator[str]:
    waiting, scheduled, batches = found.waiting, found.scheduled, found.open
    if not found.daemons:
        none = "heard: the problems below say why" if found.silent else "alive: start one with `webhookd run`"
        yield f"daemons      none is {none}"
    for daemon in found.daemons[:DAEMONS]:
        yield (
            f"daemon {daemon.id:<5} {inert(daemon.host)}, version {daemon.version}, "
            f"configuration {daemon.config_hash}, beat {span(daemon.seconds)} ago"
        )
    if len(found.daemons) > DAEMONS:
        yield f"daemons      {len(found.daemons) - DAEMONS} more; --json has all"
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
    delivered, failed = documents.last_minute(found)
    yield f"last minute  {delivered} delivered, {counted(failed, 'failed attempt')}"
    yield ""


def _tables(health: Health) -> Iterator[str]:
    reach = [f"{decimal(health.bytes)}{_since(', the oldest event for ', health.oldest_event)}"]
    if health.owed is not None:
        reach.append(f"the oldest that is owed for {span(health.owed)}")
    if health.cursor is not None:
        reach.append(f"a cursor lags by {span(health.cursor)}")
    yield f"tables       {', '.join([*reach, f'partitions for {health.days_ahead or 0:.0f} days'])}"


def _label(owed: Owed) -> str:
    return inert(label(owed.tenant, owed.name), None)


def _row(owed: Owed) -> tuple[object, ...]:
    due = "" if owed.due_in is None else "now" if owed.due_in <= 0 else f"in {span(owed.due_in)}"
    behind = "" if owed.behind is None else span(owed.behind)
    counts = (cell(number, "dim" if number == "0" else "") for number in (some(owed, key) for key in COUNTS))
    last = (cell(number, "" if number else "dim") for number in (owed.delivered, owed.failed))
    return (cell(_label(owed), most=None), cell(owed.state, STYLES[owed.state]), behind, *counts, due, *last)


def some(row: Owed | EndpointLine, key: str) -> str:
    """A number of deliveries, with a plus where not all of the log was looked at."""
    return f"{getattr(row, key)}{'+' if key in ASIDE and getattr(row, f'{key}_more') else ''}"


def _since(words: str, seconds: float | None) -> str:
    return "" if seconds is None else words + span(seconds)
