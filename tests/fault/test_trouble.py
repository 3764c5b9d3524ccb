"""Whatever happens to the database: the daemons pause and resume, nothing is lost, and no attempt is burnt."""

import asyncio
import itertools
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

import psutil
import pytest

from tests.conftest import database, execute
from tests.fault.fleet import Receipt, fleet
from tests.fault.proxy import Proxy
from tests.fault.server import Server
from tests.fault.troubles import MORE, TROUBLES, Scene, Trouble
from tests.fault.verdict import ROLES, audit, judge, passings, wait_until_settled
from tests.fault.writers import Writers, insert, payload
from tests.waiting import until
from webhookd.store.migrations import migrate

DAEMONS = ROLES[:2]
ENDPOINTS = {name: {"timeout": "3s", "retry": {"schedule": ["300ms", "1s"]}} for name in ("healthy", "flaky", "slow")}
ATTEMPTS = """SELECT '/' || p.name, o.event_id, a.attempt, a.code, a.error FROM webhookd.attempt a
  JOIN webhookd.endpoint p ON p.id = a.endpoint_id JOIN webhookd.outbox o ON o.id = a.outbox_id"""
# Of each daemon, at a tenth of the pace, where everything happens ten times as often.
MOST_CPU = 0.2  # of a core; 0.03 was measured
MOST_CPU_PER_REQUEST = 0.002  # seconds, where requests go on; 0.0008 were measured
MOST_CONNECTIONS = 40.0  # per second that it asks for; 16 were measured
MOST_LINES = 20.0  # of its log, per second; 10 were measured

Answered: TypeAlias = tuple[Any, ...]  # path, event id, number, status, error

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def own_server(pytestconfig: pytest.Config) -> Iterator[Server]:
    """A server that only the tests of this module use."""
    with Server(int(pytestconfig.getoption("--postgres"))) as server:
        yield server


@pytest.fixture
def own_database(own_server: Server) -> Iterator[str]:
    """The name of an empty database on it."""
    name = f"trouble_{next(_numbers)}"
    execute(own_server.dsn, f"CREATE DATABASE {name}")
    yield name
    execute(own_server.dsn, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def scene(own_server: Server, own_database: str, tmp_path: Path, seed: int) -> AsyncIterator[Scene]:
    """Two daemons at work, and all that may happen to their database."""
    dsn = database(own_server.dsn, own_database)
    await migrate(dsn)
    async with Proxy(dsn) as proxy, fleet(tmp_path, dsn, seed) as processes:
        here = Scene(own_server, own_database, proxy, processes)
        async with here.session() as sql:
            await audit(sql)
        processes.configure(ENDPOINTS)
        async with asyncio.TaskGroup() as starting:
            for role in DAEMONS:
                # A lease outlasts the trouble, as it would: whose lease ran out meanwhile may be sent by the other one.
                arguments = ("--database-pace", "0.1", "--lease-margin", "6")
                starting.create_task(processes.start(role, *arguments, dsn=proxy.dsn(role)))
        yield here


class Effort(NamedTuple):
    """What the daemons have done, the busiest or both together."""

    at: float
    cpu: float  # seconds, of the busiest
    connections: float
    lines: float
    receipts: float

    @classmethod
    def so_far(cls, scene: Scene) -> Self:
        """Until now."""
        daemons = scene.processes.daemons.values()
        times = [psutil.Process(daemon.process.pid).cpu_times() for daemon in daemons]
        return cls(
            asyncio.get_running_loop().time(),
            max(each.user + each.system for each in times),
            scene.proxy.asked,
            sum(daemon.log().count("\n") for daemon in daemons),
            len(scene.processes.receiver.receipts()),
        )

    def since(self, before: "Effort") -> "Effort":
        """What was done between two moments."""
        return Effort._make(end - start for start, end in zip(before, self, strict=True))


async def effort_during(trouble: Trouble, scene: Scene) -> Effort:
    """What the daemons do in the second half of the trouble, and after they have come to rest where they must."""
    seen = -1

    def at_rest() -> bool:
        nonlocal seen
        before, seen = seen, len(scene.processes.receiver.receipts())
        return before == seen

    await asyncio.sleep(trouble.seconds / 2)
    if trouble.pauses:
        await until(at_rest, "no requests are made any longer", interval=1.0)
    before = Effort.so_far(scene)
    await asyncio.sleep(trouble.seconds / 2)
    return Effort.so_far(scene).since(before)


def answers(receipts: Sequence[Receipt]) -> Counter[Answered]:
    """What the receiver has answered, as it should be in the log of attempts."""
    return Counter((r.path, r.id, r.attempt, r.status, None if r.status == 200 else "http_500") for r in receipts)


def skipped(recorded: Iterable[Answered], passed_on: Callable[[str, str], Sequence[float]]) -> list[tuple[str, str]]:
    """Deliveries whose attempts are not numbered 1, 2, 3, …: an attempt was counted and not made.

    A number comes again where the delivery was passed on, and only there.
    """
    numbers = defaultdict(list)
    for path, event_id, attempt, *_ in recorded:
        numbers[path, event_id].append(attempt)
    return [
        which
        for which, found in numbers.items()
        if set(found) != set(range(1, max(found) + 1)) or len(found) - max(found) > len(passed_on(*which))
    ]


@pytest.mark.parametrize("name", [*TROUBLES, *(pytest.param(name, marks=pytest.mark.long) for name in MORE)])
async def test_nothing_is_lost_and_nothing_is_burnt(scene: Scene, seed: int, name: str) -> None:
    trouble, receiver = {**TROUBLES, **MORE}[name], scene.processes.receiver
    writers = Writers(scene.dsn, seed)
    burst = {f"burst{n}": payload(0, n) for n in range(300)}
    after = {f"after{n}": payload(1, n) for n in range(100)}
    async with asyncio.TaskGroup() as load:
        writing = load.create_task(writers.run())
        await until(lambda: receiver.count("slow") > 50, "the load flows")
        if not trouble.apps_go_on:
            writers.stop()
            await writing
        async with scene.session() as sql:
            await insert(sql, burst)
        async with trouble.reigns(scene):
            effort = await effort_during(trouble, scene)
        writers.stop()
    began = asyncio.get_running_loop().time()
    async with scene.session() as sql:
        await insert(sql, after)
        await until(
            lambda: after.keys() <= {r.id for r in receiver.receipts()}, "new events arrive again", interval=0.1
        )
        resumed = asyncio.get_running_loop().time() - began
        receiver.heal()
        assert await wait_until_settled(sql), scene.processes.log()
        verdict = await judge(sql, writers.committed | burst | after, receiver.receipts(), list(ENDPOINTS))
        recorded = Counter(map(tuple, await sql.fetch(ATTEMPTS)))
        passed_on = await passings(sql)
        print(f"{name}: {effort}, resumed after {resumed:.1f} s: {verdict}")  # noqa: T201 - the figures
    assert not verdict.faults
    assert recorded == answers(receiver.receipts()), "each request is recorded once, and nothing else is"
    assert skipped(recorded, passed_on) == []
    assert (effort.receipts == 0) == trouble.pauses
    assert effort.cpu < MOST_CPU * effort.at + MOST_CPU_PER_REQUEST * effort.receipts / len(DAEMONS)
    assert effort.connections < len(DAEMONS) * MOST_CONNECTIONS * effort.at
    assert effort.lines < len(DAEMONS) * MOST_LINES * effort.at
    for daemon in DAEMONS:
        await scene.processes.stop(daemon)
    assert "Traceback" not in scene.processes.log()
