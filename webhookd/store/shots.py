"""Shots: what somebody wants to be sent now and once. People write them; a daemon takes them, and tells the end."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from webhookd.model import Attempt
from webhookd.store.database import Database
from webhookd.store.statements import QUERIES
from webhookd.store.tenants import Asking

Kind = Literal["resend", "test"]


class Open(NamedTuple):
    """One that has not ended; `age` is in seconds."""

    id: int
    endpoint_id: int
    age: float
    is_taken: bool
    is_over: bool  # nobody took it in time, or whoever did has not said what came of it


class Claimed(NamedTuple):
    """One that is ours. A resend has an event of the outbox, a test brings its own."""

    id: int
    kind: Kind
    endpoint_id: int
    outbox_id: int | None
    outbox_at: datetime | None
    event_id: str | None
    type: str | None
    tenant: str | None
    payload: bytes | None
    created_at: datetime
    left: float  # seconds in which it may start
    attempts: int  # of this event at this endpoint, before


class Ended(NamedTuple):
    """What came of one; `request` is JSON. `error` may be `not_taken` or `lost`, beside what an attempt may meet."""

    id: int
    endpoint_id: int
    ok: bool
    code: int | None
    ms: int | None
    error: str | None
    owner: int | None
    request: bytes | None
    response: bytes | None


class Taker(NamedTuple):
    """An endpoint, whether it counts still, the seconds that a request may take, and how many live daemons have it."""

    id: int
    counts: bool
    timeout: float
    daemons: int


class Resent(NamedTuple):
    """A resend of an event, whoever wanted it; `ok` is None until it has ended."""

    at: datetime
    by: str
    endpoint: str
    ok: bool | None
    code: int | None
    error: str | None


class Shots:
    """Takes them, for the daemon `owner`."""

    def __init__(self, database: Database, owner: int) -> None:
        self._database = database
        self._owner = owner

    async def open(self) -> list[Open]:
        """Those that have not ended, the oldest first."""
        return [Open._make(row) for row in await self._database.fetch(QUERIES["open_shots"])]

    async def end(self) -> None:
        """End those whose time is over."""
        await self._database.fetch(QUERIES["end_shots"])

    async def claim(self, shots: Sequence[tuple[int, float]]) -> list[Claimed]:
        """Take these, by their numbers, each with the seconds that one may last; those that nobody else has taken."""
        ids, leases = zip(*shots, strict=True)
        rows = await self._database.fetch(QUERIES["claim_shots"], ids, leases, self._owner)
        return [Claimed._make(row) for row in rows]

    async def leave(self, shot: int) -> None:
        """Give back one that was not sent."""
        await self._database.fetch(QUERIES["leave_shot"], shot, self._owner)

    async def done(self, shot: int, at: datetime | None, attempt: Attempt, request: bytes | None) -> None:
        """Write what came of it; `at` is None when no request was made, and `request` is JSON."""
        _, number, ok, code, ms, error, response = attempt
        await self._database.fetch(
            QUERIES["shot_done"], shot, self._owner, at, ok, code, ms, error, request, response, number
        )

    async def settle(self, shot: int) -> None:
        """End what is to be tried again of a resend that was delivered, but for what is of a later replay."""
        await self._database.fetch(QUERIES["settle_shot"], shot)


class Wishes:
    """Writes them, for the person `who`; nobody takes one that is older than `seconds`."""

    def __init__(self, asking: Asking, who: str, seconds: float) -> None:
        self._asking = asking
        self._who = who
        self._seconds = seconds

    async def takers(self, endpoint_ids: Sequence[int], dead_after: float) -> dict[int, Taker]:
        """Of these endpoints, by number, who could send to them."""
        rows = await self._asking.fetch(QUERIES["takers"], list(endpoint_ids), dead_after)
        return {row[0]: Taker._make(row) for row in rows}

    async def waiting(self, endpoint_id: int) -> int:
        """How many of an endpoint have not ended."""
        return int((await self._asking.fetch(QUERIES["shots_waiting"], endpoint_id))[0][0])

    async def resend(self, pairs: Sequence[tuple[int, int, datetime]]) -> list[tuple[int, int, int]]:
        """Want events again: (endpoint id, event, when that was inserted). (shot, endpoint id, event) of each."""
        endpoints, events, moments = zip(*pairs, strict=True)
        rows = await self._asking.fetch(QUERIES["resend"], endpoints, events, moments, self._who, self._seconds)
        return [(row[0], row[1], row[2]) for row in rows]

    async def test(self, endpoint_id: int, examples: Sequence[tuple[str, str, bytes]]) -> tuple[list[int], datetime]:
        """Want examples: (event_id, type, payload). The shots, in that order, and the moment."""
        ids, types, payloads = zip(*examples, strict=True)
        rows = await self._asking.fetch(QUERIES["test"], endpoint_id, ids, types, payloads, self._who, self._seconds)
        return [row[0] for row in rows], rows[0][2]

    async def ended(self, shots: Sequence[int]) -> list[Ended]:
        """Those of these that have ended."""
        return [Ended._make(row) for row in await self._asking.fetch(QUERIES["ended_shots"], list(shots))]


class Example(NamedTuple):
    """A test, as it is looked up like a message."""

    event_id: str
    type: str
    created_at: datetime
    payload: bytes


class Wanted(NamedTuple):
    """A resend, for whose endpoint, of which event, and what came of it; `ok` is None until it has ended."""

    tenant: str
    endpoint: str
    event_id: str | None
    at: datetime
    ok: bool | None
    code: int | None
    error: str | None


class Examples(NamedTuple):
    """Tests that were wanted at once: when, of whose endpoint, and each shot with its type."""

    at: datetime
    tenant: str
    endpoint: str
    types: Sequence[tuple[int, str]]


async def wanted(asking: Asking, shot: int) -> Wanted | None:
    """The resend with this number."""
    rows = await asking.fetch(QUERIES["resend_shot"], shot)
    return Wanted._make(rows[0]) if rows else None


async def example(asking: Asking, tenant: str, event_id: str) -> Example | None:
    """The test of a tenant that has this id."""
    rows = await asking.fetch(QUERIES["test_shot"], tenant, event_id)
    return Example._make(rows[0]) if rows else None


async def examples(asking: Asking, first: int) -> Examples | None:
    """Those that were wanted at once with this shot, which is the first of them."""
    rows = await asking.fetch(QUERIES["test_shots"], first)
    if not rows:
        return None
    at, tenant, endpoint = tuple(rows[0])[2:]
    return Examples(at, tenant, endpoint, [(row[0], row[1]) for row in rows])


async def resent(database: Database, event: int) -> list[Resent]:
    """What was resent of an event of the outbox, the oldest first."""
    return [Resent._make(row) for row in await database.fetch(QUERIES["shots_of"], event)]
