"""No hot statement reads a big table from one end to the other, whatever the statistics say; claims stay fast.

What was read is asked of the server's own counters, which see into functions and count every execution, so the plans
are those that really run: the first ones with their parameters, later ones generic.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest

from tests.fault.writers import Connection
from tests.stopwatch import worked
from webhookd.store.statements import QUERIES

EVENTS, DAYS, PER_BATCH = 200_000, 4, 100
OWED, OWED_LONG = 300_000, 2_000_000
ENDPOINTS = 200  # others that owe a little
LONG_AGO = 1e6  # seconds
RUNS = 8  # of each statement: from the sixth on Postgres may choose a generic plan
MOST_MS = 10.0  # of a CPU, which is what a statement costs that waits for nothing
SETTLED = EVENTS // PER_BATCH - 20  # batches up to here are done
ME, DEAD = 7, 6

BIG = "SELECT relname, seq_tup_read FROM pg_stat_user_tables WHERE schemaname = 'webhookd' AND relname ~ $1"
BIG_TABLES = "^(outbox|attempt|backlog|batch|shot)"

LOAD = """
INSERT INTO webhookd.outbox (type, payload, created_at)
  SELECT 'a.b', '{"n": 1}', date_trunc('day', now()) + n * ($2::int * interval '1 day') / $1::int
    FROM generate_series(0, $1 - 1) n;
INSERT INTO webhookd.batch (id, pos_xmax, outbox_ids, lo, hi, owner, claims, done_at)
  SELECT row_number() OVER (ORDER BY min(id)), pg_snapshot_xmax(pg_current_snapshot()), array_agg(id ORDER BY id),
         min(created_at), max(created_at), 6, 1, now() FROM webhookd.outbox GROUP BY (id - 1) / $3;
INSERT INTO webhookd.attempt (at, outbox_id, endpoint_id, attempt, ok, code, ms)
  SELECT created_at, id, 2, 1, true, 200, 3 FROM webhookd.outbox;
INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, attempts, due, clock_from)
  SELECT 1, n, now(), 3, now() - n * interval '1 ms', now() FROM generate_series(1, $4::int) n;
INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, attempts, due, clock_from)
  SELECT 10 + p, n, now(), 1, now() + (n - 3) * interval '1 min', now()
    FROM generate_series(1, $5::int) p, generate_series(1, 5) n;
INSERT INTO webhookd.shot (kind, endpoint_id, outbox_id, outbox_at, by, start_by, done_at, ok)
  SELECT 'resend', 3, n, now(), 'me', now(), now(), n % 2 = 0 FROM generate_series(1, $1) n;
UPDATE webhookd.batch SET done_at = NULL WHERE id > $6;
"""
ASKED = """
WITH p AS (
  INSERT INTO webhookd.endpoint (name, source, spec)
  SELECT 'e' || n, 'file', '{"events": ["*"]}' FROM generate_series(1, 3) n),
