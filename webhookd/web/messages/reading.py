"""Messages shown: one by its id or by what its caller calls it, and pages of them, the newest first."""

from datetime import datetime
from typing import Final

from pydantic import AwareDatetime

from webhookd.store import messages, shots
from webhookd.store.messages import Message, Which
from webhookd.web import lists
from webhookd.web.marks import Marks
from webhookd.web.messages.shapes import Channel, Content, MessagePage, Tag, shown
from webhookd.web.operation import Answer, Call
from webhookd.web.problem import not_found
from webhookd.web.shapes import Listed, Many

MARK: Final = 1  # of an iterator of messages


class Listing(Listed, Content):
    """Which messages, and what is shown of them."""

    event_types: Many | None = None
    """Of these types only."""
    channel: Channel | None = None
    """With this channel."""
    tag: Tag | None = None
    """With this tag."""
    after: AwareDatetime | None = None
    """Not before this moment."""
    before: AwareDatetime | None = None
    """Before this moment."""


async def get(call: Call) -> Answer:
    """One."""
    content = call.query.with_content
    found = await messages.find(call.connection, call.of.key, call.of.since, call.path["msg_id"], with_payload=content)
    if found is None:
        found = await example(call, call.path["msg_id"])
    if found is None:
        raise not_found("message")
    return Answer(200, shown(found, content=content))


async def example(call: Call, event_id: str) -> Message | None:
    """An example that was sent to an endpoint of the tenant, as a message."""
    found = await shots.example(call.connection, call.of.key, event_id)
    if found is None or (call.of.since is not None and found.created_at < call.of.since):
        return None
    return Message(found.event_id, found.type, found.created_at, None, None, None, found.payload)


async def all_of(call: Call) -> Answer:
    """A page of them, of which some may be on the next where they are large, or few of those that there are fit."""
    query: Listing = call.query
    marks = Marks(await messages.key(call.connection))
    at = lists.place(query)
    number = None if at.after is None else marks.number(MARK, at.after)
    if at.after is not None and number is None:
        raise lists.bad_iterator()
    since = _later(query.after, call.of.since)
    which = Which(since, query.before, query.event_types, query.channel, query.tag)
    rows, edge = await messages.page(
        call.connection, call.of.key, which, query.limit, number, back=at.back, with_payload=query.with_content
    )
    if at.back:
        rows.reverse()
    keys = [marks.mark(MARK, number) for number, _ in rows]
    next_ = None if edge is None else marks.mark(MARK, edge)
    iterator, before, done = lists.iterators(keys, edge is not None, at, next_)
    if not rows and number is not None:  # what was looked at did not fit: the other way goes back to where this began
        iterator = marks.mark(MARK, number + 1) if at.back else iterator
        before = before if at.back else f"~{marks.mark(MARK, max(number - 1, 0))}"
    data = [shown(message, content=query.with_content) for _, message in rows]
    return Answer(200, MessagePage(data=data, iterator=iterator, prev_iterator=before, done=done))


async def expunge(call: Call) -> Answer:
    """Forget what it says, and what is owed of it."""
    if not await messages.expunge(call.connection, call.of.key, call.of.since, call.path["msg_id"]):
        raise not_found("message")
    return Answer(204)


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max(one, other) if one is not None and other is not None else one or other
