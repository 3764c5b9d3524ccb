"""What a polled endpoint is owed: from an iterator on, or from where a consumer has come to.

An iterator is the place behind what was answered. Who passes it has all before; a consumer's is kept for when it begins
anew. So nothing is lost where an answer is, and nothing comes twice but after that.
"""

from typing import Final, NamedTuple

from webhookd.engine.polled.reading import Item, Wanted
from webhookd.policy.polling import Place, is_same, packed, unpacked
from webhookd.store import consumers, messages
from webhookd.store.consumers import Consumer, Missed
from webhookd.store.database import Database
from webhookd.store.endpoints import Made
from webhookd.web.endpoints import finding
from webhookd.web.marks import Marks, marks
from webhookd.web.messages.shapes import as_object, labelled
from webhookd.web.operation import Answer, Call
from webhookd.web.polling.shapes import Consuming, MissedOut, PolledMessageOut, PolledOut, Polling, SeekOut
from webhookd.web.problem import Problem, conflict, not_found

ITERATOR: Final = 9  # of marks
RETENTION_LEAST: Final = 20 * 3600.0  # seconds: no younger batch is taken by retention
NAME_MOST: Final = 256  # characters of a consumer's


async def poll(call: Call) -> Answer:
    """A page, or what comes next."""
    query: Polling = call.query
    return await _answered(call, await _begun(call), Wanted(query.limit, query.event_type, query.channel))


async def consume(call: Call) -> Answer:
    """The same, from where this consumer has come to; the iterator that it passes is where."""
    query: Consuming = call.query
    return await _answered(call, await _begun_as(call, consumer_name(call)), Wanted(query.limit))


async def seek(call: Call) -> Answer:
    """Let a consumer begin with what came from a moment on."""
    found, name = await polled(call), consumer_name(call)
    at = await consumers.since(call.connection, call.body.after.timestamp())
    await _put(call, found, name, at)
    return _sought(found, marks(await messages.key(call.connection)), at.place)


async def sought(call: Call, made: str | None, status: int) -> Answer:
    """Where it was let begin, or has come to since."""
    found = await polled(call)
    known = await consumers.find(call.connection, found.id, consumer_name(call))
    if known is None:
        raise not_found("consumer")
    return _sought(found, marks(await messages.key(call.connection)), known.place)


async def polled(call: Call) -> Made:
    """The endpoint of the path, if it is polled, and this caller may. Problem 404 or 409."""
    found = await finding.seen(call)
    if call.caller.endpoint not in (None, found.id):
        raise not_found("endpoint")
    finding.expect_polled(found)
    return found


def consumer_name(call: Call) -> str:
    """The consumer of the path. Problem 400 for one that is too long."""
    name = call.path["consumer_id"]
    if len(name) > NAME_MOST:
        raise Problem(400, "bad_consumer", f"A consumer's name has {NAME_MOST} characters at most.")
    return name


class _Begun(NamedTuple):
    """Where a poller of an endpoint begins. While he waits this is all that is kept of what was read."""

    endpoint_id: int
    marks: Marks
    at: Consumer


async def _begun(call: Call) -> _Begun:
    query: Polling = call.query
    found, its = await polled(call), marks(await messages.key(call.connection))
    if query.iterator is None and query.after is not None:
        return _Begun(found.id, its, await consumers.since(call.connection, query.after.timestamp()))
    return _Begun(found.id, its, await _begin(call, found, its, query.iterator, None))


async def _begun_as(call: Call, name: str) -> _Begun:
    query: Consuming = call.query
    found, its = await polled(call), marks(await messages.key(call.connection))
    known = await consumers.find(call.connection, found.id, name)
    at = await _begin(call, found, its, query.iterator, known)
    if at != known:
        await _put(call, found, name, at)
    else:
        await consumers.used(call.connection, found.id, name)
    return _Begun(found.id, its, at)


async def _put(call: Call, found: Made, name: str, at: Consumer) -> None:
    if not await consumers.put(call.connection, found.id, name, at):
        raise conflict(f"The endpoint has {consumers.MOST:,} consumers, which is the most.", "limit_reached")


