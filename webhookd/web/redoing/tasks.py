"""Work that goes on after it was answered: replays, and tests that take long."""

import struct
from typing import Final

import orjson

from webhookd.store import documents, messages, replays, shots, tenants
from webhookd.store.replays import State
from webhookd.store.shots import Wishes
from webhookd.web import lists
from webhookd.web.marks import Marks
from webhookd.web.operation import Answer, Call
from webhookd.web.problem import not_found
from webhookd.web.redoing.shapes import Task, TaskListing, TaskOut, TaskPage

REPLAY, TEST, RESEND = 5, 6, 7  # kinds of marks
PREFIX: Final = "qtask_"
_SHAPE: Final = struct.Struct(">B11xQ")
OF: Final[dict[Task, tuple[State, ...]]] = {
    "endpoint.recover": ("failed",),
    "endpoint.replay": ("missed",),
    "endpoint.bulk-replay": ("all", "delivered", "discarded", "exhausted", "rejected"),
}
_TASK: Final = {state: task for task, states in OF.items() for state in states}
_STATES: Final = {"running": ["running"], "finished": ["done"], "failed": ["cancelled"]}


async def get(call: Call) -> Answer:
    """One, as far as it is."""
    marks = Marks(await messages.key(call.connection))
    found = None
    if (number := number_of(marks, REPLAY, call.path["task_id"])) is not None:
        found = await replays.task(call.connection, number)
        if found is not None and await _may_see(call, found.tenant):
            return Answer(200, shown(marks, found))
    number = number_of(marks, TEST, call.path["task_id"])
    if number is not None and (test := await tests(call, marks, number)) is not None:
        return Answer(200, test)
    number = number_of(marks, RESEND, call.path["task_id"])
    if number is not None and (resend := await _resend(call, marks, number)) is not None:
        return Answer(200, resend)
    raise not_found("task")


async def all_of(call: Call) -> Answer:
    """A page of them, but for tests."""
    query: TaskListing = call.query
    marks, at = Marks(await messages.key(call.connection)), lists.place(query)
    number = None if at.after is None else number_of(marks, REPLAY, at.after)
    if at.after is not None and number is None:
        raise lists.bad_iterator()
    found = await replays.tasks(
        call.connection,
        query.limit,
        number,
        back=at.back is not (query.order == "ascending"),
        states=None if query.status is None else _STATES[query.status],
        of=None if query.task is None else OF[query.task],
    )
    rows, more = lists.page(found, query.limit, at)
    data = [shown(marks, each) for each in rows]
    iterator, before, done = lists.iterators([each.id for each in data], more, at)
    return Answer(200, TaskPage(data=data, iterator=iterator, prev_iterator=before, done=done))


async def tests(call: Call, marks: Marks, first: int) -> TaskOut | None:
    """The tests that were begun with this shot; None where there are none, or not for this caller."""
    begun = await shots.examples(call.connection, first)
    if begun is None or not await _may_see(call, begun.tenant):
        return None
    ended = {each.id: each for each in await Wishes(call.connection, "", 0).ended([shot for shot, _ in begun.types])}
    tests = [(type_, ended[shot]) for shot, type_ in begun.types if shot in ended]
    return TaskOut(
        id=id_of(marks, TEST, first),
        status="finished" if len(ended) == len(begun.types) else "running",
        task="endpoint.replay",
        updated_at=begun.at,
        data={"kind": "test", "endpointId": begun.endpoint, **documents.tested(begun.at, tests)["data"]},
    )


async def _resend(call: Call, marks: Marks, shot: int) -> TaskOut | None:
    """A resend, and what came of it."""
    wanted = await shots.wanted(call.connection, shot)
    if wanted is None or not await _may_see(call, wanted.tenant):
        return None
    return TaskOut(
        id=id_of(marks, RESEND, shot),
        status="running" if wanted.ok is None else "finished" if wanted.ok else "failed",
        task="endpoint.replay",
        updated_at=wanted.at,
        data={
            "kind": "resend",
            "endpointId": wanted.endpoint,
            "msgId": wanted.event_id,
            "status": wanted.code,
            "error": wanted.error,
        },
    )


def shown(marks: Marks, task: replays.Task) -> TaskOut:
    """As who has begun it sees it."""
    query = orjson.loads(task.query)
    return TaskOut(
        id=id_of(marks, REPLAY, task.id),
        status="running" if task.state == "running" else "finished" if task.state == "done" else "failed",
        task=_TASK[query["state"]],
        updated_at=task.updated_at,
        data={
            "kind": "replay",
            "endpointId": task.endpoint,
            "createdAt": task.created_at,
            "messagesSent": task.sent,
            "messagesGone": task.gone,
            "progress": round(task.part, 3),
        },
    )


def id_of(marks: Marks, kind: int, number: int) -> str:
    """The id of the task with this number."""
    return PREFIX + marks.wide(kind, _SHAPE.pack(kind, number))


def number_of(marks: Marks, kind: int, id_: str) -> int | None:
    """The number again; None for what is no id of this kind."""
    content = marks.content(kind, id_.removeprefix(PREFIX)) if id_.startswith(PREFIX) else None
    if content is None:
        return None
    found, number = _SHAPE.unpack(content)
    is_ours = found == kind and _SHAPE.pack(found, number) == content and number < 1 << 63
    return number if is_ours else None


async def _may_see(call: Call, key: str) -> bool:
    """True when the caller sees what is of the tenant with this key."""
    if call.caller.tenant is None:
        return True
    tenant = await tenants.find(call.connection, call.caller.tenant)
    return tenant is not None and tenant.key == key
