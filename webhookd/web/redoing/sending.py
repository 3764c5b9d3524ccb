"""One request now, whatever else is or is not sent to its endpoint: a message again, or an example."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from webhookd.engine.janitor import BEAT_SECONDS, DEAD_AFTER_BEATS
from webhookd.ids import new_id
from webhookd.policy import examples
from webhookd.store import documents, event_types, messages, shots
from webhookd.store.endpoints import Made
from webhookd.store.messages import Message
from webhookd.store.shots import Wishes
from webhookd.web.attempts.reading import called
from webhookd.web.endpoints import finding, specs
from webhookd.web.marks import Marks
from webhookd.web.messages import reading
from webhookd.web.messages.shapes import shown
from webhookd.web.operation import Answer, Call
from webhookd.web.problem import Problem, conflict, not_found
from webhookd.web.redoing import tasks
from webhookd.web.redoing.shapes import ExampleIn, ResentOut, TestIn, TestOut

SECONDS: Final = 30.0  # in which a daemon has to take it
TEST_SECONDS: Final = 10.0  # that an answer waits for tests; client libraries give up at 15
LOOK_SECONDS: Final = 0.1
MOST: Final = 100  # tests at once
WAITING_MOST: Final = 200  # resends and tests of one endpoint
DEAD_AFTER: Final = BEAT_SECONDS * DEAD_AFTER_BEATS


async def resend(call: Call) -> Answer:
    """Want a message once more; its attempt says what came of it."""
    found = await finding.seen(call)
    (event, *_) = await called(call)
    wishes = await _wishes(call, found)
    asked = await wishes.resend([(found.id, event.id, event.created_at)])
    if not asked:
        raise conflict("The message is gone.", "event_gone")
    task = tasks.id_of(Marks(await messages.key(call.connection)), tasks.RESEND, asked[0][0])
    return Answer(202, ResentOut(task_id=task), task)


async def resent(call: Call, made: str | None, status: int) -> Answer:
    """It was wanted before."""
    return Answer(status, ResentOut(task_id=made or ""), made)


async def send_example(call: Call) -> Answer:
    """Want an example; it can be looked up as a message, and is in no list of them."""
    given: ExampleIn = call.body
    found = await finding.found(call)
    known = await _examples(call, [given.event_type])
    event_id, payload = new_id("msg_"), _payload(given.event_type, known)
    wishes = await _wishes(call, found)
    _, at = await wishes.test(found.id, [(event_id, given.event_type, payload)])
    return Answer(
        200, shown(Message(event_id, given.event_type, at, None, None, None, payload), content=True), event_id
    )


async def example_again(call: Call, made: str | None, status: int) -> Answer:
    """The one that was wanted."""
    found = await reading.example(call, made or "")
    if found is None:
        raise not_found("message")
    return Answer(status, shown(found, content=True), made)


async def test(call: Call) -> Answer:
    """Want examples of one type, or of all that the endpoint subscribes to."""
    given: TestIn = call.body
    found = await finding.found(call)
    types, known = await _types(call, found, given.event_type)
    wishes = await _wishes(call, found)
    wanted, _ = await wishes.test(found.id, [(new_id("msg_"), type_, _payload(type_, known)) for type_ in types])
    marks = Marks(await messages.key(call.connection))
    return Answer(202, None, tasks.id_of(marks, tasks.TEST, wanted[0]))


async def again(call: Call, made: str | None, status: int) -> Answer:
    """What was wanted, which is waited for again."""
    return Answer(status, None, made)


async def tested(call: Call, answer: Answer) -> Answer:
    """What came of the tests, or as far as they are after ten seconds."""
    marks = Marks(await messages.key(call.connection))
    first = tasks.number_of(marks, tasks.TEST, answer.made or "")
    begun = None if first is None else await shots.examples(call.connection, first)
    if first is None or begun is None:
        raise not_found("task")
    wishes = Wishes(call.connection, call.caller.name, SECONDS)
    until = min(time.monotonic() + TEST_SECONDS, call.until - 1)
    while True:
        ended = {each.id: each for each in await wishes.ended([shot for shot, _ in begun.types])}
        if len(ended) == len(begun.types):
            report = documents.tested(begun.at, [(type_, ended[shot]) for shot, type_ in begun.types])
            return Answer(200, TestOut(**report), answer.made)
        if time.monotonic() > until:
            break
        await asyncio.sleep(LOOK_SECONDS)
    found = await tasks.tests(call, marks, first)
    if found is None:
        raise not_found("task")
    return Answer(202, found, answer.made)


async def _wishes(call: Call, found: Made) -> Wishes:
    """For wanting something of an endpoint. Problem 409 where nobody could send it."""
    finding.expect_sent_to(found)
    wishes = Wishes(call.connection, call.caller.name, SECONDS)
    taker = (await wishes.takers([found.id], DEAD_AFTER)).get(found.id)
    if taker is None or not taker.counts or not taker.daemons:
        raise conflict("No live daemon sends to this endpoint now.", "no_daemon")
    if await wishes.waiting(found.id) >= WAITING_MOST:
        raise Problem(
            429, "too_many", "Many requests of this kind wait for the endpoint already.", {"retry-after": "5"}
        )
    return wishes


async def _types(call: Call, found: Made, named: str | None) -> tuple[Sequence[str], Mapping[str, Any]]:
    """Which types are tested, and the examples that there are."""
    if named is not None:
        return [named], await _examples(call, [named])
    patterns: Sequence[str] = specs.spec_of(found)["events"]
    registered = await event_types.fitting(call.connection, patterns, call.caller.flags, MOST)
    known = {**_of(registered), **call.around.examples}
    names = sorted({*examples.subscribed(patterns, call.around.event_types), *(each.name for each in registered)})
    return names[:MOST] or [examples.stand_in(patterns)], known


async def _examples(call: Call, types: Sequence[str]) -> Mapping[str, Any]:
    """Of these types, where somebody has given one: in a file, or in the schema of a type that the caller sees."""
    registered = await event_types.fitting(call.connection, types, call.caller.flags, MOST)
    return {**_of(registered), **call.around.examples}


def _of(registered: Sequence[event_types.EventType]) -> dict[str, Any]:
    """The first of the `examples` in the newest schema of each (JSON Schema 2020-12, validation, 9.5)."""
    found = {}
    for each in registered:
        schemas = orjson.loads(each.schemas) if each.schemas is not None else {}
        for version in sorted(schemas, key=_as_number, reverse=True):
            given = schemas[version].get("examples") if isinstance(schemas[version], dict) else None
            if isinstance(given, list) and given:
                found[each.name] = given[0]
                break
    return found


def _as_number(version: str) -> tuple[int, str]:
    return (int(version), "") if version.isdecimal() and len(version) < 10 else (-1, version)


def _payload(type_: str, known: Mapping[str, Any]) -> bytes:
    example_ = known.get(type_)
    return orjson.dumps(examples.made_up(type_, "the event type") if example_ is None else example_)