async def _begin(call: Call, found: Made, its: Marks, iterator: str | None, known: Consumer | None) -> Consumer:
    """Where to begin: at the iterator, or where the consumer was, or with the oldest that there is."""
    if iterator is None:
        if known is None:
            return await _oldest(call, found)
        place, missed = known.place, known.missed
    else:
        place, missed = _place(its, iterator, found), None
        if known is not None and known.missed is not None and place[:2] < known.place[:2]:
            place, missed = known.place, known.missed  # retention has moved it on meanwhile, of which it is to be told
    cut_at = None if known is None else known.cut_at
    log = await consumers.log(call.connection, place.batch)
    if log.there is not None and is_same(place, log.there):
        at = Consumer(place._replace(nonce=log.there.nonce), log.there.cut_at, missed)
        if log.now - at.cut_at < RETENTION_LEAST:
            return at
        return await _behind_retention(call, at)
    if log.there is None and place.batch < log.last:  # retention has taken the batch itself
        return (await consumers.kept(call.connection))._replace(missed=missed) if missed else await _lost(call, cut_at)
    if cut_at is None:
        raise _stale()
    # After a failover the log is another from some moment on: what came since this one was there is read again.
    return (await consumers.since(call.connection, cut_at, cut=True))._replace(missed=missed)


def _place(its: Marks, iterator: str, found: Made) -> Place:
    """Where an iterator leads. Problem 400 for what is none, 404 for another endpoint's."""
    content = its.content(ITERATOR, iterator)
    if content is None:
        raise _stale()
    place, endpoint_id = unpacked(content)
    if endpoint_id != found.id:
        raise not_found("iterator")
    return place


def _stale() -> Problem:
    return Problem(
        400, "invalid_iterator", "The log has no such place; go on without an iterator, or with `after`, or seek."
    )


async def _oldest(call: Call, found: Made) -> Consumer:
    """With what came since the endpoint was made, as far as that is kept."""
    at = await consumers.since(call.connection, found.created_at.timestamp())
    kept = await consumers.kept(call.connection)
    return max(at, kept, key=lambda each: each.place.next_batch)


async def _behind_retention(call: Call, at: Consumer) -> Consumer:
    """There, or where retention has come to."""
    kept = await consumers.kept(call.connection)
    return at if at.place.next_batch >= kept.place.batch else await _lost(call, at.cut_at)


async def _lost(call: Call, since: float | None) -> Consumer:
    """Behind what retention has taken, and what that was: of it no more is known than when it was."""
    kept = await consumers.kept(call.connection)
    return kept._replace(missed=Missed(consumers.moment(since), consumers.moment(kept.cut_at)))


async def _answered(call: Call, begun: _Begun, wanted: Wanted) -> Answer:
    id_, its, at = begun
    polls, database = call.around.polls, call.connection
    if polls is None or polls.is_stopped or not isinstance(database, Database):
        headers = {"retry-after": "1", "connection": "close"}
        raise Problem(503, "not_ready", "This daemon begins or ends just now; try again soon.", headers)
    endpoint = polls.endpoint(id_)
    if endpoint is None:  # it may have been made a moment ago
        await polls.catch_up((await consumers.log(database, at.place.batch)).config)
        endpoint = polls.endpoint(id_)
    if endpoint is None:
        raise conflict("This daemon has not the key or the file that the endpoint needs; ask another.", "no_daemon")
    wait: float = call.query.wait
    read = await polls.page(endpoint, at.place, wanted, 0.0 if at.missed is not None else wait)
    lost = None if at.missed is None else MissedOut.of(*at.missed)
    iterator = its.wide(ITERATOR, packed(read.place, id_))
    data = [_shown(each) for each in read.items]
    return Answer(200, PolledOut(data=data, iterator=iterator, done=wait == 0 and read.at_end, missed=lost))


def _shown(item: Item) -> PolledMessageOut:
    channels, tags = labelled(item.content.metadata)
    return PolledMessageOut(
        id=item.event.event_id,
        event_id=item.content.alias,
        event_type=item.event.type,
        payload=as_object(item.body),
        channels=channels,
        tags=tags,
        timestamp=item.event.created_at,
        deliver_at=item.content.deliver_after,
        headers=dict(item.headers),
    )


def _sought(found: Made, its: Marks, place: Place) -> Answer:
    return Answer(200, SeekOut(iterator=its.wide(ITERATOR, packed(place, found.id))), found.name)
