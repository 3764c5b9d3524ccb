"""`webhookd replay` and `webhookd replays`: a part of the log for endpoints once more."""

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, NamedTuple

import orjson
import typer
from rich.text import Text

from webhookd.cli.listings import OfEndpoint, chosen, sent_to, type_regex
from webhookd.cli.options import DEAD_AFTER, AsJson, ConfigFile, Usage, dsn_for, past, ran, who
from webhookd.cli.tables import Table, cell, counted, inert, show, show_json, span, tell
from webhookd.errors import WebhookdError
from webhookd.store.database import Database
from webhookd.store.listings import Listings, Names, label_of
from webhookd.store.replays import Replay, Replays, Wanted
from webhookd.store.shots import Wishes

RATE: Final = 50.0
TELL_SECONDS: Final = 2.0  # between two lines of progress

Number = Annotated[int, typer.Argument(metavar="ID", min=1, max=2**63 - 1, help="The number of a replay.")]

app = typer.Typer(help="Show and cancel replays.", no_args_is_help=True, rich_markup_mode=None)


class State(StrEnum):
    """What --state takes."""

    EXHAUSTED = "exhausted"
    MISSED = "missed"
    REJECTED = "rejected"
    DISCARDED = "discarded"
    ALL = "all"


MEANT: Final = {
    State.EXHAUSTED: "what was given up",
    State.MISSED: "what was neither sent nor owed",
    State.REJECTED: "what was rejected",
    State.DISCARDED: "what was discarded",
    State.ALL: "everything that it subscribes to, also what was delivered",
}


class Count(NamedTuple):
    """An endpoint, and how many deliveries a replay would have for it."""

    endpoint: str
    deliveries: int


def replay(
    since: Annotated[
        str, typer.Option(metavar="WHEN", help='Events inserted since then: "12h" ago, or a time with its offset.')
    ],
    endpoint: OfEndpoint = None,
    tenant: Annotated[
        str | None, typer.Option(help='All endpoints of this tenant; "" is one, too.', show_default=False)
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="And no later than that.")] = None,
    state: Annotated[State, typer.Option(help="What became of them; missed: neither sent nor owed.")] = State.EXHAUSTED,
    type_: Annotated[
        str | None, typer.Option("--type", metavar="PATTERN", help='Such as "order.created" or "order.*".')
    ] = None,
    rate: Annotated[float, typer.Option(min=0.01, max=10_000, help="Deliveries a second, at most.")] = RATE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, and do not count.")] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Send a part of the log to endpoints once more.

    What is chosen is owed again, with its whole time to be retried, some at a time and behind what is new. It keeps to
    limits, breaker and pause, and goes on after a restart. What is to be tried anyway is left alone. The webhook-id
    stays as it was, so that receivers which deduplicate ignore what they have had. With --state missed it also reaches
    what came before the endpoint did. For example: `webhookd replay --endpoint orders --since 12h`.
    """
    wanted = _wanted(state, type_, since, until)
    if (endpoint is None) == (tenant is None):
        raise Usage("say to whom: --endpoint NAME, or --tenant TENANT")
    if not (yes or dry_run) and (as_json or not sys.stdin.isatty()):
        raise Usage("nobody can be asked here: give --yes, or --dry-run")
    dsn = dsn_for(config)
    numbers, names = ran(_endpoints(dsn, endpoint, tenant))
    if dry_run or not yes:
        counts = ran(_count(dsn, numbers, names, wanted, quiet=as_json))
        if dry_run:
            return _print_counts(counts, as_json)
        if not any(count.deliveries for count in counts):
            return tell("there is nothing to send again")
        tell(_words(counts, wanted, state, rate))
        if not typer.confirm("Go on?"):
            raise WebhookdError("nothing was done")
    begun = ran(_begin(dsn, numbers, wanted, rate))
    _print_begun({label_of(names, number): begun.get(number) for number in numbers}, as_json)
    if not begun:
        raise typer.Exit(1)
    return None


def _wanted(state: State, type_: str | None, since: str, until: str | None) -> Wanted:
    if type_ is not None:
        type_regex(type_)  # which says what is wrong with it
    since_at = past("--since", since)
    until_at = None if until is None else past("--until", until)
    if until_at is not None and until_at <= since_at:
        raise Usage("--until is not after --since")
    return Wanted(state.value, type_, since_at, until_at)


def _print_begun(begun: Mapping[str, int | None], as_json: bool) -> None:
    """By endpoint, the replay that begins; None where another runs."""
    running = [label for label, number in begun.items() if number is None]
    if as_json:
        rows = [{"id": number, "endpoint": label} for label, number in begun.items() if number is not None]
        return show_json({"replays": rows, "running": running})
    for label, number in begun.items():
        if number is not None:
            tell(f"replay {number} to {inert(label)} begins: `webhookd replays show {number}` says how far it is")
    if running:
        tell(f"to {', '.join(map(inert, running))} one runs already: see `webhookd replays list`")
    return None


@app.command("list")
def list_(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """List replays, the newest first."""
    found = ran(_all(dsn_for(config)))
    if as_json:
        return show_json({"replays": [_document(each) for each in found]})
    if not found:
        return show(Text("there has been no replay"))
    rows = (
        (
            each.id,
            cell(each.endpoint, most=None),
            each.state,
            _percent(each),
            each.sent,
            each.owed,
            each.created_at,
            each.by,
        )
        for each in found
    )
    heads = (">id", "endpoint", "state", ">read", ">owed again", ">to be tried", "begun (UTC)", "by")
    return show(Table(heads, rows, ("by", "begun (UTC)")))


@app.command("show")
def show_(number: Number, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show one replay, and how far it is."""
    each = _one(ran(_all(dsn_for(config), number)), number)
    if as_json:
        return show_json(_document(each))
    query = orjson.loads(each.query)
    types = f", {query['type']}" if "type" in query else ""
    gone = f"; {counted(each.gone, 'event')} had gone" if each.gone else ""
    waits = f"; it waits, since its endpoint is {each.waits}" if each.waits else ""
    facts = {
        "replay": f"{each.id}, {each.state}{waits}",
        "endpoint": each.endpoint,
        "of": f"{query['state']}{types}, inserted since {query.get('since')}"
        + (f" until {query['until']}" if "until" in query else ""),
        "rate": f"{each.rate:g} deliveries a second at most",
        "begun": f"{each.created_at:%Y-%m-%d %H:%M:%S} UTC by {each.by}",
        "read": f"{_percent(each)} of its part of the log{gone}",
        "owed again": f"{counted(each.sent, 'delivery', 'deliveries')}, of which {each.owed} are to be tried still",
    }
    width = max(map(len, facts))
    return show(*(Text(f"{key:<{width}}  {inert(value)}") for key, value in facts.items()))


