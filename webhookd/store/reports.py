"""What people ask of the database, and the events that they put into it."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, NamedTuple

import orjson

from webhookd.errors import StoreDamaged, StoreForbidden, StoreRefused
from webhookd.model import Condition, Event, label
from webhookd.policy import matching
from webhookd.policy.endpoint_state import EndpointState
from webhookd.policy.payload_filter import MOST_BYTES, compiled
from webhookd.store.database import Database
from webhookd.store.statements import QUERIES

LOOKED_AT: Final = 10_000  # events of the log at most, to count what is parked and was missed
SENT_TO: Final = (EndpointState.ACTIVE, EndpointState.FAILING)  # states of endpoints


class NewEvent(NamedTuple):
    """What `webhookd.emit` takes, in the order of the query `emit`; `payload` and `metadata` are JSON text."""

    type: str
    payload: bytes
    tenant: str = ""
    ordering_key: str | None = None
    metadata: bytes | None = None
    event_id: str | None = None
    deliver_after: datetime | None = None


class Producer:
    """Events into the outbox, each in a transaction of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def emit(self, event: NewEvent) -> str:
        """Call `webhookd.emit`; the event_id."""
        return str((await self._database.fetch_row(QUERIES["emit"], *event))[0])

    async def insert(self, type_: str, payload: bytes) -> str:
        """The plain INSERT that every application starts with; the event_id."""
        return str((await self._database.fetch_row(QUERIES["insert"], type_, payload))[0])


class Subscriber(NamedTuple):
    """What an endpoint that is owed new events subscribes to."""

    tenant: str
    name: str
    events: tuple[str, ...]
    filter: Mapping[str, tuple[str, ...]]
    data_filter: tuple[Condition, ...] = ()
    active: bool = True

    @property
    def label(self) -> str:
        """As that of an Endpoint."""
        return label(self.tenant, self.name)


class Waiting(NamedTuple):
    """So many events, and the age in seconds of the oldest (of scheduled ones: until the first is due)."""

    events: int
    seconds: float | None


class Batches(NamedTuple):
    """Batches that a daemon is handling, or that wait to be adopted."""

    batches: int
    events: int
    seconds: float | None  # since the oldest was cut


class Alive(NamedTuple):
    """A daemon that beats."""

    id: int
    host: str
    version: str
    config_hash: str
    seconds: float  # since its last beat
    config_problem: str | None = None  # why it runs on with an older configuration
    problem: str | None = None  # what keeps it from some of its work


class Owed(NamedTuple):
    """An endpoint's part of the backlog, and its attempts of the last minute."""

    tenant: str
    name: str
    waiting: int  # for a first attempt
    retrying: int
    held: int
    undecided: int  # of those held, what its order waits for somebody to resend or discard
    exhausted: int
    rejected: int
    due_in: float | None  # seconds until the next attempt; negative when it is overdue; None when none is to come
    delivered: int
    failed: int
    has_cursor: bool  # it reads the log with one
    behind: float | None  # seconds by which that lags
    parked: int  # events of the log that it has not come to; of `parked_more` the first
    parked_more: bool
    missed: int
    missed_more: bool
    state: EndpointState


class Health(NamedTuple):
    """What the view `health` says beyond the rest of a status; ages in seconds."""

    owed: float | None  # since the oldest event with a delivery that is owed
    rows_in_default: int
    days_ahead: float | None  # for which there are partitions
    cursor: float | None  # by which the last of the cursors lags behind
    oldest_event: float | None
    bytes: int  # of all tables and their indexes
    unreadable: int  # events that could not be read
    exhausted: int  # deliveries that were given up in the last 24 hours
    missed: int  # ranges of the log, likewise
    snapshot: float | None = None  # for which the oldest transaction has been open
    snapshot_holder: str | None = None


class Status(NamedTuple):
    """How things stand, in one snapshot."""

    waiting: Waiting
    scheduled: Waiting
    open: Batches
    health: Health
    daemons: tuple[Alive, ...]
    endpoints: tuple[Owed, ...]
    silent: tuple[Alive, ...] = ()  # daemons that are not heard, did not stop, and said why


class Mark(NamedTuple):
    """A moment in the database; what comes later has greater numbers."""

    event: int
    batch: int
    at: datetime


class Pulse(NamedTuple):
    """What one endpoint met since a mark; `p50` is in milliseconds, of the last minute."""

    delivered: int
    failed: int
    retrying: int
    code: int | None
    error: str | None
    p50: float | None


class Account(NamedTuple):
    """What the tables say about one event and one endpoint; state None when they know nothing of the pair."""

    event: Event
    endpoint_id: int
    state: str | None


class Deployed(NamedTuple):
    """What the daemons run: the endpoints of their files, by tenant and name, and who is alive."""

    specs: dict[tuple[str, str], dict[str, Any]]
    daemons: tuple[Alive, ...]


class Fate(NamedTuple):
    """A row of `webhookd.event_status`; `endpoint` None when no endpoint has a row. `due_in` is in seconds."""

    event: int
    endpoint: str | None
    state: str
    attempts: int
    code: int | None
    error: str | None
    due_in: float | None


def _subscriber(
    tenant: str, name: str, events: bytes, filter_: bytes, data_filter: bytes | None, active: bool = True
) -> Subscriber:
    wanted = {key: tuple(values) for key, values in orjson.loads(filter_).items()}
    conditions: tuple[Condition, ...] = ()
    if data_filter:
        with suppress(ValueError):  # of a newer version, while both run
            conditions = compiled(orjson.loads(data_filter))
    return Subscriber(tenant, name, tuple(orjson.loads(events)), wanted, conditions, active)


