"""Attempts shown: of an endpoint, of a message, or one; and what was answered to one forgotten."""

from collections.abc import Sequence

from webhookd.store import attempts, messages
from webhookd.store.attempts import EARLIER, Called, Place, Which
from webhookd.web import lists
from webhookd.web.attempts.shapes import (
    ATTEMPT,
    ATTEMPTS,
    PREFIX,
    STATUS,
    AttemptListing,
    AttemptPage,
    marked,
    place_of,
    shown,
    states_of,
)
from webhookd.web.endpoints import finding
from webhookd.web.marks import Marks
from webhookd.web.operation import Answer, Call
from webhookd.web.problem import not_found


async def of_endpoint(call: Call) -> Answer:
    """A page of what was tried at an endpoint."""
    found = await finding.seen(call)
    return await _page(call, Which(found.id))


async def of_message(call: Call) -> Answer:
    """A page of what was tried of a message."""
    query: AttemptListing = call.query
    events = await called(call)
    endpoint = None if query.endpoint_id is None else (await finding.seen(call, query.endpoint_id)).id
    return await _page(call, Which(endpoint, [each.id for each in events]), events)


async def get(call: Call) -> Answer:
    """One."""
    marks, place = await _place(call)
    events = await called(call)
    numbers = [each.id for each in events]
    tried = await attempts.get(call.connection, call.of, numbers, place, shared=call.caller.tenant is None)
    if tried is None:
        raise not_found("attempt")
    return Answer(200, shown(marks, tried))


async def expunge(call: Call) -> Answer:
    """Forget what was answered to one."""
    _, place = await _place(call)
    events = await called(call)
    if not await attempts.expunge(call.connection, call.of, events[0].event_id, place):
        raise not_found("attempt")
    return Answer(204)


async def called(call: Call) -> list[Called]:
    """The events of the path. Problem 404 where there is none."""
    found = await attempts.called(call.connection, call.of, call.path["msg_id"])
    if not found:
        raise not_found("message")
    return [each for each in found if each.event_id == found[0].event_id]


async def _place(call: Call) -> tuple[Marks, Place]:
    marks = Marks(await messages.key(call.connection))
    place = place_of(marks, ATTEMPT, call.path["attempt_id"].removeprefix(PREFIX))
    if place is None:
        raise not_found("attempt")
    return marks, place


async def _page(call: Call, which: Which, events: Sequence[Called] = ()) -> Answer:
    query: AttemptListing = call.query
    marks, at = Marks(await messages.key(call.connection)), lists.place(query)
    place = None if at.after is None else place_of(marks, ATTEMPTS, at.after)
    if at.after is not None and place is None:
        raise lists.bad_iterator()
    since = query.after
    if events:  # no attempt is older than its event
        earliest = min(each.created_at for each in events) - EARLIER
        since = earliest if since is None else max(since, earliest)
    which = which._replace(
        since=since, until=query.before, code_class=query.status_code_class, types=query.event_types,
        channel=query.channel, tag=query.tag,
    )  # fmt: skip
    states = states_of(query)
    if states is not None:  # an attempt went well or not; what waits has none
        which = which._replace(ok=query.status == STATUS["delivered"])
    if states is not None and not {"delivered", "exhausted"} & set(states):
        return Answer(200, AttemptPage(data=[], iterator=None, prev_iterator=None, done=True))
    rows, edge = await attempts.page(
        call.connection, call.of, which, query.limit, place,
        back=at.back, shared=call.caller.tenant is None, content=query.with_content,
    )  # fmt: skip
    if at.back:
        rows.reverse()
    keys = [marked(marks, ATTEMPTS, each.place) for each in rows]
    iterator, before, done = lists.iterators(keys, edge is not None, at, edge and marked(marks, ATTEMPTS, edge))
    if not rows and place is not None:  # what was looked at did not fit: the other way goes back to where this began
        beside = marked(marks, ATTEMPTS, _beside(place, later=at.back))
        iterator, before = (beside, before) if at.back else (iterator, f"~{beside}")
    data = [shown(marks, each) for each in rows]
    return Answer(200, AttemptPage(data=data, iterator=iterator, prev_iterator=before, done=done))


def _beside(place: Place, *, later: bool) -> Place:
    """A place between which and this one there is nothing, in the order of places."""
    return place._replace(number=place.number + 1 if later else max(place.number - 1, 0))
