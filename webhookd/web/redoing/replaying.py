"""A part of what there was, once more: what failed, what was missed, or what is chosen."""

from typing import Final

import orjson

from webhookd.store import messages, replays
from webhookd.store.replays import Narrowed, State, Wanted
from webhookd.web.endpoints import finding
from webhookd.web.marks import Marks
from webhookd.web.operation import Answer, Call
from webhookd.web.problem import conflict, not_found
from webhookd.web.redoing import tasks
from webhookd.web.redoing.shapes import BegunOut, BulkReplayIn, SpanIn, TaskOut

RATE: Final = 50.0  # a second, as `webhookd replay` without --rate
_STATE: Final[dict[int | None, State]] = {None: "all", 0: "delivered", 2: "failed", 4: "discarded"}


async def recover(call: Call) -> Answer:
    """Send again what failed."""
    return await _begin(call, "failed", call.body, Narrowed())


async def replay_missing(call: Call) -> Answer:
    """Send what was neither sent nor is owed."""
    return await _begin(call, "missed", call.body, Narrowed())


async def bulk_replay(call: Call) -> Answer:
    """Send again what is chosen."""
    given: BulkReplayIn = call.body
    labels = {key: [word] for key, word in (("channels", given.channel), ("tags", given.tag)) if word is not None}
    narrowed = Narrowed(given.event_types or None, orjson.dumps(labels) if labels else None, given.status_code_class)
    return await _begin(call, _STATE[given.status], given, narrowed)


async def again(call: Call, made: str | None, status: int) -> Answer:
    """The one that was begun, as far as it is."""
    marks = Marks(await messages.key(call.connection))
    number = tasks.number_of(marks, tasks.REPLAY, made or "")
    found = None if number is None else await replays.task(call.connection, number)
    if found is None:
        raise not_found("task")
    return Answer(status, _begun(tasks.shown(marks, found)), made)


async def _begin(call: Call, state: State, given: SpanIn, narrowed: Narrowed) -> Answer:
    found = await finding.found(call)
    finding.expect_sent_to(found)
    since = given.since if call.of.since is None else max(given.since, call.of.since)
    wanted = Wanted(state, None, since, given.until)
    begun = await replays.begin(call.connection, [found.id], wanted, RATE, call.caller.name, narrowed)
    if found.id not in begun:
        raise conflict("A replay to this endpoint is running: wait for its end.", "replay_running")
    marks = Marks(await messages.key(call.connection))
    task = await replays.task(call.connection, begun[found.id])
    if task is None:
        raise not_found("endpoint")
    shown = tasks.shown(marks, task)
    return Answer(202, _begun(shown), shown.id)


def _begun(task: TaskOut) -> BegunOut:
    return BegunOut(id=task.id, status=task.status, task=task.task, updated_at=task.updated_at)
