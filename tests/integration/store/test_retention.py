"""What is kept and what goes: partitions, rows in DEFAULT, batches and backlog, all on a stepped clock of the rows."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from tests.integration.conftest import Receiver, Running, Sql, configuration, finished, insert, insert_many, states
from tests.waiting import until
from webhookd.store.database import Database
from webhookd.store.registry import Registry

DAY = 86400.0
PARTS = """SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = $1::regclass ORDER BY 1"""


async def maintained(sql: Sql, kept: int = 7, *, large: bool = False) -> tuple[list[str], dict[str, str]]:
    """Call until nothing more is done: what was done, and what could not be."""
    done: list[str] = []
    for _ in range(500):
        rows = await sql.fetch("SELECT * FROM webhookd.maintain($1, $1, large => $2)", timedelta(days=kept), large)
        done += [row["done"] for row in rows if row["problem"] is None]
        problems = {row["done"]: row["problem"] for row in rows if row["problem"] is not None}
        if len(rows) == len(problems):
            return done, problems
    raise AssertionError(f"there is always more to do: {done}")


def at(days: float) -> datetime:
    """Noon of the UTC day that was, or will be, so many days from now."""
    return datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) + timedelta(days=days)


def part(days: float, parent: str = "outbox") -> str:
    return f"{parent}_{at(days):%Y%m%d}"


async def make_day(sql: Sql, days: int) -> None:
    """The partitions of a day of the past, as if they had been made in time."""
    start = at(days).replace(hour=0)
    for parent in ("outbox", "attempt"):
        await sql.execute(
            f"CREATE TABLE webhookd.{part(days, parent)} PARTITION OF webhookd.{parent}"
            f" FOR VALUES FROM ('{start:%Y-%m-%d}') TO ('{start + timedelta(days=1):%Y-%m-%d}')"
        )


async def old_event(sql: Sql, days: int, *, done: bool = True) -> int:
    """An event of that day, read and in a batch of that day; its number."""
    id_: int = await sql.fetchval(
        "INSERT INTO webhookd.outbox (type, payload, created_at) VALUES ('a', '{}', $1) RETURNING id", at(days)
    )
    await sql.execute("SELECT webhookd.cut(100, 500, 1)")
    await sql.execute(
        """UPDATE webhookd.batch SET cut_at = $1, done_at = CASE WHEN $2 THEN $1::timestamptz END
            WHERE outbox_ids = ARRAY[$3::bigint]""",
        at(days),
        done,
        id_,
    )
    return id_


async def attempt(sql: Sql, days: float) -> None:
    await sql.execute(
        "INSERT INTO webhookd.attempt (at, outbox_id, endpoint_id, attempt, ok) VALUES ($1, 1, 1, 1, true)", at(days)
    )


async def event(sql: Sql, days: float) -> None:
    """An event of that day that nobody has read."""
    await sql.execute("INSERT INTO webhookd.outbox (type, payload, created_at) VALUES ('a', '{}', $1)", at(days))


OWE = """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, due)
         SELECT 1, id, created_at, now() FROM webhookd.outbox"""


async def parts(sql: Sql, parent: str = "outbox") -> list[str]:
    return [row[0] for row in await sql.fetch(PARTS, f"webhookd.{parent}")]


async def test_a_day_that_is_past_its_time_is_emptied_and_then_dropped(sql: Sql) -> None:
    for days in (-9, -8, -7):
        await make_day(sql, days)
        await old_event(sql, days)
        await sql.execute(
            "INSERT INTO webhookd.attempt (at, outbox_id, endpoint_id, attempt, ok) VALUES ($1, 1, 1, 1, true)",
            at(days),
        )
    done, problems = await maintained(sql)
    gone = [
        f"{what} {part(days, parent)}"
        for parent in ("outbox", "attempt")
        for days in (-9, -8)
        for what in ("emptied", "dropped")
    ]
    assert [each for each in done if not each.startswith("deleted")] == gone
    assert problems == {}
    assert part(-7) in await parts(sql), "its last moment is less than seven days ago"
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox") == 1


ROWS_THAT_KEEP = {
    "unread": ("SELECT 1", "no daemon has read"),
    "in hand": ("SELECT webhookd.cut(100, 500, 1)", "a daemon has in hand"),
    "scheduled": (
        """SELECT webhookd.cut(100, 500, 1); UPDATE webhookd.batch SET done_at = now();
           INSERT INTO webhookd.scheduled SELECT now() + interval '1 day', id, created_at FROM webhookd.outbox""",
        "scheduled for later",
    ),
    "retry": (
        f"SELECT webhookd.cut(100, 500, 1); UPDATE webhookd.batch SET done_at = now(); {OWE}",
        "to be tried again",
    ),
}


@pytest.mark.parametrize("which", ROWS_THAT_KEEP)
async def test_what_is_still_needed_stays_and_the_reason_is_told(sql: Sql, which: str) -> None:
    await make_day(sql, -20)
    await event(sql, -20)
    statement, why = ROWS_THAT_KEEP[which]
    await sql.execute(statement)
    _, problems = await maintained(sql)
    assert list(problems) == [part(-20)]
    assert why in problems[part(-20)]
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox") == 1
    await sql.execute(
        """DELETE FROM webhookd.backlog; DELETE FROM webhookd.scheduled;
           SELECT webhookd.cut(100, 500, 1); UPDATE webhookd.batch SET done_at = now()"""
    )
    done, problems = await maintained(sql)
    assert f"dropped {part(-20)}" in done, problems


async def test_the_ledger_of_an_open_batch_stays(sql: Sql) -> None:
    await make_day(sql, -20)
    await old_event(sql, -20, done=False)
    await attempt(sql, -20)
    _, problems = await maintained(sql)
    assert part(-20, "attempt") in problems


async def test_an_open_transaction_of_an_application_is_not_waited_for(dsn: str, sql: Sql) -> None:
    await make_day(sql, -20)
    await old_event(sql, -20)
    writer: Sql = await asyncpg.connect(dsn)
    async with writer.transaction():
        await insert(writer)
        done, problems = await maintained(sql)
        assert f"emptied {part(-20)}" in done
        assert problems == {part(-20): "a transaction that uses outbox is open"}
    await writer.close()
    assert f"dropped {part(-20)}" in (await maintained(sql))[0]


async def test_old_batches_and_ended_deliveries_go_with_their_events(sql: Sql) -> None:
    for days in (-20, -3):
        await make_day(sql, days)
        id_ = await old_event(sql, days)
        await sql.execute(
            """INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, due, state)
               VALUES (1, $1, $2, now(), 'exhausted'), (2, $1, $2, now(), 'rejected')""",
            id_,
            at(days),
        )
    await sql.execute("UPDATE webhookd.batch SET cut_at = $1 WHERE id = 0", at(-30))
    await sql.execute("INSERT INTO webhookd.daemon (id, low) VALUES (1, 1000)")
    await maintained(sql)
    assert await sql.fetchval("SELECT count(*) FROM webhookd.backlog") == 2
    assert await sql.fetchval("SELECT min(id) FROM webhookd.batch") == 2, "batch 0 and that of the first day"


@pytest.mark.parametrize(
    ("change", "why"), [("removed_at = now()", "removed"), ("spec = '{\"active\": false}'", "inactive")]
)
async def test_what_an_endpoint_was_owed_that_is_gone_ends_with_the_time(sql: Sql, change: str, why: str) -> None:
    await make_day(sql, -20)
    await old_event(sql, -20)
    await sql.execute("INSERT INTO webhookd.endpoint (name, source, spec) VALUES ('hook', 'file', '{}')")
    await sql.execute(OWE)
    assert part(-20) in (await maintained(sql))[1]
    assert await sql.fetchval("SELECT state FROM webhookd.backlog") == "retry", (
        "an endpoint that is there is waited for"
    )
    await sql.execute(f"UPDATE webhookd.endpoint SET {change}")
    await sql.fetch("SELECT webhookd.sweep()")
    assert tuple((await sql.fetch("SELECT state, last_error FROM webhookd.backlog"))[0]) == (
        "rejected",
        f"endpoint_{why}",
    )
    assert f"dropped {part(-20)}" in (await maintained(sql))[0]
    assert await sql.fetchval("SELECT count(*) FROM webhookd.backlog") == 0


async def test_a_cursor_that_lags_is_moved_and_the_range_is_told(dsn: str, sql: Sql) -> None:
    for days in (-20, -19, -2):
        await make_day(sql, days)
        await old_event(sql, days)
    await sql.execute(
        "INSERT INTO webhookd.parked (endpoint_id, from_batch, next_batch, reason) VALUES (1, 1, 1, 'paused')"
    )
    async with Database(dsn) as database:
        lags = await Registry(database).lagging(0.8 * 7 * DAY)
    assert lags == {1: pytest.approx(20 * DAY, abs=DAY)}
    _, problems = await maintained(sql)
    assert problems == {}
    assert await sql.fetchval("SELECT next_batch FROM webhookd.parked") == 3
    ranges = await sql.fetch("SELECT from_batch, to_batch, reason FROM webhookd.missed ORDER BY 1")
    assert [tuple(row) for row in ranges] == [(1, 2, "retention"), (2, 3, "retention")]


# DEFAULT


async def forty_days_off(sql: Sql) -> None:
    """As if no daemon had run for 40 days: the last partitions are of eleven days ago, and DEFAULT has rows."""
    for parent in ("outbox", "attempt"):
        for name in await parts(sql, parent):
            if not name.endswith("_default"):
                await sql.execute(f"DROP TABLE webhookd.{name}")
    for days in (-40, -11):
        await make_day(sql, days)
    for days in (-10, -5, -1, 0):
        await event(sql, days)
        await sql.execute(
            "INSERT INTO webhookd.attempt (at, outbox_id, endpoint_id, attempt, ok) VALUES ($1, 1, 1, 1, false)",
            at(days),
        )
    await insert(sql)
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox_default") == 5


async def test_after_forty_days_off_what_fell_into_default_is_delivered_once_and_days_are_made(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    await forty_days_off(sql)
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        days = "SELECT count(*) FROM webhookd.partitions('outbox') WHERE until > now() + interval '29 days'"
        await until(lambda: sql.fetchval(days), "partitions are made")
        await insert_many(sql, 3)
        await finished(sql)
    ids = [row[0] for row in await sql.fetch("SELECT event_id FROM webhookd.outbox")]
    assert sorted(receiver.events("hook")) == sorted(ids)
    assert len(ids) == 8
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox_default") == 0
    now = await sql.fetchval(
        "INSERT INTO webhookd.outbox (type, payload) VALUES ('a', '{}') RETURNING tableoid::regclass::text"
    )
    assert now == f"webhookd.outbox_until_{at(1):%Y%m%d}", "today's are where yesterday's are"


async def test_what_was_default_is_not_counted_as_default_and_goes_like_any_other_day(sql: Sql) -> None:
    await forty_days_off(sql)
    await maintained(sql)
    assert await sql.fetchval("SELECT rows_in_default FROM webhookd.health") == 0
    await event(sql, 90)
    assert await sql.fetchval("SELECT rows_in_default FROM webhookd.health") == 1
    await sql.execute("SELECT webhookd.cut(100, 500, 1)")
    await sql.execute("UPDATE webhookd.batch SET done_at = now()")
    name = f"outbox_until_{at(1):%Y%m%d}"
    assert name in await parts(sql)
    for _ in range(100):
        await sql.execute("SELECT webhookd.expire('outbox', interval '-1 day')")  # as if a day and its time had passed
        if name not in await parts(sql):
            return
    raise AssertionError(f"{name} is still there")


async def test_rows_of_several_gaps_get_a_partition_each(sql: Sql) -> None:
    await forty_days_off(sql)
    await make_day(sql, -7)
    done, problems = await maintained(sql, kept=60)
    assert problems == {}
    assert {each for each in done if "_until_" in each and each.startswith("outbox")} == {
        f"outbox_until_{at(-7):%Y%m%d}",
        f"outbox_until_{at(1):%Y%m%d}",
    }
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox") == 5
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox_default") == 0


async def test_default_is_left_alone_while_an_application_uses_it(dsn: str, sql: Sql) -> None:
    await forty_days_off(sql)
    writer: Sql = await asyncpg.connect(dsn)
    async with writer.transaction():
        await insert(writer)
        _, problems = await maintained(sql)
        assert problems["outbox_until_" + f"{at(1):%Y%m%d}"] == "a transaction that uses outbox is open"
    await writer.close()
    await maintained(sql)
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox_default") == 0
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox") == 6


async def test_a_large_default_is_left_to_the_operator(sql: Sql) -> None:
    await forty_days_off(sql)
    await sql.execute(
        """INSERT INTO webhookd.outbox (type, payload)
           SELECT 'a', to_json(repeat(md5(n::text), 60)) FROM generate_series(1, 40000) n"""
    )
    _, problems = await maintained(sql)
    assert "maintain --large" in problems["outbox_default"]
    assert [name for name in await parts(sql) if name > part(0)] == ["outbox_default"], "no day is made beside it"
    done, problems = await maintained(sql, large=True)
    assert f"outbox_until_{at(1):%Y%m%d}" in done
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox_default") == 0


# What people see


async def test_health_tells_what_a_monitoring_system_asks_also_when_nothing_runs(sql: Sql) -> None:
    await insert_many(sql, 3)
    seen = (await sql.fetch("SELECT * FROM webhookd.health"))[0]
    assert (seen["unread_events"], seen["live_daemons"], seen["last_beat_seconds"]) == (3, 0, None)
    assert seen["unread_seconds"] >= 0
    assert seen["bytes"] > 100_000
    assert 29 < seen["days_ahead"] <= 30
    await sql.execute("SELECT webhookd.cut(100, 500, 1)")
    await sql.execute("INSERT INTO webhookd.daemon (id) VALUES (1)")
    await sql.execute(OWE)
    await sql.execute(
        "INSERT INTO webhookd.outbox (type, payload, created_at) VALUES ('a', '{}', now() + interval '90 days')"
    )
    seen = (await sql.fetch("SELECT * FROM webhookd.health"))[0]
    assert (seen["unread_events"], seen["open_batches"], seen["owed_deliveries"]) == (1, 1, 3)
    assert (seen["live_daemons"], seen["rows_in_default"]) == (1, 1)


async def test_an_event_that_was_dropped_from_the_log_is_missed(sql: Sql) -> None:
    one = await insert(sql)
    await sql.execute("SELECT webhookd.cut(100, 500, 1)")
    await sql.execute("UPDATE webhookd.batch SET done_at = now()")
    assert await states(sql, one) == {None: "unmatched"}
    await sql.execute("INSERT INTO webhookd.missed VALUES (1, 1, 2, 'discarded')")
    assert await states(sql, one) == {None: "missed"}


async def test_days_ahead_end_at_the_first_day_that_is_missing(sql: Sql) -> None:
    """A clock that was ahead for a moment leaves a day far behind the others, which hides nothing."""
    ahead = "SELECT days_ahead FROM webhookd.health"
    await make_day(sql, 90)
    assert 29 < await sql.fetchval(ahead) <= 30
    await sql.execute(f"DROP TABLE webhookd.outbox_{at(3):%Y%m%d}")
    assert 2 < await sql.fetchval(ahead) <= 3
    await sql.execute(f"DROP TABLE webhookd.attempt_{at(2):%Y%m%d}")
    assert 1 < await sql.fetchval(ahead) <= 2
    await sql.execute(f"DROP TABLE webhookd.outbox_{at(0):%Y%m%d}")
    assert await sql.fetchval(ahead) <= 0
    for name in await parts(sql, "attempt"):
        if not name.endswith("_default"):
            await sql.execute(f"DROP TABLE webhookd.{name}")
    await sql.execute("SELECT webhookd.maintain()")
    assert 29 < await sql.fetchval(ahead) <= 30


@pytest.mark.parametrize("kept", ["'-400 days'", "'0'", "NULL", "'23 hours 59 minutes'", "'-11 months 331 days'"])
async def test_nobody_keeps_events_for_so_short_a_time_that_live_ones_go(granted: Sql, kept: str) -> None:
    sql = granted
    await old_event(sql, 0)
    await sql.execute("SET ROLE webhookd_daemon")
    for call in (
        f"maintain(events => {kept})",
        f"maintain(attempts => {kept})",
        f"maintain(events => {kept}, only_partitions => true)",
        f"sweep({kept})",
        f"sweep(events => {kept})",
    ):
        with pytest.raises(asyncpg.InvalidParameterValueError, match="kept for a day at least"):
            await sql.execute(f"SELECT webhookd.{call}")
    with suppress(asyncpg.InsufficientPrivilegeError):  # it acts with the rights of who calls it
        await sql.execute(f"SELECT webhookd.expire('outbox', {kept})")
    await sql.execute("RESET ROLE")
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox") == 1


@pytest.mark.parametrize("days", ["0", "-1", "NULL", "367", "2147483647"])
async def test_nobody_makes_partitions_without_end(granted: Sql, days: str) -> None:
    sql = granted
    before = await parts(sql)
    await sql.execute("SET ROLE webhookd_daemon")
    for call in (f"maintain(days => {days})", f"make_partitions({days})"):
        with pytest.raises(asyncpg.InvalidParameterValueError, match="1 to 366 days ahead"):
            await sql.execute(f"SELECT webhookd.{call}")
    await sql.execute("RESET ROLE")
    assert await parts(sql) == before


async def test_a_day_is_enough(granted: Sql) -> None:
    await old_event(granted, 0)
    for _ in range(100):
        if not await granted.fetch("SELECT FROM webhookd.maintain('1 day', '24 hours', days => 1)"):
            break
    assert await granted.fetchval("SELECT count(*) FROM webhookd.outbox") == 1
