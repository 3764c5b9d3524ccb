"""Daemons are killed at random and nothing is lost; without their safeguards the same judgement catches them."""

import asyncio
import random
import signal
from collections.abc import Mapping
from typing import Any, TypeAlias

import pytest

from tests.fault.fleet import Fleet
from tests.fault.verdict import ROLES, Verdict, judge, wait_until_settled
from tests.fault.writers import Connection, Writers, insert, payload
from tests.waiting import until

KILL_EACH = 2.0
EVENTS = 50
EVENTS_IN_FLIGHT = 3
Endpoints: TypeAlias = Mapping[str, Mapping[str, Any]]
ENDPOINTS: Endpoints = {
    "healthy": {"timeout": "2s", "retry": {"schedule": ["300ms", "1s"]}},
    "flaky": {"timeout": "2s", "retry": {"schedule": ["300ms", "1s"]}},
    "hung": {"timeout": "1s", "max_in_flight": 4, "retry": {"schedule": ["1s", "3s"]}},
    "dead": {"timeout": "1s", "max_in_flight": 4, "retry": {"schedule": ["1s", "3s", "5s"]}},
}


async def kills(processes: Fleet, seed: int, seconds: float, *arguments: str) -> int:
    """Kill a random daemon every two seconds or so and start it again; how often that was."""
    dice = random.Random(f"{seed}-kills")
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    killed = 0
    while (pause := dice.uniform(0.75, 1.25) * KILL_EACH) + loop.time() < end:
        await asyncio.sleep(pause)
        role = dice.choice(ROLES)
        await processes.daemons[role].kill()
        await processes.launch(role, *arguments)
        killed += 1
    return killed


async def run(
    processes: Fleet, sql: Connection, dsn: str, seed: int, *, seconds: float, settle: float, broken: str = ""
) -> Verdict:
    """Load and kills for `seconds`, then everything heals; the judgement when nothing is owed, or after `settle`."""
    # With this much patience a batch stays open for a second, and who does not look into the ledger sends a lot again.
    arguments = ("--patience", "1", *(("--broken", broken) if broken else ()))
    processes.configure(ENDPOINTS)
    async with asyncio.TaskGroup() as starting:
        for role in ROLES:
            starting.create_task(processes.start(role, *arguments))
    writers = Writers(dsn, seed)
    async with asyncio.TaskGroup() as load:
        load.create_task(writers.run())
        killed = await kills(processes, seed, seconds, *arguments)
        writers.stop()
    processes.receiver.heal()
    began = asyncio.get_running_loop().time()
    done = await wait_until_settled(sql, settle)
    took = asyncio.get_running_loop().time() - began
    verdict = await judge(sql, writers.committed, processes.receiver.receipts(), list(ENDPOINTS))
    print(f"kills {killed}, events {len(writers.committed)}, settled {done} after {took:.1f} s: {verdict}")  # noqa: T201
    print(f"duplicates {verdict.duplicate_share:.2%}")  # noqa: T201 - the figure is what the test is for
    assert killed > 1
    assert len(writers.committed) > 20 * seconds
    return verdict


async def test_nothing_is_lost_when_daemons_are_killed(
    processes: Fleet, watched: Connection, dsn: str, seed: int
) -> None:
    verdict = await run(processes, watched, dsn, seed, seconds=22, settle=30)
    assert not verdict.faults, (verdict, processes.log())


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_nothing_is_lost_in_five_minutes_of_kills(
    processes: Fleet, watched: Connection, dsn: str, seed: int
) -> None:
    verdict = await run(processes, watched, dsn, seed, seconds=300, settle=120)
    assert not verdict.faults, (verdict, processes.log())


async def test_daemons_that_adopt_nothing_are_caught(
    processes: Fleet, watched: Connection, dsn: str, seed: int
) -> None:
    verdict = await run(processes, watched, dsn, seed, seconds=10, settle=6, broken="no_rescue")
    assert "lost" in verdict.faults


