"""`webhookd poll`: what a polled endpoint is owed, for people."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import orjson
import typer
from rich.text import Text

from webhookd.cli.listings import chosen
from webhookd.cli.options import AsJson, ConfigFile, Usage, dsn_for, on_stop_signals, ran
from webhookd.cli.tables import GAP, cell, show, show_json
from webhookd.daemon.catalog import seen_from_outside
from webhookd.engine.polled.polls import Polls
from webhookd.engine.polled.reading import Item, Wanted
from webhookd.engine.state import Subscriptions
from webhookd.errors import WebhookdError
from webhookd.model import Endpoint
from webhookd.policy.matching import Matcher
from webhookd.store import consumers, endpoints
from webhookd.store.batches import Batches
from webhookd.store.database import Database
from webhookd.store.listings import Listings
from webhookd.store.parking import ParkingStore
from webhookd.tasks import cancelled_by
from webhookd.units import duration, quoted

SINCE: Final = 3600.0  # seconds
AT_ONCE: Final = 250
HOLD: Final = 10.0  # seconds, after which it is asked again
SHOWN: Final = 200  # characters of a payload


class Source:
    """What a format of the configuration wants to know, and none that is used here does."""

    source = ""
    max_payload = 64 << 20


def poll(
    endpoint: Annotated[str, typer.Argument(metavar="ENDPOINT", help="NAME or TENANT/NAME.")],
    config: ConfigFile = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="And what comes, until Ctrl-C.")] = False,
    since: Annotated[str, typer.Option(metavar="TIME", help='How far back to begin, such as "30m" or "7d".')] = "1h",
    as_json: AsJson = False,
) -> None:
    """Show what a polled endpoint is owed.

    As its application wrote it; no consumer moves. With --json, a document a line.
    For example: webhookd poll shop/printer --follow
    """
    try:
        seconds = duration(since)
    except ValueError as error:
        raise Usage(f"--since: {error}") from None
    dsn = dsn_for(config)

    async def shown() -> None:
        stopped = asyncio.Event()
        on_stop_signals(stopped.set, stopped.set)
        async with Database(dsn or None, size=2) as database:
            await cancelled_by(
                stopped, _show(database, endpoint, time.time() - seconds, follow=follow, as_json=as_json)
            )

    ran(shown())


async def _show(database: Database, name: str, since: float, *, follow: bool, as_json: bool) -> None:
    found = await _endpoint(database, name)
    subscriptions = Subscriptions(0)
    subscriptions.change((), Matcher((found,)).endpoints_for)
    polls = Polls(ParkingStore(database), Batches(database), subscriptions, "")
    polls.configure((found,), Source())
    polls.share(2)  # daemons cut, and tell nothing here
    place = (await consumers.since(database, since)).place
    async with asyncio.TaskGroup() as group:
        looking = group.create_task(polls.run())
        while True:
            read = await polls.page(found, place, Wanted(AT_ONCE), HOLD if follow else 0.0)
            for item in read.items:
                if as_json:
                    show_json(_document(item), indent=False)
                else:
                    show(_line(item))
                await asyncio.sleep(0)
            place = read.place
            if read.at_end and not follow:
                break
        looking.cancel()


async def _endpoint(database: Database, name: str) -> Endpoint:
    number = chosen(await Listings(database).names(), name)
    kept = await endpoints.kept(database, number)
    found = None if kept is None else seen_from_outside(kept)
    if found is None or not found.polled:
        raise WebhookdError(f"endpoint {quoted(name)} is sent to: `webhookd tail --endpoint {name}` shows its attempts")
    return found


def _document(item: Item) -> dict[str, Any]:
    event = item.event
    return {
        "event_id": event.event_id,
        "type": event.type,
        "tenant": event.tenant,
        "created_at": event.created_at,
        "payload": orjson.Fragment(item.body),
    }


def _line(item: Item) -> Text:
    event, payload = item.event, item.body[: 4 * SHOWN].decode(errors="replace")
    moment: datetime = event.created_at.astimezone(UTC)
    return Text(GAP).join(
        (cell(f"{moment:%H:%M:%S}Z", "dim"), cell(event.event_id), cell(event.type, "bold"), cell(payload[:SHOWN]))
    )
