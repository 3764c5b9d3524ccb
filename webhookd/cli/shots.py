"""`webhookd resend` and `webhookd test`: one request now, whatever else is or is not sent to its endpoint."""

import asyncio
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import orjson
import typer
from rich.text import Text

from webhookd.cli.completion import endpoint_names
from webhookd.cli.listings import OfEndpoint, answer, chosen, response_lines, sent_to
from webhookd.cli.options import DEAD_AFTER, AsJson, ConfigFile, Dev, Usage, dsn_for, loaded, ran, who
from webhookd.cli.tables import BAR, Table, cell, inert, show, show_json, tell
from webhookd.config.checks import type_mistake
from webhookd.errors import ConfigError, WebhookdError
from webhookd.policy.examples import made_up, stand_in, subscribed
from webhookd.policy.matching import ANY_TENANT
from webhookd.store import documents
from webhookd.store.database import Database
from webhookd.store.listings import EndpointLine, Listings, Names, label_of
from webhookd.store.reports import Reports
from webhookd.store.shots import Ended, Wishes
from webhookd.units import quoted

SECONDS: Final = 30.0  # in which a daemon has to take it
LOOK_SECONDS: Final = 0.1
MOST_TESTS: Final = 200
MOST_SECONDS: Final = 600.0  # for all of them
WORDS: Final = {
    "not_taken": f"no daemon took it within {SECONDS:.0f} s",
    "lost": "its daemon died, or lost the database: it may have been sent",
    "no_slot": f"its endpoint had no free slot for {SECONDS:.0f} s, or its rate allowed no request",
    "event_missing": "the event is gone",
    "no_daemon": "no live daemon has it in its files",
}  # of a shot without a request


class Wish(NamedTuple):
    """A shot, and what it is for."""

    shot: int
    endpoint: str
    event: str  # its id, or its type