async def taken_over(processes: Fleet, sql: Connection, *arguments: str) -> int:
    """A daemon dies with a batch that is done but for one endpoint, and another takes it over.

    How often the endpoint that had everything was sent something.
    """
    processes.configure({"healthy": {}, "hold": {"timeout": "60s"}})
    first, second = ROLES[:2]
    patient = ("--patience", "60", *arguments)  # nothing leaves its batch
    receiver, events = processes.receiver, {f"e{n}": payload(0, n) for n in range(EVENTS)}
    one = await processes.start(first, *patient)
    await insert(sql, events)
    recorded = "SELECT count(*) = $1 FROM webhookd.attempt WHERE ok"
    await until(lambda: sql.fetchval(recorded, EVENTS), "one endpoint has everything, and it is recorded")
    held = receiver.count("hold", 0)
    assert held > 0
    await one.kill()
    await processes.start(second, *patient)
    await until(lambda: receiver.count("hold", 0) > held, "the batch is in flight again")
    receiver.heal()
    receiver.release()
    assert await wait_until_settled(sql)
    return receiver.count("healthy")


async def test_who_takes_a_batch_over_sends_nothing_that_was_recorded(processes: Fleet, watched: Connection) -> None:
    assert await taken_over(processes, watched) == EVENTS


async def test_daemons_that_do_not_look_into_the_ledger_are_caught(processes: Fleet, watched: Connection) -> None:
    assert await taken_over(processes, watched, "--broken", "no_ledger") == 2 * EVENTS


async def frozen(processes: Fleet, sql: Connection, *arguments: str) -> Verdict:
    """A daemon freezes amid a batch and a retry, another takes over both, and the first one wakes up."""
    first, second = ROLES[:2]
    endpoints: Endpoints = {
        "hold": {"timeout": "60s"},
        "hung": {"timeout": "1s", "retry": {"schedule": ["200ms"], "jitter": 0}},
    }
    processes.configure(endpoints)
    receiver = processes.receiver
    patient = (*arguments, "--patience", "60")  # nothing leaves its batch
    one = await processes.start(first, *patient)
    events = {f"e{n}": payload(0, n) for n in range(EVENTS_IN_FLIGHT)}
    await insert(sql, events)
    # Not that of the event which tells that an endpoint fails.
    theirs = "(SELECT min(id) FROM webhookd.outbox) = ANY (b.outbox_ids)"
    batch = f"SELECT role FROM webhookd.batch b JOIN audit.daemon d ON d.id = b.owner WHERE {theirs}"
    made = "SELECT min(attempts) FROM webhookd.backlog"

    def second_attempts() -> bool:
        return sum(r.path == "/hung" and r.attempt == 2 for r in receiver.receipts()) == len(events)

    await until(lambda: receiver.count("hold", 0) == len(events), "the batch is in flight")
    await until(second_attempts, "the retries are in flight")
    one.send(signal.SIGSTOP)
    assert await sql.fetchval(batch) == first

    two = await processes.start(second, *patient)

    taken_over = f"SELECT ({batch}) = $1 AND ({made}) >= 3"
    await until(
        lambda: sql.fetchval(taken_over, second), "the second daemon has taken over the batch and the retries", 45
    )
    await until(lambda: receiver.count("hold", 0) == 2 * len(events), "the batch is in flight again")
    two.send(signal.SIGSTOP)
    receiver.release()
    one.send(signal.SIGCONT)
    late = "SELECT count(*) = $1 FROM webhookd.attempt WHERE ok"
    await until(lambda: sql.fetchval(late, len(events)), "the first daemon has written what it met")
    two.send(signal.SIGCONT)
    receiver.heal()
    assert await wait_until_settled(sql)
    verdict = await judge(sql, events, receiver.receipts(), list(endpoints))
    print(verdict)  # noqa: T201 - the figures are what the test is for
    return verdict


async def test_what_a_frozen_daemon_writes_later_changes_nothing(processes: Fleet, watched: Connection) -> None:
    verdict = await frozen(processes, watched)
    assert verdict.faults == set()
    assert verdict.duplicates == EVENTS_IN_FLIGHT  # it had sent before it froze


async def test_daemons_without_fences_are_caught(processes: Fleet, watched: Connection) -> None:
    verdict = await frozen(processes, watched, "--broken", "no_fence")
    assert verdict.faults == {"foreign_ends", "rewinds"}
