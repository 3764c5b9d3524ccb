"""Deliveries shown: the messages of an endpoint, and the endpoints of a message, each with what became of it there."""

from typing import Final

from webhookd.store import attempts, messages
from webhookd.store.attempts import Delivery, Events
from webhookd.web import lists
from webhookd.web.attempts.reading import called
from webhookd.web.attempts.shapes import (
    DELIVERIES,
    DeliveryListing,
    DeliveryPage,
    DestinationListing,
    DestinationOut,
    DestinationPage,
    became,
    delivery,
    states_of,
)
from webhookd.web.endpoints import finding
from webhookd.web.endpoints.operations import shown as endpoint
from webhookd.web.marks import Marks
from webhookd.web.messages.shapes import as_object
from webhookd.web.operation import Answer, Call

BYTES: Final = 8 << 20  # of payloads on a page, but for one


async def messages_of(call: Call) -> Answer:
    """A page of the messages that an endpoint was owed, the newest first; of those that wait, too."""
    query: DeliveryListing = call.query
    found = await finding.seen(call)
    marks, at = Marks(await messages.key(call.connection)), lists.place(query)
    number = None if at.after is None else marks.number(DELIVERIES, at.after)
    if at.after is not None and number is None:
        raise lists.bad_iterator()
    which = Events(query.after, query.before, query.event_types, query.channel, query.tag)
    rows, edge = await attempts.of_endpoint(
        call.connection, call.of, which, found.id, states_of(query), query.limit, number, back=at.back
    )
    if query.with_content and len(fit := _fitting(rows)) < len(rows):
        rows, edge = fit, fit[-1].id
    said = await attempts.payloads(call.connection, rows) if query.with_content and rows else {}
    if at.back:
        rows.reverse()
    keys = [marks.mark(DELIVERIES, each.id) for each in rows]
    behind = None if edge is None else marks.mark(DELIVERIES, edge)
    iterator, before, done = lists.iterators(keys, edge is not None, at, behind)
    if not rows and number is not None:
        iterator = marks.mark(DELIVERIES, number + 1) if at.back else iterator
        before = before if at.back else f"~{marks.mark(DELIVERIES, max(number - 1, 0))}"
    data = [
        delivery(each, as_object(said[each.id]) if each.id in said else {}, expanded=query.expanded_statuses)
        for each in rows
    ]
    return Answer(200, DeliveryPage(data=data, iterator=iterator, prev_iterator=before, done=done))


async def endpoints_of(call: Call) -> Answer:
    """A page of the endpoints that a message was owed."""
    query: DestinationListing = call.query
    (event, *_), at = await called(call), lists.place(query)
    found = await attempts.of_event(
        call.connection, call.of, event, query.limit, at.after, back=at.back, shared=call.caller.tenant is None
    )
    rows, more = lists.page(found, query.limit, at)
    iterator, before, done = lists.iterators([each.endpoint.name for each in rows], more, at)
    data = [
        DestinationOut(**dict(endpoint(call, each.endpoint)), **became(each, expanded=query.expanded_statuses))
        for each in rows
    ]
    return Answer(200, DestinationPage(data=data, iterator=iterator, prev_iterator=before, done=done))


def _fitting(rows: list[Delivery]) -> list[Delivery]:
    """As many as have no more payload than a page may have; one at least."""
    size = 0
    for count, each in enumerate(rows):
        size += each.size
        if size > BYTES and count:
            return rows[:count]
    return rows
