"""Daemons are killed while endpoints that keep an order fail now and then: nothing comes before its turn."""

import asyncio
from collections import defaultdict

import pytest

from tests.fault.fleet import Fleet, Receipt
from tests.fault.verdict import ROLES
from tests.fault.writers import Connection
from tests.integration.conftest import eventually
from tests.waiting import HANGS

KEYS = 5
INSERT = """
INSERT INTO webhookd.outbox (type, payload, ordering_key)
SELECT 't', '{}', 'key-' || n % $1::int FROM generate_series(1, $2::int) n"""
OWED = """
SELECT EXISTS (SELECT FROM webhookd.backlog) OR EXISTS (SELECT FROM webhookd.batch WHERE done_at IS NULL)
    OR EXISTS (SELECT FROM webhookd.parked WHERE next_batch < (SELECT max(id) + 1 FROM webhookd.batch))
    OR (SELECT count(DISTINCT (outbox_id, endpoint_id)) FROM webhookd.attempt WHERE ok)
         < 2 * (SELECT count(*) FROM webhookd.outbox)"""


def out_of_order(receipts: list[Receipt], lines: dict[str, list[str]]) -> list[str]:
    """What came although something before it in its line had not been answered well."""
    wrong, came = [], set[str]()
    place = {event_id: (line, n) for line in lines.values() for n, event_id in enumerate(line)}
    reached: dict[int, int] = defaultdict(int)  # of each line, how many from its beginning are through
    for receipt in receipts:
        line, n = place[receipt.id]
        if n > reached[id(line)]:
            wrong.append(f"{n} while {reached[id(line)]} had not come")
        if receipt.status == 200:
            came.add(receipt.id)
        while reached[id(line)] < len(line) and line[reached[id(line)]] in came:
            reached[id(line)] += 1
    return wrong


async def killed_while_it_runs(processes: Fleet, sql: Connection, kills: int, between: int) -> None:
    """An endpoint of each kind, at a receiver that fails one time in three; `between` events before each kill."""
    first, second = ROLES[:2]
    retry = {"schedule": ["100ms"]}
    urls = {"line": processes.receiver.url("flaky/line"), "lines": processes.receiver.url("flaky/lines")}
    processes.configure(
        {
            "line": {"url": urls["line"], "ordered": True, "retry": retry},
            "lines": {"url": urls["lines"], "ordered": "key", "retry": retry},
        }
    )
    for role in (first, second):
        await processes.start(role)
    for kill in range(kills):
        for _ in range(between // 10):
            await sql.execute(INSERT, KEYS, 10)
            await asyncio.sleep(0.01)
        role = (first, second)[kill % 2]
        await processes.daemons[role].kill()
        await processes.launch(role)
    processes.receiver.heal()

    async def is_over() -> bool:
        return not await sql.fetchval(OWED)

    await eventually(is_over, "everything to be delivered", 3 * HANGS)
    all_ = await sql.fetch("SELECT event_id, ordering_key FROM webhookd.outbox ORDER BY id")
    by_key: dict[str, list[str]] = defaultdict(list)
    for row in all_:
        by_key[row["ordering_key"]].append(row["event_id"])
    receipts = processes.receiver.receipts()
    of_line, of_lines = ([each for each in receipts if each.path.endswith(end)] for end in ("/line", "/lines"))
    assert out_of_order(of_line, {"": [row["event_id"] for row in all_]}) == []
    assert out_of_order(of_lines, by_key) == []
    for of in (of_line, of_lines):
        assert len({each.id for each in of if each.status == 200}) == len(all_)


async def test_order_holds_whoever_is_killed(processes: Fleet, watched: Connection) -> None:
    await killed_while_it_runs(processes, watched, 5, 60)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_order_holds_through_fifty_kills(processes: Fleet, watched: Connection) -> None:
    await killed_while_it_runs(processes, watched, 50, 100)