def _owed(row: Any) -> Owed:
    *columns, active, removed, disabled, paused, failing = row
    state = EndpointState.of(active=active, removed=removed, disabled=disabled, paused=paused, failing=failing)
    found = Owed._make((*columns, state))
    return found if state in SENT_TO else found._replace(due_in=None)


class Reports:
    """Questions that change nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def status(self, dead_after: float) -> Status:
        """Everything at once; a daemon counts as alive when it beat less than `dead_after` seconds ago."""
        async with self._database.snapshot() as connection:
            return Status(
                Waiting._make((await connection.fetch(QUERIES["status_waiting"]))[0]),
                Waiting._make((await connection.fetch(QUERIES["status_scheduled"]))[0]),
                Batches._make((await connection.fetch(QUERIES["status_open"]))[0]),
                Health._make((await connection.fetch(QUERIES["status_health"]))[0]),
                tuple(map(Alive._make, await connection.fetch(QUERIES["status_daemons"], dead_after))),
                tuple(map(_owed, await connection.fetch(QUERIES["status_endpoints"], LOOKED_AT))),
                tuple(map(Alive._make, await connection.fetch(QUERIES["status_silent"], dead_after))),
            )

    async def deployed(self, dead_after: float) -> Deployed:
        """What runs, on a schema that this binary knows; a daemon is alive that beat less than `dead_after` s ago."""
        async with self._database.snapshot() as connection:
            rows = await connection.fetch(QUERIES["deployed"])
            daemons = await connection.fetch(QUERIES["status_daemons"], dead_after)
        return Deployed({(row[0], row[1]): orjson.loads(row[2]) for row in rows}, tuple(map(Alive._make, daemons)))

    async def subscribers(self, dead_after: float) -> list[Subscriber] | None:
        """The endpoints that are owed new events, or None when no daemon is alive to hand any out."""
        async with self._database.snapshot() as connection:
            rows = await connection.fetch(QUERIES["subscribers"])
            daemons = await connection.fetch(QUERIES["status_daemons"], dead_after)
        if not daemons:
            return None
        return [_subscriber(*row) for row in rows]

    async def made_by_api(self) -> list[Subscriber]:
        """The endpoints that tenants have made, whether they are active or not."""
        return [_subscriber(*row) for row in await self._database.fetch(QUERIES["made_by_api"])]

    async def of_tenant(self, tenant: str) -> list[Subscriber]:
        """The endpoints that get events of a tenant, whether they are active or not."""
        return [_subscriber(*row) for row in await self._database.fetch(QUERIES["subscribers_of"], tenant)]

    async def fates(self, event_id: str) -> list[tuple[Event, list[Fate]]]:
        """The events of this id, in order, usually one, and what became of each.

        Of a damaged row an event has its numbers alone; it has no metadata for a role that may not read them.
        """
        try:
            return await self._fates("events_of" if await self.sees_metadata() else "events_without_metadata", event_id)
        except StoreRefused:
            return await self._fates("ids_of", event_id)

    async def with_payload(self, event: Event, among: Iterable[matching.Subscriber]) -> Event:
        """The event with its payload, where one of these asks for it and this role may read it."""
        if not any(each.data_filter for each in among):
            return event
        try:
            row = await self._database.fetch_row(QUERIES["payload_of"], event.id, MOST_BYTES)
        except (StoreRefused, StoreForbidden, StoreDamaged):
            return event
        return event._replace(payload=row[0])

    async def sees_metadata(self) -> bool:
        """True when this role may read the metadata of events."""
        return bool((await self._database.fetch_row(QUERIES["sees_metadata"]))[0])

    async def _fates(self, events_of: str, event_id: str) -> list[tuple[Event, list[Fate]]]:
        async with self._database.snapshot() as connection:
            events = [Event(*row) for row in await connection.fetch(QUERIES[events_of], event_id)]
            fates = [Fate._make(row) for row in await connection.fetch(QUERIES["fates"], event_id)]
        return [(event, [fate for fate in fates if fate.event == event.id]) for event in events]

    async def mark(self) -> Mark:
        """Now."""
        return Mark._make(await self._database.fetch_row(QUERIES["mark"]))

    async def endpoint_ids(self) -> dict[tuple[str, str], int]:
        """(tenant, name) -> number of each endpoint."""
        return {(row[1], row[2]): row[0] for row in await self._database.fetch(QUERIES["endpoint_ids"])}

    async def pulse(self, endpoint_ids: Sequence[int], since: Mark) -> dict[int, Pulse]:
        """What each of these endpoints met since then."""
        rows = await self._database.fetch(QUERIES["pulse"], endpoint_ids, since.at)
        return {row[0]: Pulse._make(tuple(row)[1:]) for row in rows}

    async def events(self, since: Mark) -> int:
        """Events in the outbox since then."""
        return int((await self._database.fetch_row(QUERIES["events_since"], since.event))[0])

    async def unsettled(self, since: Mark) -> int:
        """Events since then that a batch or the backlog still has to see through."""
        return int((await self._database.fetch_row(QUERIES["unsettled"], since.event, since.batch))[0])

    async def account(self, endpoint_ids: Sequence[int], since: Mark) -> AsyncIterator[Account]:
        """Each event since then with each of these endpoints, whether it is owed to it or not."""
        arguments: tuple[Any, ...] = (since.event, since.batch, endpoint_ids)
        async with self._database.transaction(readonly=True) as connection:
            async for row in connection.cursor(QUERIES["account"], *arguments, prefetch=5000):
                *event, endpoint_id, state = row
                yield Account(Event(*event), endpoint_id, state)
