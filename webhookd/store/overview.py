"""What the database says of how things stand, as monitoring wants it: bounded questions, and pages of endpoints."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from webhookd.policy.endpoint_state import EndpointState
from webhookd.store.database import Database
from webhookd.store.statements import QUERIES

PAGE: Final = 250  # endpoints of one question, whose rows hold up the loop for a millisecond, or some where it is slow
LOOKED_AT: Final = 10_000  # events of the log at most, to count what waits behind cursors


class Each(NamedTuple):
    """An endpoint: what it is owed, of what waits behind a cursor some, and the age of the oldest in seconds."""

    id: int
    tenant: str
    name: str
    state: EndpointState
    owed: int
    oldest: float | None
    behind: float | None  # by which its cursor lags, where something may be there for it


class Overview(NamedTuple):
    """The rows of the backlog by state, endpoints by state, and each of them by number, or only their numbers."""

    outbox_bytes: int
    backlog: Mapping[str, float]
    states: Mapping[EndpointState, int]
    endpoints: tuple[Each, ...]
    ids: frozenset[int]


Health = Mapping[str, float | None]


async def health(database: Database) -> Health:
    """The numbers of the view `health`, by its columns."""
    return dict(await database.fetch_row(QUERIES["overview_health"]))


async def overview(database: Database, *, endpoints: bool, before: Overview | None = None) -> Overview:
    """How things stand; not of each endpoint, unless that is wanted. Several questions, each at its own moment.

    What is as it was `before` is the same object: ten thousand new ones are what Python's garbage collection stops for.
    """
    known = {} if before is None else {each.id: each for each in before.endpoints}
    size = await database.fetch_row(QUERIES["overview_outbox"])
    backlog = {row[0]: row[1] for row in await database.fetch(QUERIES["overview_backlog"])}
    # Of some there is more than was looked at, which may be for them.
    parked = {row[0]: row[1] for row in await database.fetch(QUERIES["overview_parked"], LOOKED_AT)}
    states = dict.fromkeys(EndpointState, 0)
    found: list[Each] = []
    ids: set[int] = set()
    last = 0
    while rows := await database.fetch(QUERIES["overview_endpoints" if endpoints else "overview_states"], last, PAGE):
        for row in rows:
            each = _each(row, parked)
            states[each.state] += 1
            ids.add(each.id)
            if endpoints:
                found.append(old if (old := known.get(each.id)) == each else each)
        last = rows[-1][0]
        await asyncio.sleep(0)
    return Overview(int(size[0]), backlog | {"parked": sum(parked.values())}, states, tuple(found), frozenset(ids))


def _each(row: Any, parked: Mapping[int, int]) -> Each:
    id_, tenant, name, active, disabled, paused, failing, owed, oldest, behind = row
    state = EndpointState.of(active=active, removed=False, disabled=disabled, paused=paused, failing=failing)
    if id_ not in parked:  # nothing there is for it, however old that is
        behind = None
    elif behind is not None:
        oldest = max(oldest or 0.0, behind)
    return Each(id_, tenant, name, state, owed + parked.get(id_, 0), oldest, behind)