def resend(
    event_id: Annotated[str, typer.Argument(metavar="EVENT_ID", help="An event of the outbox.")],
    endpoint: OfEndpoint = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Send an event once more, now.

    To every endpoint that was owed it, or to the one that --endpoint names, also where that is paused, failing or
    disabled. It is one request, marked `webhook-trigger: resend`, with the webhook-id it had: a receiver that
    deduplicates may ignore it. A failure changes nothing; a delivery ends the retries. Exit code 1 when one failed.
    For example: `webhookd resend 065d32ac-2be2-4236-b18e-00e528a546db --endpoint orders`.
    """
    wishes, ended = ran(_resend(dsn_for(config), event_id, endpoint))
    if as_json:
        show_json({"resent": [_resent(wish, ended[wish.shot]) for wish in wishes]})
    else:
        rows = [(cell(wish.endpoint, most=None), _answer(ended[wish.shot]), ended[wish.shot].ms) for wish in wishes]
        show(Table(("endpoint", "answer", ">ms"), rows))
    _finish(ended.values())


def send_example(
    endpoint: Annotated[
        str, typer.Argument(metavar="ENDPOINT", help="NAME or TENANT/NAME.", autocompletion=endpoint_names)
    ],
    event: Annotated[
        str | None, typer.Option("--event", metavar="TYPE", help="The example of this type of event.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Those of all [event_types] that it subscribes to.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also requests and answers.")] = False,
    config: ConfigFile = None,
    dev: Dev = False,
    as_json: AsJson = False,
) -> None:
    """Send an example to an endpoint, now, and say what it answered.

    The example of [event_types], or one that is made up and says so; marked `webhook-trigger: test`, and in no list of
    events. Also to an endpoint that is inactive, paused, failing or disabled. Exit code 1 when one failed.
    For example: `webhookd test orders --event order.created`.
    """
    if event is not None and everything:
        raise Usage("give --event TYPE, or --all")
    if event is not None and (mistake := type_mistake(event)):
        raise Usage(f"--event: {mistake}")
    wishes, ended, started_at = ran(_test(dsn_for(config), endpoint, event, everything, _examples(config, dev)))
    if as_json:
        show_json(documents.tested(started_at, [(wish.event, ended[wish.shot]) for wish in wishes]))
    else:
        rows = [(cell(wish.event, most=None), _answer(ended[wish.shot]), ended[wish.shot].ms) for wish in wishes]
        details = [line for wish in wishes for line in _details(wish, ended[wish.shot])] if verbose else []
        show(Table(("event", "answer", ">ms"), rows), *details)
    _finish(ended.values())


def _finish(ended: Any) -> None:
    failed = [each for each in ended if not each.ok]
    if failed:
        raise typer.Exit(1)


async def _resend(dsn: str, event_id: str, endpoint: str | None) -> tuple[list[Wish], dict[int, Ended]]:
    async with Database(dsn or None, size=1) as database:
        names = await Listings(database).names()
        found = await Reports(database).fates(event_id)
        if not found:
            raise WebhookdError(
                f"the outbox has no event {quoted(event_id)}: it was never committed, or is past retention"
            )
        wishes = Wishes(database, who(), SECONDS)
        pairs = []
        if endpoint is not None:
            number = chosen(names, endpoint)
            for event, _ in found:
                if names[number][0] not in (event.tenant, ANY_TENANT):
                    of = quoted(event.tenant) if event.tenant else "no tenant"
                    raise WebhookdError(f"{inert(endpoint)} gets no events of {of}, and this is one")
                pairs.append((number, event.id, event.created_at))
        else:
            numbers = {label_of(names, number): number for number in names}
            for event, fates in found:
                owed = sorted({numbers[fate.endpoint] for fate in fates if fate.endpoint in numbers})
                pairs += [(number, event.id, event.created_at) for number in owed]
            if not pairs:
                raise WebhookdError(
                    f"nobody was owed {quoted(event_id)}: name an endpoint with --endpoint, "
                    f"or see `webhookd explain {event_id}`"
                )
        sent = await sent_to(database, names, sorted({number for number, *_ in pairs}))
        pairs = [pair for pair in pairs if pair[0] in sent]
        takers = await wishes.takers(sent, DEAD_AFTER)
        able = [pair for pair in pairs if (taker := takers.get(pair[0])) and taker.counts and taker.daemons]
        if not able:
            raise WebhookdError(_nobody(names, [number for number, *_ in pairs]))
        if any(fate.state in ("waiting", "sending") for _, fates in found for fate in fates):
            tell("it has not been sent to everybody yet: what is owed comes all the same", err=True)
        asked = await wishes.resend(able)
        wanted = [Wish(shot, label_of(names, number), event_id) for shot, number, _ in asked]
        ended = await _wait(wishes, wanted, SECONDS + max(takers[number].timeout for number, *_ in able))
        left_out = [pair for pair in pairs if pair not in able]
        wanted += [Wish(-n, label_of(names, pair[0]), event_id) for n, pair in enumerate(left_out, start=1)]
        ended |= {-n: _ended(-n, "no_daemon") for n in range(1, len(left_out) + 1)}
        return sorted(wanted, key=lambda wish: wish.endpoint), ended


def _nobody(names: Names, numbers: Sequence[int]) -> str:
    labels = ", ".join(sorted({inert(label_of(names, number)) for number in numbers}))
    return f"no live daemon has {labels} in its files: start one, or see `webhookd status`"


async def _test(
    dsn: str, name: str, event: str | None, everything: bool, examples: Mapping[str, object]
) -> tuple[list[Wish], dict[int, Ended], datetime]:
    async with Database(dsn or None, size=1) as database:
        listings = Listings(database)
        names = await listings.names()
        (number,) = await sent_to(database, names, [chosen(names, name)])
        (row,) = await listings.endpoints(number)
        types = _types(row, event, everything, examples)
        taker = (await Wishes(database, who(), SECONDS).takers([number], DEAD_AFTER))[number]
        # They are sent some at a time, and each may take its whole timeout.
        seconds = SECONDS + min(len(types) * taker.timeout, MOST_SECONDS)
        wishes = Wishes(database, who(), seconds)
        if not (taker.counts and taker.daemons):
            raise WebhookdError(_nobody(names, [number]))
        shots, at = await wishes.test(number, [(_event_id(), type_, _payload(type_, examples)) for type_ in types])
        wanted = [Wish(shot, row.label, type_) for shot, type_ in zip(shots, types, strict=True)]
        return wanted, await _wait(wishes, wanted, seconds + taker.timeout), at


def _types(row: EndpointLine, event: str | None, everything: bool, examples: Mapping[str, object]) -> list[str]:
    """Which examples it gets: those it subscribes to, of all that are known or of the first."""
    if event is not None:
        return [event]
    patterns: Sequence[str] = orjson.loads(row.spec).get("events", ())
    known = subscribed(patterns, examples)
    if everything:
        if not known:
            raise WebhookdError(
                f"no [event_types] of the files is one that {inert(row.label)} subscribes to"
                if examples
                else "there are no [event_types] here: name the files that have them with -c"
            )
        if len(known) > MOST_TESTS:
            raise WebhookdError(f"{len(known)} examples are more than {MOST_TESTS}: choose with --event")
        return known
    return known[:1] or [stand_in(patterns)]


def _examples(config: Path | None, dev: bool) -> Mapping[str, object]:
    """By type, what [event_types] of the files have; nothing where there are no files, or they have a mistake."""
    try:
        _, files = loaded(config, dev)
    except ConfigError:
        return {}
    return {name: each.example for name, each in files.event_types.items()}


def _payload(type_: str, examples: Mapping[str, object]) -> bytes:
    example = examples.get(type_)
    return orjson.dumps(made_up(type_, "[event_types]") if example is None else example)


def _event_id() -> str:
    return f"test_{secrets.token_hex(12)}"


async def _wait(wishes: Wishes, wanted: Sequence[Wish], seconds: float) -> dict[int, Ended]:
    """What came of them, once all have ended. Daemons end what they do not take; we wait no longer than they may."""
    shots = [wish.shot for wish in wanted]
    until = time.monotonic() + seconds + SECONDS  # the lease is shorter
    while True:
        ended = {each.id: each for each in await wishes.ended(shots)}
        if len(ended) == len(shots):
            return ended
        if time.monotonic() > until:
            break
        await asyncio.sleep(LOOK_SECONDS)
    return {shot: _ended(shot, "lost") for shot in shots} | ended


def _ended(shot: int, error: str) -> Ended:
    return Ended(shot, 0, False, None, None, error, None, None, None)


def _answer(ended: Ended) -> Text:
    if ended.code is None and ended.error in WORDS:
        return cell(WORDS[ended.error], "red", None)
    return answer(ended.code, ended.error, ok=ended.ok)


def _details(wish: Wish, ended: Ended) -> Iterator[Text]:
    """What was sent and what was answered, each line behind a bar, so that none looks like ours."""
    if ended.request is not None:
        sent = orjson.loads(ended.request)
        yield Text("")
        yield cell(f"{wish.event}: {sent['method']} {sent['url']}", "bold", None)
        for name, value in sent["headers"].items():
            yield Text(f"{BAR}{inert(f'{name}: {value}', None)}")
        yield Text(BAR)
        yield from response_lines(sent["body"].encode())
    if ended.code is not None:
        yield cell(f"answered {ended.code}:", "bold", None)
        yield from response_lines(ended.response or b"")


def _resent(wish: Wish, ended: Ended) -> dict[str, Any]:
    return {
        "event_id": wish.event,
        "endpoint": wish.endpoint,
        **{key: getattr(ended, key) for key in ("ok", "code", "error", "ms")},
    }
