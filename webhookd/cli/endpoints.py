"""`webhookd endpoints`: who receives, what they are owed, and what they answered last."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.text import Text

from webhookd.cli.completion import endpoint_names
from webhookd.cli.listings import answer, chosen, event_id, numbered
from webhookd.cli.options import AsJson, ConfigFile, dsn_for, ran
from webhookd.cli.status import STYLES, some
from webhookd.cli.tables import Table, cell, counted, show, show_json, span
from webhookd.message.request import without_query
from webhookd.policy.endpoint_state import EndpointState
from webhookd.store.database import Database
from webhookd.store.documents import COUNTS
from webhookd.store.listings import ASIDE, Asked, AttemptLine, EndpointLine, Listings
from webhookd.store.reports import SENT_TO

app = typer.Typer(help="Show endpoints.", no_args_is_help=True, rich_markup_mode=None)
NOT_SENT_TO = {
    EndpointState.PAUSED: "nothing is sent; what arrives is kept",
    EndpointState.DISABLED: "nothing is sent, and what arrives is not owed",
    EndpointState.INACTIVE: "nothing is sent, and what arrives is not owed: active = false in its file",
    EndpointState.REMOVED: "nothing is sent, and what arrives is not owed: no live daemon's files have it",
}
OWED, FAILED = ("waiting", "retrying", "held", "parked"), ("exhausted", "rejected", "missed")
LAST = 10  # attempts that `show` shows


@app.command("list")
def list_(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """List all endpoints."""
    found = ran(_all(config))
    if as_json:
        return show_json({"endpoints": [_document(row) for row in found]})
    if not found:
        return show(Text("no endpoint is known yet: the first `webhookd run` makes those of the configuration known"))
    heads = ("endpoint", "state", "url", "events", ">owed", ">failed", ">oldest owed", "last answer")
    return show(Table(heads, map(_row, found), ("events", "url", "oldest owed")))


@app.command("show")
def show_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="NAME or TENANT/NAME.", autocompletion=endpoint_names)],
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show one endpoint and its last attempts."""
    row, last = ran(_one(config, name))
    if as_json:
        return show_json({**_document(row), "spec": _spec(row), "attempts": [_attempt(each) for each in last]})
    width = max(len(head) for head, _ in _facts(row)) + 2
    show(*(Text.assemble(f"{head:<{width}}", cell(value)) for head, value in _facts(row)))
    if last:
        show(Text(f"\nlast {len(last)} attempts" if len(last) > 1 else "\nlast attempt", "bold"))
        rows = ((each.at, event_id(each), each.event.type, numbered(each), _answer(each), each.ms) for each in last)
        show(Table(("at (UTC)", "event_id", "type", ">attempt", "answer", ">ms"), rows, ("ms", "type", "attempt")))
    return None


async def _all(config: Path | None) -> list[EndpointLine]:
    async with Database(dsn_for(config) or None, size=1) as database:
        return await Listings(database).endpoints()


async def _one(config: Path | None, name: str) -> tuple[EndpointLine, list[AttemptLine]]:
    async with Database(dsn_for(config) or None, size=1) as database:
        listings = Listings(database)
        number = chosen(await listings.names(), name)
        (row,) = await listings.endpoints(number)
        page = await listings.attempts(Asked(LAST), [number], None, failed=False, responses=False)
        return row, page.rows


def _spec(row: EndpointLine) -> dict[str, Any]:
    """What the files say of it, but for what a URL may carry besides the place."""
    spec = orjson.loads(row.spec)
    return {**spec, "url": without_query(spec.get("url", ""))}


def _state(row: EndpointLine) -> EndpointState:
    return EndpointState.of(
        active=_spec(row).get("active", True),
        removed=row.removed_at is not None,
        disabled=row.disabled_at is not None,
        paused=row.paused_at is not None,
        failing=row.fails > 0,
    )


def _answer(row: AttemptLine | EndpointLine) -> Text:
    return answer(row.code, row.error, ok=bool(row.ok))


def _age(at: datetime | None) -> str | None:
    return None if at is None else span((datetime.now(UTC) - at).total_seconds())


def _row(row: EndpointLine) -> tuple[object, ...]:
    spec, state = _spec(row), _state(row)
    last = Text("") if row.at is None else Text.assemble(_answer(row), f", {_age(row.at)} ago")
    owed = row.waiting + row.retrying + row.held + row.parked
    failed = row.exhausted + row.rejected + row.missed
    events = ", ".join(spec.get("events", ()))
    return (
        cell(row.label, most=None),
        cell(state, STYLES[state]),
        spec["url"],
        events,
        f"{owed}{'+' if row.parked_more else ''}",
        f"{failed}{'+' if row.missed_more else ''}",
        _age(_oldest(row)),
        last,
    )


