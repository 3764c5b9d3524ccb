"""Statistics of endpoints: summed in memory, written by the minute, kept by the hour."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest

from tests.integration.conftest import Receiver, Running, Sql, configuration, finished
from tests.integration.web.conftest import Client
from webhookd.policy.statistics import BUCKETS, Row
from webhookd.store.database import Database
from webhookd.store.registry import Registry
from webhookd.store.statistics import StatisticStore

DAY = timedelta(days=1)


@pytest.fixture
async def store(dsn: str) -> AsyncIterator[StatisticStore]:
    async with Database(dsn, size=1) as database:
        yield StatisticStore(database)


async def endpoint(api: Client, sql: Sql) -> int:
    """The number of an endpoint of an application `shop`."""
    await api("POST", "/app", {"name": "Shop", "uid": "shop"})
    spec = '{"url": "https://example.com", "events": ["*"], "filter": {}}'
    made: int = await sql.fetchval(
        "INSERT INTO webhookd.endpoint (tenant, name, uid, source, spec) VALUES ('shop', 'ep_1', 'hook', 'api', $1)"
        " RETURNING id",
        spec,
    )
    return made


def row(at: datetime, of: int, delivered: int, *took: int) -> Row:
    filled = took + (0,) * (BUCKETS - len(took))
    return Row(int(at.timestamp() // 60), of, (delivered, 1, 2, 3), filled)


async def test_a_daemon_writes_what_it_has_seen_when_it_stops(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    receiver.answers("hook", 500, 200)
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        for _ in range(5):
            await sql.execute("INSERT INTO webhookd.outbox (type, payload) VALUES ('a', '{}')")
        await finished(sql)
        assert await sql.fetchval("SELECT count(*) FROM webhookd.statistic") in (0, 2, 4)
    sums = (
        "SELECT endpoint_id = 0, sum(delivered), sum(failed), sum(exhausted + rejected)"
        " FROM webhookd.statistic GROUP BY 1 ORDER BY 1"
    )
    assert [tuple(each) for each in await sql.fetch(sums)] == [(False, 5, 5, 0), (True, 5, 5, 0)]
    took = await sql.fetchval("SELECT sum(t) FROM webhookd.statistic s, unnest(s.took) t WHERE s.endpoint_id = 0")
    assert took == 10


async def test_sums_over_a_span(api: Client, sql: Sql, store: StatisticStore) -> None:
    number, now = await endpoint(api, sql), datetime.now(UTC)
    await store.add(
        [row(now, number, 5, 1, 2), row(now, 0, 9), row(now - DAY, number, 7, 0, 0, 4), row(now, number, 1)]
    )
    path = "/app/shop/endpoint/hook/stats"
    found = (await api("GET", path)).body
    assert found | {"success": 13, "fail": 15, "pending": 0, "sending": 0, "canceled": 0, "failedAttempts": 3} == found
    assert [(each["upToMs"], each["attempts"]) for each in found["latency"]][:3] == [(10, 1), (25, 2), (50, 4)]
    assert found["latency"][-1] == {"upToMs": None, "attempts": 0}
    since = quote((now - timedelta(hours=2)).isoformat())
    assert (await api("GET", f"{path}?since={since}")).body["success"] == 6
    assert (await api("GET", f"{path}?until={since}")).body["success"] == 7
    assert (await api("GET", f"{path}?since=yesterday")).status == 422
    for moment in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"):
        for way in ("since", "until"):
            assert (await api("GET", f"{path}?{way}={moment}")).status == 200, (way, moment)


async def test_minutes_become_hours_and_hours_go(api: Client, dsn: str, sql: Sql, store: StatisticStore) -> None:
    number, now = await endpoint(api, sql), datetime.now(UTC)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    old = today - 3 * DAY + timedelta(hours=5)
    rows = [row(old + timedelta(minutes=n), number, 1, 0, n) for n in range(90)]
    await sql.execute("UPDATE webhookd.statistic_summed SET until = $1", today - 4 * DAY)
    await store.add([*rows, row(now, number, 100), row(now - timedelta(hours=47), number, 1000)])
    before = (await api("GET", "/app/shop/endpoint/hook/stats")).body
    assert before["success"] == 1190
    async with Database(dsn, size=1) as database:
        registry = Registry(database)
        while await registry.sweep(7 * 86_400.0):
            assert (await api("GET", "/app/shop/endpoint/hook/stats")).body == before
        assert [tuple(each) for each in await sql.fetch(
            "SELECT at, delivered, took[2] FROM webhookd.statistic_hour ORDER BY at"
        )] == [(old, 60, sum(range(60))), (old + timedelta(hours=1), 30, sum(range(60, 90)))]  # fmt: skip
        assert await sql.fetchval("SELECT count(*) FROM webhookd.statistic") == 2
        assert (await api("GET", "/app/shop/endpoint/hook/stats")).body == before
        assert not await registry.sweep(7 * 86_400.0)  # nothing twice
        assert (await api("GET", "/app/shop/endpoint/hook/stats")).body == before
        while await registry.sweep(86_400.0):
            pass
    assert await sql.fetchval("SELECT count(*) FROM webhookd.statistic_hour") == 0


async def test_who_reads_keeps_nobody_from_summing_up_for_long(
    dsn: str, api: Client, sql: Sql, store: StatisticStore
) -> None:
    number = await endpoint(api, sql)
    today = datetime.now(UTC).replace(hour=1, minute=0, second=0, microsecond=0)
    await sql.execute("UPDATE webhookd.statistic_summed SET until = $1", today - 4 * DAY)
    await store.add([row(today - 3 * DAY, number, 1)])
    async with Database(dsn, size=2) as database:
        async with database.transaction() as connection:
            await connection.fetch("SELECT count(*) FROM webhookd.statistic")
            while await Registry(database).sweep(7 * 86_400.0):
                pass
            assert await sql.fetchval("SELECT count(*) FROM webhookd.statistic") == 1
        assert await sql.fetchval("SELECT count(*) FROM webhookd.statistic_hour") == 1
        await Registry(database).sweep(7 * 86_400.0)
    assert await sql.fetchval("SELECT count(*) FROM webhookd.statistic") == 0


async def test_what_waits_is_that_of_now(sql: Sql, api: Client) -> None:
    number = await endpoint(api, sql)
    await sql.execute(
        """WITH made AS (
             INSERT INTO webhookd.outbox (type, payload, tenant) SELECT 'a', '{}', 'shop' FROM generate_series(1, 4)
             RETURNING id, created_at)
           INSERT INTO webhookd.backlog (endpoint_id, outbox_id, outbox_at, due, attempts, state, last_error)
           SELECT $1, id, created_at, now() + interval '1 hour', CASE WHEN n > 1 THEN 2 ELSE 0 END,
                  CASE WHEN n > 2 THEN 'rejected' ELSE 'retry' END, CASE WHEN n > 2 THEN 'discarded' END
             FROM (SELECT *, row_number() OVER () AS n FROM made) m""",
        number,
    )
    await sql.execute("UPDATE webhookd.backlog SET due = now() WHERE state = 'rejected'")
    found = (await api("GET", "/app/shop/endpoint/hook/stats")).body
    assert (found["pending"], found["sending"], found["canceled"]) == (1, 1, 2)
