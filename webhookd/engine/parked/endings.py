"""How being parked ends: for endpoints that recover, and for deliveries whose time is over."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from webhookd.engine.dispatch.feeds import Feed
from webhookd.engine.dispatch.queues import SPILLED_MOST
from webhookd.engine.given_up import GivenUp
from webhookd.engine.parked.cursors import Cursors, first
from webhookd.engine.state import Subscriptions
from webhookd.model import Endpoint
from webhookd.policy import breaker
from webhookd.policy.parking import Parked
from webhookd.tasks import in_slices

GIVE_UP_LOOKS = 120  # looks, which is a minute: how often we see whose time is over behind an endpoint that fails
GIVE_UP_AT_ONCE = 50  # endpoints in one statement, in one look: a pause waits for it
AT_A_TIME = 100  # endpoints that are looked at before others have their turn on the loop
NEAR = 20  # batches from the end of the log at which an endpoint becomes live again

log = structlog.get_logger("webhookd.follower")


class Store(Protocol):
    """What is asked and written of endpoints that are parked."""

    async def newest(self) -> int: ...
    async def breakers(self, breakers: dict[int, tuple[int, float]], owner: int) -> None: ...
    async def give_up(self, endpoints: Sequence[tuple[int, int, float]], owner: int) -> dict[int, int]: ...
    async def owing_little(self, endpoint_ids: Sequence[int], most: int) -> set[int]: ...
    async def unpark(self, epochs: dict[int, int], owner: int) -> int: ...
    async def unpark_idle(self, endpoint_ids: Sequence[int]) -> None: ...


class Dispatcher(Protocol):
    """What is known of endpoints."""

    def breaker(self, endpoint_id: int) -> tuple[int, float]: ...
    def is_well(self, endpoint_id: int) -> bool: ...
    def rests(self, endpoint_id: int) -> None: ...


class Endings:
    """Looks after those that we send to.

    `owes(endpoint id)` says whether its backlog has something that is due, and `over_before(endpoint)` is the moment
    before which the time of its deliveries is over. `rows()` are all that are parked: asked for each time, since the
    reader, too, has them read anew.
    """

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        cursors: Cursors,
        subscriptions: Subscriptions,
        owes: Callable[[int], bool],
        over_before: Callable[[Endpoint], float],
        rows: Callable[[], Sequence[Parked]],
        look_seconds: float,
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._cursors = cursors
        self._subscriptions = subscriptions
        self._owes = owes
        self._over_before = over_before
        self._rows = rows
        self._look_seconds = look_seconds
        self._give_up_at = 0.0
        self._giving_up: list[int] = []  # endpoints, by what is left of this minute's
        self._given_up = GivenUp()
        self._noted: dict[int, int] = {}  # failures of an endpoint's breaker, as the database has them

    def note(self, row: Parked) -> None:
        """It is parked, and we send to it."""
        self._noted.setdefault(row.endpoint_id, row.fails)

    def keep(self) -> None:
        """Forget those that we do not send to any longer."""
        fed = self._cursors.fed
        self._noted = {id_: fails for id_, fails in self._noted.items() if id_ in fed and fed[id_].feed is Feed.CURSOR}

    def close(self) -> None:
        """Tell what is left to be told."""
        self._given_up.close()

    async def look(self) -> bool:
        """See to all that are parked; True when some are no longer."""
        newest = await self._store.newest()
        await self._let_rest(newest)
        await self._note_breakers()
        await self._give_up()
        return await self._end(newest)

    async def _let_rest(self, newest: int) -> None:
        """Say which of those that failed are owed nothing more, `newest` being the last batch of the log."""
        failing = [id_ for id_, fails in self._noted.items() if fails]
        owed = first(self._cursors, newest).keys() | {c.endpoint_id for c in self._cursors if not c.is_settled}
        async for id_ in in_slices(failing, AT_A_TIME):
            if id_ not in owed and not self._owes(id_):
                self._dispatcher.rests(id_)

    async def _note_breakers(self) -> None:
        """Write what has changed of the breakers, for whoever takes the endpoints over."""
        changed = {}
        async for id_, fails in in_slices(list(self._noted.items()), AT_A_TIME):
            state = self._dispatcher.breaker(id_)
            if state[0] != fails:
                changed[id_] = state
        if changed:
            await self._store.breakers(changed, self._subscriptions.me)
            self._noted |= {id_: fails for id_, (fails, _) in changed.items()}

    async def _give_up(self) -> None:
        """End what has waited for its whole time behind endpoints that fail; of some of them at a time."""
        if not self._giving_up and time.monotonic() >= self._give_up_at:
            self._give_up_at = time.monotonic() + GIVE_UP_LOOKS * self._look_seconds
            self._giving_up = [id_ for id_, fails in self._noted.items() if fails]
        some, self._giving_up = set(self._giving_up[:GIVE_UP_AT_ONCE]), self._giving_up[GIVE_UP_AT_ONCE:]
        over = []
        async for row in in_slices(self._rows() if some else (), AT_A_TIME):
            endpoint = self._subscriptions.endpoint(row.endpoint_id) if row.endpoint_id in some else None
            if endpoint is None or row.to_batch is not None or not self._noted.get(row.endpoint_id) or endpoint.holds:
                continue
            # Later than its time by two probes, so that what was due on its horizon has had its last chance.
            if (before := self._over_before(endpoint) - 2 * breaker.PROBE_MOST) > row.resumed_at:
                over.append((row.endpoint_id, row.epoch, before))
        for id_, ended in (await self._store.give_up(over, self._subscriptions.me)).items() if over else ():
            endpoint = self._subscriptions.endpoint(id_)
            label = f"#{id_}" if endpoint is None else endpoint.label
            self._given_up.add("exhausted", label, None, "endpoint_failing", ended)

    def _is_ordered(self, endpoint_id: int) -> bool:
        endpoint = self._subscriptions.endpoint(endpoint_id)
        return endpoint is not None and bool(endpoint.ordered)

    async def _end(self, newest: int) -> bool:
        """Let those be live again that are well and near the end."""
        idle, well = [], {}
        upcoming = first(self._cursors, newest)
        async for row in in_slices(self._rows(), AT_A_TIME):
            if row.to_batch is not None or row.is_halted:
                continue
            cursor = self._cursors.get((row.endpoint_id, row.from_batch))
            if row.idle:
                idle.append(row.endpoint_id)
            elif (
                cursor is not None
                and not self._is_ordered(row.endpoint_id)
                and upcoming.get(row.endpoint_id, cursor) is cursor  # none of an older range has more
                and cursor.batch > newest - NEAR
                and self._dispatcher.is_well(row.endpoint_id)
                and not self._noted.get(row.endpoint_id)  # else nobody would be told that it has recovered
            ):
                well[row.endpoint_id] = row.epoch
        if well:
            little = await self._store.owing_little(list(well), SPILLED_MOST // 2)
            well = {id_: epoch for id_, epoch in well.items() if id_ in little}
        if idle:
            await self._store.unpark_idle(idle)
        unparked = await self._store.unpark(well, self._subscriptions.me) if well else 0
        if unparked:
            log.info("unparked", endpoints=unparked)
        return bool(idle or unparked)
