"""`webhookd events`, `deliveries` and `attempts`: a page of each, newest first."""

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.text import Text

from webhookd.cli.completion import endpoint_names
from webhookd.cli.options import AsJson, ConfigFile, Usage, dsn_for, ran
from webhookd.cli.tables import BAR, Table, cell, inert, show, show_json
from webhookd.errors import WebhookdError
from webhookd.policy.matching import OWN_TYPES
from webhookd.store.database import Database
from webhookd.store.listings import (
    STATES,
    Asked,
    AttemptLine,
    Cursor,
    DeliveryLine,
    EventLine,
    Listings,
    Names,
    Page,
    label_of,
    moment,
)
from webhookd.units import duration, quoted

T = TypeVar("T")

CENTURY = 100 * 365 * 86400.0
STYLES = {
    "delivered": "green",
    **dict.fromkeys(("retrying", "held", "parked"), "yellow"),
    **dict.fromkeys(("exhausted", "rejected", "missed"), "red"),
}

FAILED = ("exhausted", "rejected", "missed")


class State(StrEnum):
    """What --state takes."""

    RETRYING = "retrying"
    HELD = "held"
    PARKED = "parked"
    EXHAUSTED = "exhausted"
    REJECTED = "rejected"
    MISSED = "missed"
    DELIVERED = "delivered"
    FAILED = "failed"


Limit = Annotated[int, typer.Option(min=1, max=1000, help="So many rows at most.")]
Since = Annotated[str | None, typer.Option(metavar="DURATION", help='Only what is younger, such as "1h".')]
Before = Annotated[str | None, typer.Option(metavar="CURSOR", help="Go on after a page: what its last line says.")]
OfEndpoint = Annotated[
    str | None,
    typer.Option("--endpoint", metavar="NAME", help="NAME or TENANT/NAME.", autocompletion=endpoint_names),
]
OfEvent = Annotated[str | None, typer.Option("--event", metavar="EVENT_ID", help="Only of this event.")]
OfState = Annotated[
    State | None,
    typer.Option("--state", help="How they stand; failed: exhausted, rejected or missed."),
]


def events(
    config: ConfigFile = None,
    type_: Annotated[
        str | None, typer.Option("--type", metavar="PATTERN", help='Such as "order.created" or "order.*".')
    ] = None,
    tenant: Annotated[str | None, typer.Option(help='Only of this tenant; "" is one, too.')] = None,
    ordering_key: Annotated[str | None, typer.Option(metavar="KEY", help="Only with this ordering_key.")] = None,
    since: Since = None,
    limit: Limit = 50,
    before: Before = None,
    as_json: AsJson = False,
) -> None:
    """List events and what became of them, newest first."""
    asked = _asked(limit, before, since, 1)
    regex = None if type_ is None else type_regex(type_)
    of = _plain("--tenant", tenant), _plain("--ordering-key", ordering_key)
    page = _answer(config, lambda listings: listings.events(asked, regex, *of))
    if as_json:
        return _print_json("events", [_event_document(row) for row in page.rows], page.more)
    heads = (">id", "event_id", "created_at (UTC)", "type", "tenant", ">size", "state")
    rows = ((row.id, cell(row.event_id, most=None), *row[2:6], _fate(row)) for row in page.rows)
    _print(Table(heads, rows, ("size", "id", "tenant", "created_at (UTC)")), page)


def deliveries(
    config: ConfigFile = None,
    endpoint: OfEndpoint = None,
    state: OfState = None,
    event: OfEvent = None,
    since: Since = None,
    limit: Limit = 50,
    before: Before = None,
    as_json: AsJson = False,
) -> None:
    """List deliveries, the newest event first.

    Those that were attempted, those that are owed, and those that were missed.
    """
    asked = _asked(limit, before, since, 2)
    states = STATES if state is None else FAILED if state is State.FAILED else (state.value,)

    async def ask(listings: Listings) -> tuple[Page[DeliveryLine], Names]:
        names = await listings.names()
        endpoint_id = None if endpoint is None else chosen(names, endpoint)
        return await listings.deliveries(asked, endpoint_id, states, _plain("--event", event)), names

    page, names = _answer(config, ask)
    if as_json:
        return _print_json("deliveries", [_delivery_document(row, names) for row in page.rows], page.more)
    heads = ("event_id", "type", "endpoint", "state", ">attempts", "last", "last at (UTC)", "next at (UTC)")
    rows = (
        (
            event_id(row),
            row.event.type,
            cell(label_of(names, row.endpoint_id), most=None),
            cell(row.state, STYLES[row.state]),
            row.attempts,
            answer(row.code, row.error),
            row.at,
            row.due,
        )
        for row in page.rows
    )
    _print(Table(heads, rows, ("last at (UTC)", "attempts", "type", "next at (UTC)")), page)