d AS (INSERT INTO webhookd.discard (since, until, replays, by) VALUES ('2020-01-01', now(), 0, 'me'))
INSERT INTO webhookd.replay (endpoint_id, query, rate, next_batch, to_batch, paced_at)
VALUES (3, '{"state": "missed"}', 10000, 1000, $1, now() - interval '1 min')"""
STILL = """
SELECT format('ALTER TABLE webhookd.%I SET (autovacuum_enabled = false)', relname) FROM pg_class
 WHERE relnamespace = 'webhookd'::regnamespace AND relkind = 'r' AND relname ~ $1"""


async def load(sql: Connection, statistics: str, owed: int) -> None:
    """Fill the tables; `statistics` are `none`, `stale` (of tables that were nearly empty) or `fresh`."""
    for (statement,) in await sql.fetch(STILL, BIG_TABLES):
        await sql.execute(statement)
    if statistics == "stale":
        await fill(sql, 100, 10)
        await sql.execute("ANALYZE")
        await sql.execute("TRUNCATE webhookd.outbox, webhookd.attempt, webhookd.backlog")
        await sql.execute("DELETE FROM webhookd.batch WHERE id > 0")
        await sql.execute("ALTER SEQUENCE webhookd.outbox_id_seq RESTART")
    await fill(sql, EVENTS, owed)
    if statistics == "fresh":
        await sql.execute("ANALYZE")


async def fill(sql: Connection, events: int, owed: int) -> None:
    """As many events, in batches, delivered to one endpoint and partly owed to others."""
    values = {"$1": events, "$2": DAYS, "$3": PER_BATCH, "$4": owed, "$5": ENDPOINTS, "$6": SETTLED}
    text = LOAD
    for name, value in values.items():
        text = text.replace(name, str(value))
    for statement in text.rstrip(";\n").split(";\n"):  # a transaction each, so that the last batch covers the events
        await sql.execute(statement, timeout=300)


async def counters(sql: Connection) -> dict[str, int]:
    """Rows that sequential scans have read so far, by table."""
    await sql.execute("SELECT pg_stat_force_next_flush()")
    return {row["relname"]: row["seq_tup_read"] for row in await sql.fetch(BIG, BIG_TABLES)}


def arguments(batch: "asyncpg.Record", low: int) -> dict[str, Callable[[int], tuple[Any, ...]]]:
    """What the daemon would give each hot statement; the number of the run makes rows differ."""
    ids, lo, hi = batch["outbox_ids"], batch["lo"], batch["hi"]
    wanted = [1, *range(11, 31)]
    now = hi

    def rows(n: int) -> tuple[list[int], list[int]]:
        return [1] * 50, list(range(1 + 50 * n, 51 + 50 * n))

    def inserted(n: int) -> tuple[Any, ...]:
        none: list[None] = [None] * 50
        endpoints, events = [3] * 50, list(range(1 + 50 * n, 51 + 50 * n))
        rest = none, none, none, [1.0] * 50, [0] * 50, none
        return (endpoints, events, [now] * 50, [1] * 50, [5.0] * 50, ["retry"] * 50, *rest)

    return {
        "cut": lambda _: (5_000, 500, ME, 1, 5_000, [], [], None),
        "heads": lambda _: (ids, lo, hi, -1),
        "payloads": lambda _: (ids, lo, hi, 1024**2),
        "adopt": lambda _: (low, ME, [], 1e11, 15.0, 20),
        "known": lambda _: (ids, lo - timedelta(minutes=1)),
        "give_back": lambda _: (DEAD, [batch["id"]]),
        "backlog_delete": rows,
        "backlog_insert": inserted,
        "backlog_update": lambda n: (
            *rows(n), [3] * 50, [1] * 50, [5.0] * 50, ["retry"] * 50, [500] * 50, ["http_500"] * 50, *[[0] * 50] * 3
        ),
        "batch_done": lambda _: ([batch["id"]], [batch["nonce"]], [1], DEAD),
        "owing": lambda _: (),
        "claim": lambda _: (
            wanted,
            [200] + [10] * 20,
            [45.0] * len(wanted),
            [LONG_AGO] * len(wanted),
            ME,
            15.0,
            3,
            True,
        ),
        "end_leases": lambda _: ([DEAD], 45.0),
        "low": lambda _: (low,),
        "open_shots": lambda _: (),
        "claim_shots": lambda n: ([n + 1], [45.0], ME),
        "shots_of": lambda n: (n + 1,),
        "replay_count": lambda n: (2, "missed", None, None, None, low, 100 + 20 * n, 0),
        "replay_step": lambda _: (1,),
        "discard_step": lambda _: (1,),
    }  # fmt: skip


async def run(sql: Connection, name: str, given: Callable[[int], tuple[Any, ...]]) -> tuple[dict[str, int], float, int]:
    """Rows read in sequence by table, the least milliseconds of a CPU, the rows of the last run; nothing is kept."""
    before = await counters(sql)
    statement = await sql.prepare(QUERIES[name])
    took = []
    rows = 0
    for n in range(RUNS):
        transaction = sql.transaction()
        await transaction.start()
        before_it = worked(sql.get_server_pid())
        rows = len(await statement.fetch(*given(n)))
        took.append((worked(sql.get_server_pid()) - before_it) * 1000)
        await transaction.rollback()
    after = await counters(sql)
    read = {table: after[table] - before[table] for table in after if after[table] > before[table]}
    return read, min(took), rows


@pytest.mark.parametrize("statistics", ["none", "stale", "fresh"])
async def test_no_hot_statement_reads_a_whole_table(
    sql: Connection, statistics: str, pytestconfig: pytest.Config
) -> None:
    owed = OWED_LONG if pytestconfig.getoption("--long") else OWED
    await load(sql, statistics, owed)
    # New events for the cut, which runs on what was committed since the last batch.
    await sql.execute("INSERT INTO webhookd.outbox (type, payload) SELECT 'a', '{}' FROM generate_series(1, 300)")
    await sql.execute(ASKED, SETTLED)
    batch = await sql.fetchrow("SELECT * FROM webhookd.batch WHERE id = $1", SETTLED + 1)
    assert batch is not None
    assert isinstance(batch["lo"], datetime)
    figures = {name: await run(sql, name, given) for name, given in arguments(batch, SETTLED).items()}
    for name, (read, milliseconds, rows) in figures.items():
        print(f"{statistics:5} {name:15} {milliseconds:7.2f} ms {rows:4} rows {read or ''}")  # noqa: T201 - the figures
    wrong = {name: read for name, (read, *_) in figures.items() if read}
    assert not wrong, wrong
    expected = {"cut": 1, "heads": 100, "payloads": 100, "adopt": 20, "known": 200, "claim": 260, "owing": 201}
    assert {name: figures[name][2] for name in expected} == expected, "each of them found something to do"
    assert figures["claim"][1] <= MOST_MS
    assert figures["owing"][1] <= MOST_MS


async def test_a_sequential_scan_is_noticed(sql: Connection) -> None:
    await fill(sql, 1_000, 10)
    before = await counters(sql)
    await sql.fetch("SELECT count(*) FROM webhookd.backlog WHERE attempts = 1")
    after = await counters(sql)
    assert after["backlog"] > before["backlog"]
