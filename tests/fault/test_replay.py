"""Daemons are killed while they replay: each delivery ends as it should, and few come twice."""

from collections import Counter

import pytest

from tests.fault.fleet import Fleet
from tests.fault.verdict import ROLES
from tests.fault.writers import Connection
from tests.integration.conftest import eventually
from tests.waiting import HANGS
from webhookd.store.database import Database
from webhookd.store.replays import Replays, Wanted

SLOTS, KILLS = 10, 5
INSERT = "INSERT INTO webhookd.outbox (type, payload) SELECT 't', '{}' FROM generate_series(1, $1)"
DELIVERED = "SELECT count(DISTINCT outbox_id) FROM webhookd.attempt WHERE ok AND trigger = 'replay'"
GIVEN_UP = """
INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, attempts, due, state, last_error)
SELECT $1, o.id, o.created_at, 17, now(), 'exhausted', 'http_500' FROM webhookd.outbox o WHERE o.type = 't'"""


async def killed_while_it_runs(processes: Fleet, sql: Connection, dsn: str, events: int, rate: float) -> None:
    """Everything was given up; a replay of it, five kills, and what has come of it."""
    first, second = ROLES[:2]
    processes.configure({"healthy": {"max_in_flight": SLOTS, "retry": {"schedule": ["1s"]}}})
    processes.receiver.heal()
    await processes.start(first)
    await processes.stop(first)
    await sql.execute(
        "INSERT INTO webhookd.outbox (type, payload) SELECT 't', '{}' FROM generate_series(1, $1)", events
    )
    while await sql.fetch("SELECT FROM webhookd.cut(10000, 500, 99, p_rest => 10000)"):
        await sql.execute("UPDATE webhookd.batch SET done_at = now() WHERE done_at IS NULL")
    endpoint = await sql.fetchval("SELECT id FROM webhookd.endpoint")
    await sql.execute(GIVEN_UP, endpoint)
    for role in (first, second):
        await processes.start(role)
    async with Database(dsn) as database:
        replays = Replays(database)
        (number,) = (await replays.begin([endpoint], Wanted("exhausted"), rate, "me")).values()
        for kill in range(1, KILLS + 1):
            part = events * kill // (KILLS + 1)

            async def has_come_so_far(part: int = part) -> bool:
                return (await replays.all(number))[0].sent >= part

            await eventually(has_come_so_far, f"kill {kill}")
            role = (first, second)[kill % 2]
            await processes.daemons[role].kill()
            await processes.launch(role)

        async def is_over() -> bool:
            found = (await replays.all(number))[0]
            return found.state == "done" and not await sql.fetchval("SELECT EXISTS (SELECT FROM webhookd.backlog)")

        await eventually(is_over, "the end of the replay", 2 * HANGS + events / rate)
        assert (await replays.all(number))[0].sent == events
    came = Counter(receipt.id for receipt in processes.receiver.receipts() if receipt.path.endswith("healthy"))
    assert len(came) == events
    # What was in flight, and what was answered and not yet recorded.
    twice = sum(came.values()) - events
    print(f"{events} events, {twice} of them twice")  # noqa: T201 - the figure is what the test is for
    assert twice <= KILLS * (SLOTS + rate * 0.1)
    assert await sql.fetchval(DELIVERED) == events


async def test_a_replay_is_killed_five_times(processes: Fleet, watched: Connection, dsn: str) -> None:
    await killed_while_it_runs(processes, watched, dsn, 5_000, 500.0)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_long_replay_is_killed_five_times(processes: Fleet, watched: Connection, dsn: str) -> None:
    await killed_while_it_runs(processes, watched, dsn, 100_000, 1_000.0)