def attempts(
    config: ConfigFile = None,
    endpoint: OfEndpoint = None,
    event: OfEvent = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only those that failed.")] = False,
    since: Since = None,
    limit: Limit = 50,
    before: Before = None,
    show_response: Annotated[
        bool, typer.Option("--show-response", help="Also the first bytes of failed answers.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List requests and what they met, newest first."""
    asked = _asked(limit, before, since, 4)

    async def ask(listings: Listings) -> tuple[Page[AttemptLine], Names]:
        names = await listings.names()
        ids = list(names) if endpoint is None else [chosen(names, endpoint)]
        event_id = _plain("--event", event)
        return await listings.attempts(asked, ids, event_id, failed=failed, responses=show_response), names

    page, names = _answer(config, ask)
    if as_json:
        rows = [attempt_document(row, names, show_response) for row in page.rows]
        return _print_json("attempts", rows, page.more)
    heads = ("at (UTC)", "endpoint", "event_id", "type", ">attempt", "answer", ">ms")
    lines = [
        (
            f"{row.at:%Y-%m-%d %H:%M:%S}.{row.at.microsecond // 1000:03}",
            cell(label_of(names, row.endpoint_id), most=None),
            event_id(row),
            row.event.type,
            numbered(row),
            answer(row.code, row.error, ok=row.ok),
            row.ms,
        )
        for row in page.rows
    ]
    answers = [
        text
        for line, row in zip(lines, page.rows, strict=True)
        if row.response is not None
        for text in (
            cell("  ".join(map(str, line[:3])) + f" answered {row.code}:", "bold", None),
            *response_lines(row.response),
        )
    ]
    _print(Table(heads, lines, ("ms", "type", "attempt")), page, answers)


def _answer(config: Path | None, ask: Callable[[Listings], Awaitable[T]]) -> T:
    async def run(dsn: str) -> T:
        async with Database(dsn or None, size=1) as database:
            return await ask(Listings(database))

    return ran(run(dsn_for(config)))


def event_id(row: DeliveryLine | AttemptLine) -> Text:
    """The id, whole, or the number of an event that is past retention."""
    return cell(row.event.event_id or f"#{row.event.id}", most=None)


def numbered(row: AttemptLine) -> str:
    """The number of an attempt, and what it was made for, where that is not the schedule."""
    return f"{row.attempt} ({row.trigger})" if row.trigger else str(row.attempt)


def _print(table: Table, page: Page[Any], below: Sequence[Text] = ()) -> None:
    if page.rows:
        show(table, *below)
    elif page.more is None:
        show(Text("nothing found"))
    if page.more is not None:
        show(Text(f"more: --before {_written(page.more)}", "dim"))


def _print_json(what: str, rows: list[dict[str, Any]], more: Cursor | None) -> None:
    show_json({what: rows, "more": None if more is None else _written(more)})


def _written(cursor: Cursor) -> str:
    return ".".join(map(str, cursor))


def _asked(limit: int, before: str | None, since: str | None, parts: int) -> Asked:
    """What the options that all listings have say; a cursor has so many parts."""
    cursor = None
    if before is not None:
        try:
            cursor = tuple(map(int, before.split("."))) if re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})*", before) else ()
            if parts == 4:
                moment(cursor[0] + 86_400_000_000) if cursor else None
        except OverflowError:
            cursor = ()
        if len(cursor) != parts:
            raise Usage(f"--before: {quoted(before)} is no cursor of this listing; a page ends with the one to give")
    try:
        return Asked(limit, cursor, None if since is None else min(duration(since), CENTURY))
    except ValueError as error:
        raise Usage(f"--since: {error}") from None


def _plain(option: str, text: str | None) -> str | None:
    """The text, if Postgres can have it."""
    if text is not None and any("\ud800" <= c <= "\udfff" for c in text):
        raise Usage(f"{option}: {quoted(text)} is not UTF-8")
    return text


def type_regex(pattern: str) -> str:
    """What event types of this pattern match, as in the `events` of an endpoint."""
    exact = pattern.removesuffix(".*")
    if pattern == "*":
        return f"^(?!{re.escape(OWN_TYPES)})"
    if not exact or "*" in exact:
        raise Usage(f'--type: {quoted(pattern)} is no event pattern; write "order.created", "order.*" or "*"')
    _plain("--type", pattern)
    return f"^{re.escape(exact)}" + (r"\.." if exact != pattern else "$")


def chosen(names: Names, text: str) -> int:
    """The number of the endpoint that is called so: NAME, of no tenant first, or TENANT/NAME."""
    labels = {label_of(names, number): number for number in names}
    if (number := labels.get(text)) is not None:
        return number
    same = sorted(each for each, number in labels.items() if names[number][1] == text)
    if len(same) == 1:
        return labels[same[0]]
    if same:
        raise Usage(f"{len(same)} tenants have an endpoint {inert(text)}: write {inert(' or '.join(same[:3]))}")
    raise WebhookdError(f"there is no endpoint {quoted(text)}: `webhookd endpoints list` shows all")


async def sent_to(database: Database, names: Names, numbers: Sequence[int]) -> list[int]:
    """Those of these endpoints that are sent to, and not polled. WebhookdError when none is."""
    polled = await Listings(database).polled(numbers)
    if polled and polled.issuperset(numbers):
        labels = ", ".join(sorted(inert(label_of(names, number)) for number in polled))
        raise WebhookdError(f"nothing is sent to {labels}: who polls seeks instead, as docs/polling.md says")
    return [number for number in numbers if number not in polled]


def answer(code: int | None, error: str | None, *, ok: bool = False) -> Text:
    """The status that came, or why none did."""
    return cell(error if code is None else code, "green" if ok else "red" if error else "")


def _fate(row: EventLine) -> Text:
    if row.state is not None:
        return cell(row.state, "dim")
    tally = {key: getattr(row, key) for key in STATES if getattr(row, key)}
    return Text(", ").join(cell(f"{number} {key}", STYLES[key]) for key, number in tally.items())


def response_lines(response: bytes) -> Iterator[Text]:
    """The first bytes of an answer, each line behind a bar, so that none looks like ours."""
    text = response.decode(errors="backslashreplace")
    for line in re.split(r"\r?\n", text.removesuffix("\n").removesuffix("\r")):
        yield Text(f"{BAR}{inert(line, None)}")


def _event_document(row: EventLine) -> dict[str, Any]:
    keys = ("id", "event_id", "created_at", "type", "tenant", "ordering_key", "size", "state")
    return {**{key: getattr(row, key) for key in keys}, "deliveries": {key: getattr(row, key) for key in STATES}}


def _delivery_document(row: DeliveryLine, names: Names) -> dict[str, Any]:
    return {
        **_head_document(row.event.id, row.event.event_id, row.event.type),
        "created_at": row.event.created_at,
        "endpoint": label_of(names, row.endpoint_id),
        "state": row.state,
        "attempts": row.attempts,
        "last": {"at": row.at, "code": row.code, "error": row.error},
        "next_at": row.due,
    }


def attempt_document(row: AttemptLine, names: Names, with_response: bool) -> dict[str, Any]:
    """An attempt as JSON has it."""
    made = {
        **_head_document(row.event.id, row.event.event_id, row.event.type),
        "at": row.at,
        "endpoint": label_of(names, row.endpoint_id),
        **{key: getattr(row, key) for key in ("attempt", "trigger", "ok", "code", "error", "ms")},
    }
    if with_response:
        made["response"] = None if row.response is None else row.response.decode(errors="replace")
    return made


def _head_document(id_: int, event_id: str | None, type_: str | None) -> dict[str, Any]:
    return {"id": id_, "event_id": event_id, "type": type_}