@app.command("cancel")
def cancel(number: Number, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """End a replay. What it has owed again stays so: `webhookd discard` ends that."""
    dsn = dsn_for(config)
    each = _one(ran(_all(dsn, number)), number)
    if not ran(_cancel(dsn, number)):
        raise WebhookdError(f"replay {number} is over: {each.state}")
    if as_json:
        return show_json({"cancelled": number})
    return tell(f"replay {number} is over; {counted(each.sent, 'delivery', 'deliveries')} had been owed again")


def _one(found: Sequence[Replay], number: int) -> Replay:
    if not found:
        raise WebhookdError(f"there is no replay {number}: `webhookd replays list` shows all")
    return found[0]


async def _endpoints(dsn: str, endpoint: str | None, tenant: str | None) -> tuple[list[int], Names]:
    async with Database(dsn or None, size=1) as database:
        names = await Listings(database).names()
        wanted = {chosen(names, endpoint)} if endpoint is not None else set(names)
        takers = await Wishes(database, "", 0).takers(sorted(wanted), DEAD_AFTER)
        if endpoint is not None and not all(taker.counts for taker in takers.values()):
            raise WebhookdError(f"{inert(endpoint)} is removed: no live daemon's files have it")
        there = [number for number in wanted if number in takers and takers[number].counts]
        numbers = [number for number in there if endpoint is not None or names[number][0] == tenant]
        numbers = await sent_to(database, names, numbers)
    if not numbers:
        raise WebhookdError("there is no such endpoint: `webhookd endpoints list` shows all")
    return sorted(numbers, key=lambda number: names[number]), names


async def _count(dsn: str, numbers: Sequence[int], names: Names, wanted: Wanted, *, quiet: bool) -> list[Count]:
    counts, total, told = [], 0, time.monotonic()
    async with Database(dsn or None, size=1) as database:
        for number in numbers:
            many = 0
            async for piece in Replays(database).count(number, wanted):
                many, total = many + piece, total + piece
                if not quiet and time.monotonic() >= told + TELL_SECONDS:
                    told = time.monotonic()
                    tell(f"counting: {total} so far", err=True)
            counts.append(Count(label_of(names, number), many))
    return counts


async def _begin(dsn: str, numbers: Sequence[int], wanted: Wanted, rate: float) -> dict[int, int]:
    async with Database(dsn or None, size=1) as database:
        return await Replays(database).begin(numbers, wanted, rate, who())


async def _all(dsn: str, number: int | None = None) -> list[Replay]:
    async with Database(dsn or None, size=1) as database:
        return await Replays(database).all(number)


async def _cancel(dsn: str, number: int) -> bool:
    async with Database(dsn or None, size=1) as database:
        return await Replays(database).cancel(number, who())


def _print_counts(counts: Sequence[Count], as_json: bool) -> None:
    if as_json:
        total = sum(count.deliveries for count in counts)
        return show_json({"endpoints": [count._asdict() for count in counts], "deliveries": total})
    show(Table(("endpoint", ">deliveries"), ((cell(each.endpoint, most=None), each.deliveries) for each in counts)))
    return None


def _words(counts: Sequence[Count], wanted: Wanted, state: State, rate: float) -> str:
    """What is about to happen."""
    total = sum(count.deliveries for count in counts)
    to = counts[0].endpoint if len(counts) == 1 else counted(len(counts), "endpoint")
    slowest = max(count.deliveries for count in counts)
    return (
        f"{counted(total, 'delivery', 'deliveries')} will be owed to {inert(to)} again: {MEANT[state]}, of events "
        f"inserted {_span(wanted.since, wanted.until)}. That takes {span(slowest / rate)} at least, at "
        f"{rate:g} a second for each endpoint. Receivers get the webhook-id of then, and may ignore what they have had."
    )


def _span(since: datetime | None, until: datetime | None) -> str:
    to = "" if until is None else f" until {until:%Y-%m-%d %H:%M:%S %Z}"
    return f"since {since:%Y-%m-%d %H:%M:%S %Z}{to}"


def _percent(each: Replay) -> str:
    return f"{each.part:.0%}"


def _document(each: Replay) -> dict[str, Any]:
    return {**each._asdict(), "query": orjson.loads(each.query)}
