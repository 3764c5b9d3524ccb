"""How far pollers have come, and where in the log that is. All take a connection in a transaction, or a database."""

from datetime import UTC, datetime
from typing import Final, NamedTuple

from webhookd.policy.polling import WHOLE, Place, There
from webhookd.store.statements import QUERIES
from webhookd.store.tenants import Asking

MOST: Final = 1_000  # of one endpoint


class Missed(NamedTuple):
    """What retention took before it was read: between these moments, so many events where they were counted."""

    since: datetime | None
    until: datetime | None
    events: int | None = None


class Consumer(NamedTuple):
    """How far one has come, when the batch of that place was cut, and what it missed."""

    place: Place
    cut_at: float
    missed: Missed | None = None


class Log(NamedTuple):
    """The batch that was asked for, if it is there; the last one, the database's clock, and the endpoints' version."""

    there: There | None
    last: int
    now: float
    config: int


def moment(seconds: float | None) -> datetime | None:
    """A moment of the database's clock, as it is told."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


async def find(asking: Asking, endpoint_id: int, name: str) -> Consumer | None:
    """The consumer of this name."""
    rows = await asking.fetch(QUERIES["consumer"], endpoint_id, name)
    if not rows:
        return None
    batch, pos, nonce, cut_at, since, until, count = rows[0]
    return Consumer(Place(batch, pos, nonce), cut_at, None if until is None else Missed(since, until, count))


async def put(asking: Asking, endpoint_id: int, name: str, at: Consumer) -> bool:
    """Have it be that far; False when the endpoint has as many consumers as it may have."""
    missed = at.missed or (None, None, None)
    return bool(await asking.fetch(QUERIES["consumer_put"], endpoint_id, name, *at.place, at.cut_at, *missed, MOST))


async def used(asking: Asking, endpoint_id: int, name: str) -> None:
    """It is in use, although it has not gone on."""
    await asking.fetch(QUERIES["consumer_used"], endpoint_id, name)


async def log(asking: Asking, batch: int) -> Log:
    """What is in the log under this id."""
    id_, nonce, cut_at, *more = (await asking.fetch(QUERIES["batch_there"], batch))[0]
    return Log(None if id_ is None else There(id_, nonce, cut_at), *more)


async def since(asking: Asking, moment: float, *, cut: bool = False) -> Consumer:
    """The place before all that came from that moment on, in seconds on the database's clock, or that was cut then."""
    id_, nonce, cut_at, is_last = (await asking.fetch(QUERIES["batch_since"], moment, cut))[0]
    return Consumer(Place(id_, WHOLE if is_last else 0, nonce), cut_at)


async def kept(asking: Asking) -> Consumer:
    """The place before all that retention has left."""
    id_, nonce, cut_at = (await asking.fetch(QUERIES["batch_kept"]))[0]
    return Consumer(Place(id_, 0, nonce), cut_at)