def _facts(row: EndpointLine) -> Iterator[tuple[str, object]]:
    spec = _spec(row)
    yield "endpoint", row.label
    yield "state", _state(row).value
    yield from _parking(row)
    for key in ("description", "url"):
        if spec.get(key):
            yield key, spec[key]
    yield "events", ", ".join(spec.get("events", ()))
    for key, values in spec.get("filter", {}).items():
        yield f"filter {key}", ", ".join(values)
    for path, wanted in spec.get("data_filter", {}).items():
        yield f"filter data {path}", json.dumps(wanted)
    for key in ("format", "signature"):
        if spec.get(key):
            yield key, spec[key]
    if ordered := spec.get("ordered"):
        holds = ", held when the time of one is over" if spec.get("on_exhausted") == "hold" else ""
        yield "order", f"{'of each ordering key' if ordered == 'key' else 'of all events'}{holds}"
    rate = spec.get("rate_limit")
    slots = spec.get("max_in_flight") or "as [delivery] has it"
    yield "slots", f"{slots}{f', at most {rate:g} requests a second' if rate else ''}"
    yield "owed", ", ".join(_counts(row, OWED)) or "nothing"
    if failed := ", ".join(_counts(row, FAILED)):
        why = ", ".join(dict.fromkeys([*(row.why_missed or ()), *(["disabled"] if row.disabled_at else [])]))
        yield "failed", f"{failed} ({why})" if row.missed or row.missed_more else failed
    if (oldest := _oldest(row)) is not None:
        yield "oldest owed", f"{_moment(oldest)}, {_age(oldest)} ago"
    yield "last answer", "none yet" if row.at is None else f"{_answer(row)} in {row.ms} ms, {_age(row.at)} ago"


def _counts(row: EndpointLine, keys: Sequence[str]) -> Iterator[str]:
    return (f"{number} {key}" for key in keys if (number := some(row, key)) != "0")


def _parking(row: EndpointLine) -> Iterator[tuple[str, object]]:
    """Whether it is fed from memory or reads the log, why, and what its breaker does."""
    if row.paused_at is not None:
        yield "paused", f"since {_moment(row.paused_at)}; `webhookd resume` ends it"
    if row.disabled_at is not None:
        yield "disabled", f"since {_moment(row.disabled_at)} by {row.disabled_why}; `webhookd enable` ends it"
    state = _state(row)
    if state not in SENT_TO:
        yield "fed", NOT_SENT_TO[state]
        return
    if row.why_parked is None or row.parked_at is None:
        yield "fed", "live, from memory"
        return
    sender = "no daemon has it" if row.owner is None else f"daemon {row.owner} sends to it"
    yield "fed", f"parked since {_moment(row.parked_at)} ({row.why_parked}), {sender}"
    if row.fails and row.probe_at is not None:
        wait = (row.probe_at - datetime.now(UTC)).total_seconds()
        failed = f"{counted(row.fails - 1, 'probe')} failed, " if row.fails > 1 else ""
        yield "breaker", f"open, {failed}next probe {f'in {span(wait)}' if wait > 0 else 'now'}"


def _oldest(row: EndpointLine) -> datetime | None:
    return min((moment for moment in (row.oldest, row.behind) if moment is not None), default=None)


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _document(row: EndpointLine) -> dict[str, Any]:
    spec = _spec(row)
    last = None if row.at is None else {key: getattr(row, key) for key in ("at", "ok", "code", "error", "ms")}
    return {
        "tenant": row.tenant,
        "name": row.name,
        "state": _state(row),
        "url": spec["url"],
        "events": spec.get("events", []),
        "backlog": {key: getattr(row, key) for key in COUNTS},
        "more": {key: getattr(row, f"{key}_more") for key in ASIDE},
        "oldest_owed": _oldest(row),
        "parked": row.why_parked,
        "owner": row.owner,
        "breaker": {"failures": row.fails, "probe_at": row.probe_at} if row.fails else None,
        "paused_at": row.paused_at,
        "disabled_at": row.disabled_at,
        "disabled_why": row.disabled_why,
        "last": last,
    }


def _attempt(row: AttemptLine) -> dict[str, Any]:
    keys = ("at", "attempt", "trigger", "ok", "code", "error", "ms")
    return {"event_id": row.event.event_id, "type": row.event.type, **{key: getattr(row, key) for key in keys}}
