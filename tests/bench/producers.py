"""What the trigger that wakes a daemon costs the applications that insert.

It is switched on and off many times a second under a pgbench that goes on, so that both ways meet the same disk, the
same daemon and the same neighbours on the machine. Without it the daemon goes on too, and finds events by looking.
"""

import asyncio
import statistics
import time
from bisect import bisect
from typing import Any, NamedTuple

from tests.bench import rig
from tests.bench.line import Line
from tests.bench.pairs import is_clear
from tests.bench.pgbench import Transaction, pgbench

SECONDS, TIMES_MOST = 15.0, 12  # of each case; again until it is clear whether the budget is kept
SETTLE, SETTLE_PER_CLIENT = 0.01, 0.001  # seconds after a switch, as every session plans its INSERT anew
INSERT = """INSERT INTO webhookd.outbox (type, payload) VALUES ('order.created', '{"order": 42}')"""
EVERYTHING, NOTHING = ["*"], ["never.*"]
ROUNDS_LEAST = 20


class Case(NamedTuple):
    """Who inserts while which daemon runs."""

    what: str
    events: list[str]  # that the only endpoint wants
    clients: int
    rate: float  # INSERTs per second, 0 for as many as go
    slice: float  # seconds between two switches: as short as it has a few transactions
    budget: float


CASES = (
    Case("32 clients, daemon delivers", EVERYTHING, 32, 0.0, 0.05, 0.85),
    Case("1 client, daemon delivers", EVERYTHING, 1, 0.0, 0.02, 0.95),
    Case("32 clients, daemon may sleep", NOTHING, 32, 0.0, 0.05, 0.85),
    Case("1 client, daemon may sleep", NOTHING, 1, 0.0, 0.02, 0.95),
    Case("1 client at 200/s, daemon may sleep", NOTHING, 1, 200.0, 0.1, 0.95),  # above 150/s it stays awake
)


class Slice(NamedTuple):
    """A moment with the trigger, or without it."""

    on: bool
    start: float
    end: float


async def producers(server: str) -> list[Line]:
    """Single small events, each in a transaction of its own, to a server that syncs at each commit."""
    lines = []
    for number, case in enumerate(CASES):
        async with (
            rig.receiver() as url,
            rig.database(server, f"producers_{number}") as (dsn, connection),
            rig.daemon(dsn, {"a": {"url": url + "/a", "events": case.events}}),
        ):
            await pgbench(dsn, INSERT, clients=case.clients, seconds=3.0, rate=case.rate)  # connections, plans, caches
            ratios: list[float] = []
            for _ in range(TIMES_MOST):
                ratios += await _ratios(dsn, connection, case)
                if is_clear(ratios, case.budget):
                    break
        what, clear = f"INSERT speed, trigger on/off: {case.what}", is_clear(ratios, case.budget)
        lines.append(Line(what, statistics.median(ratios), "ratio", case.budget, at_least=True, clear=clear))
    return lines


async def _ratios(dsn: str, connection: Any, case: Case) -> list[float]:
    """How fast an INSERT is with the trigger, compared to without, in each round."""
    rounds: list[list[Slice]] = []
    async with asyncio.TaskGroup() as group:
        inserting = group.create_task(
            pgbench(dsn, INSERT, clients=case.clients, seconds=SECONDS, rate=case.rate), name="pgbench"
        )
        while not inserting.done():
            first = len(rounds) % 2 == 0
            rounds.append([await _slice(connection, case, on) for on in (first, not first, not first, first)])
    transactions = inserting.result()
    ends = [transaction.ended for transaction in transactions]
    ratios = []
    for each in rounds:
        without, having = (_seconds(transactions, ends, each, on) for on in (False, True))
        if without and having:  # nothing was inserted before pgbench had connected, nor after its end
            ratios.append(statistics.fmean(without) / statistics.fmean(having))
    assert len(ratios) >= ROUNDS_LEAST, f"only {len(ratios)} rounds"
    return ratios


async def _slice(connection: Any, case: Case, on: bool) -> Slice:
    await connection.execute(f"ALTER TABLE webhookd.outbox {'ENABLE' if on else 'DISABLE'} TRIGGER wake")
    await asyncio.sleep(SETTLE + case.clients * SETTLE_PER_CLIENT)
    start = time.time()
    await asyncio.sleep(case.slice)
    return Slice(on, start, time.time())


def _seconds(transactions: list[Transaction], ends: list[float], slices: list[Slice], on: bool) -> list[float]:
    """How long each transaction took that ended in these slices."""
    return [
        transaction.seconds
        for each in slices
        if each.on is on
        for transaction in transactions[bisect(ends, each.start) : bisect(ends, each.end)]
    ]
