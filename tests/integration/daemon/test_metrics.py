"""What monitoring sees of a daemon: each number is moved by what it counts, and whether it can work is true."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import (
    QUICK,
    Receiver,
    Running,
    Sql,
    as_user,
    configuration,
    eventually,
    insert,
    insert_many,
)
from tests.integration.engine.test_unreadable import LATE, bind, unbound
from tests.integration.web.conftest import Client, a_token
from tests.integration.web.test_endpoints import config as with_api
from tests.unit.metrics.test_alerts import RULES, names, panels
from tests.unit.metrics.test_families import everything
from tests.waiting import until
from webhookd.config.config import Config
from webhookd.config.schema import Metrics
from webhookd.daemon.daemon import Daemon
from webhookd.errors import ConfigError
from webhookd.metrics import looks, pages
from webhookd.policy.endpoint_state import EndpointState
from webhookd.store.database import Database
from webhookd.store.overview import health, overview

LISTENS: dict[str, Mapping[str, Any]] = {"metrics": {"listen": "127.0.0.1:0"}}
MOVED: dict[str, Callable[..., Any]] = {}  # by each metric, the test that moves it


def moves(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A test that moves these."""

    def note(test: Callable[..., Any]) -> Callable[..., Any]:
        MOVED.update((f"webhookd_{name}", test) for name in names)
        return test

    return note


class Scrape:
    """What `/metrics` says."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float | None:
        return self._samples.get((f"webhookd_{name}", frozenset(labels.items())))

    def labels(self, name: str) -> list[dict[str, str]]:
        return [dict(labels) for key, labels in self._samples if key == f"webhookd_{name}"]


async def ask(running: Daemon, path: str, method: str = "GET") -> tuple[int, str]:
    async with ClientSession() as session, session.request(method, running.metrics_url + path) as response:
        return response.status, await response.text()


async def scrape(running: Daemon) -> Scrape:
    status, text = await ask(running, "/metrics")
    assert status == 200
    return Scrape(text)


async def seen(running: Daemon, what: str, condition: Callable[[Scrape], object]) -> Scrape:
    """The first scrape of which that is true."""
    found: list[Scrape] = []

    async def true() -> bool:
        found.append(await scrape(running))
        return bool(condition(found[-1]))

    await eventually(true, what)
    return found[-1]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as a test wants to know."""
    monkeypatch.setattr(looks, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(looks, "RESTRAINT", 1.0)
    monkeypatch.setattr(pages, "FRESH_SECONDS", 0.0)


def config(receiver: Receiver, *names: str, **more: Mapping[str, Any]) -> Config:
    tables = {name: {"url": receiver.url(name)} for name in names}
    sections: dict[str, Mapping[str, Any]] = {**LISTENS, **more}
    return configuration(tables, **sections)


@asynccontextmanager
async def transaction(dsn: str, *statements: str) -> AsyncIterator[None]:
    """Somebody else's, open meanwhile."""
    other = await asyncpg.connect(dsn)
    try:
        async with other.transaction():
            for statement in statements:
                await other.execute(statement)
            yield
    finally:
        await other.close()


@moves(
    "attempts_total",
    "attempt_duration_seconds",
    "connections_total",
    "deliveries_total",
    "delivery_lag_seconds",
    "endpoint_attempts_total",
    "events_read_total",
    "pool_wait_seconds",
)
async def test_what_was_delivered_and_what_failed(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    receiver.answers("bad", 500, 404)
    retry = {"schedule": ["500ms"], "give_up_after": "1s"}
    tables: dict[str, Any] = {
        "good": {"url": receiver.url("good")},
        "bad": {"url": receiver.url("bad"), "retry": retry},
    }
    async with daemon(configuration(tables, delivery={"max_payload": "1KiB"}, **LISTENS)) as running:
        await insert(sql)
        await insert(sql, payload=json.dumps("x" * 2000))
        found = await seen(running, "all", lambda s: s("deliveries_total", result="exhausted"))
        found = await seen(
            running, "endpoints", lambda s: s("endpoint_attempts_total", tenant="", endpoint="bad", outcome="failed")
        )
        found = await seen(
            running, "that it was given up, which is an event, too", lambda s: s("events_read_total") == 3
        )
        assert found("attempts_total", outcome="delivered", code="200") == 1
        assert found("attempts_total", outcome="failed", code="500") == 1
        failed = found("attempts_total", outcome="failed", code="404")
        assert failed is not None
        assert found("deliveries_total", result="delivered") == 1
        assert found("deliveries_total", result="rejected") == 2
        assert found("attempt_duration_seconds_count") == 2 + failed
        assert found("delivery_lag_seconds_count") == 1
        assert found("connections_total", reused="false") == 2
        assert found("connections_total", reused="true") == failed
        assert found("endpoint_attempts_total", tenant="", endpoint="good", outcome="delivered") == 1
        assert found("endpoint_attempts_total", tenant="", endpoint="bad", outcome="failed") == 1 + failed
        assert (found("pool_wait_seconds_count") or 0) > 0


@moves("in_flight", "slots_in_use", "in_flight_limit", "batches_open", "spills_total")
async def test_what_is_under_way(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    healed = receiver.hangs("hook")
    slow = configuration(
        {"hook": {"url": receiver.url("hook"), "max_in_flight": 2}}, delivery={"max_in_flight": 123}, **LISTENS
    )
    async with daemon(slow) as running:
        await insert(sql)
        found = await seen(running, "one", lambda s: s("in_flight") == s("slots_in_use") == 1)
        assert found("in_flight_limit") == 123
        await seen(running, "an open batch", lambda s: s("batches_open"))
        await insert_many(sql, 10)
        await seen(running, "what does not fit", lambda s: s("spills_total"))
        healed.set()
        await seen(running, "the end", lambda s: s("in_flight") == 0 and s("batches_open") == 0)


@moves(
    "backlog",
    "endpoints",
    "endpoint_state",
    "endpoint_owed",
    "endpoint_cursor_age_seconds",
    "cursor_age_seconds",
    "endpoint_oldest_owed_age_seconds",
    "oldest_owed_age_seconds",
)
async def test_what_is_owed(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    receiver.answers("bad", 500)
    async with daemon(config(receiver, "good", "bad")) as running:
        found = await seen(running, "both", lambda s: s("endpoints", state="active") == 2)
        assert found("endpoint_state", tenant="", endpoint="bad", state="active") == 1
        await insert(sql)
        found = await seen(running, "a row", lambda s: s("backlog", state="retrying") == 1)
        await seen(running, "its age", lambda s: (s("oldest_owed_age_seconds") or 0) > 0)
        found = await seen(running, "of it", lambda s: s("endpoint_owed", tenant="", endpoint="bad") == 1)
        await seen(
            running, "its age", lambda s: (s("endpoint_oldest_owed_age_seconds", tenant="", endpoint="bad") or 0) > 0
        )
        assert found("endpoint_owed", tenant="", endpoint="good") == 0
        await insert_many(sql, 20)
        found = await seen(
            running, "that it fails", lambda s: s("endpoint_state", tenant="", endpoint="bad", state="failing")
        )
        assert found("endpoint_state", tenant="", endpoint="bad", state="active") is None
        await seen(running, "the sum", lambda s: s("endpoints", state="failing") == 1)
        await seen(running, "parked", lambda s: s("endpoint_owed", tenant="", endpoint="bad") == 21)
        await insert_many(sql, 2_000)
        for name, labels in (
            ("endpoint_cursor_age_seconds", {"tenant": "", "endpoint": "bad"}),
            ("cursor_age_seconds", {}),
        ):
            await seen(running, name, lambda s, name=name, labels=labels: (s(name, **labels) or 0) > 0)  # type: ignore[misc]
        await sql.execute("SELECT webhookd.pause(ARRAY(SELECT id FROM webhookd.endpoint))")
        await seen(running, "the pause", lambda s: s("endpoints", state="paused") == 2)


@moves("unread_events", "unread_age_seconds", "scheduled_events", "held_snapshot_age_seconds")
async def test_what_nobody_has_read(dsn: str, sql: Sql, receiver: Receiver, daemon: Running) -> None:
    async with daemon(config(receiver, "hook")) as running:
        async with transaction(dsn, "LOCK TABLE webhookd.lock_log IN EXCLUSIVE MODE", "SELECT pg_current_xact_id()"):
            await insert(sql)
            await seen(running, "it waits", lambda s: s("unread_events") == 1 and (s("unread_age_seconds") or 0) > 0)
            await seen(running, "why", lambda s: (s("held_snapshot_age_seconds") or 0) > 0)
        await seen(running, "it is read", lambda s: s("unread_events") == 0 and s("unread_age_seconds") == 0)
        await sql.execute(
            "INSERT INTO webhookd.outbox (type, payload, deliver_after) VALUES ('t', '{}', now() + interval '1 h')"
        )
        await seen(running, "it is scheduled", lambda s: s("scheduled_events") == 1)


@moves("recorder_queue", "database_errors_total")
async def test_a_database_that_does_not_take_results(dsn: str, sql: Sql, receiver: Receiver, daemon: Running) -> None:
    async with daemon(config(receiver, "hook")) as running:
        async with transaction(dsn, "LOCK TABLE webhookd.attempt IN ACCESS EXCLUSIVE MODE"):
            await insert(sql)
            await seen(running, "it waits", lambda s: s("recorder_queue") == 1)
            await sql.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name = 'webhookd'"
            )
            await seen(running, "it is told", lambda s: s("database_errors_total", kind="unavailable"))
        await seen(running, "it is written", lambda s: s("recorder_queue") == 0)


@moves("rescues_total")
async def test_what_is_taken_over(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    healed = receiver.hangs("hook")

    async def killed() -> None:
        async with daemon(config(receiver, "hook")):
            await insert(sql)
            await until(lambda: receiver.flying["hook"], "it is under way")
            raise LookupError("killed")

    with pytest.raises(ExceptionGroup):
        await killed()
    healed.set()
    async with daemon(config(receiver, "hook")) as running:
        await seen(running, "it is taken over", lambda s: s("rescues_total"))
        await seen(running, "and delivered", lambda s: s("deliveries_total", result="delivered") == 1)


@moves("unreadable_events_total", "unreadable_rows")
async def test_what_cannot_be_read(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    bounds = await unbound(sql)
    await sql.execute(f"SELECT webhookd.emit('t', '{{}}', occurred_at => {LATE})")
    await bind(sql, bounds)
    async with daemon(config(receiver, "hook")) as running:
        await seen(running, "it", lambda s: s("unreadable_events_total") == 1)
        await seen(running, "its row", lambda s: s("unreadable_rows") == 1)


@moves("missed_events_total", "missed_last_hour", "exhausted_last_hour")
async def test_what_was_given_up_behind_an_endpoint_that_fails(
    sql: Sql, receiver: Receiver, daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webhookd.engine.parked.endings.GIVE_UP_LOOKS", 1)
    monkeypatch.setattr("webhookd.policy.breaker.PROBE_MOST", 0.01)
    receiver.answers("bad", 500)
    table = {"url": receiver.url("bad"), "retry": {"schedule": ["200ms"], "give_up_after": "1s"}}
    async with daemon(configuration({"bad": table}, **LISTENS)) as running:
        await insert_many(sql, 30)
        await seen(running, "it fails", lambda s: s("endpoints", state="failing"))
        await insert_many(sql, 2_000)
        await seen(running, "rows", lambda s: s("exhausted_last_hour"))
        await seen(running, "a range", lambda s: s("missed_last_hour") and s("missed_events_total"))
        await seen(running, "those that were tried", lambda s: s("deliveries_total", result="exhausted"))


@moves("poll_consumers", "api_requests_total", "api_request_duration_seconds")
async def test_who_asks_the_api(dsn: str, receiver: Receiver, daemon: Running) -> None:
    both = replace(with_api(receiver), metrics=Metrics(**LISTENS["metrics"]))
    async with daemon(both) as running, ClientSession() as session:
        client = Client(session, running.api_url, await a_token(dsn, "admin"))
        assert (await client("GET", "/app")).status == 200
        assert (await client("GET", "/nothing/here")).status == 404
        polled = {"url": "", "uid": "polled", "webhookd": {"kind": "poll"}}
        assert (await client("POST", "/app/default/endpoint", polled)).status == 201
        waiting = asyncio.create_task(client("GET", "/app/default/poller/polled?wait=20"))
        await seen(running, "who waits", lambda s: s("poll_consumers") == 1)
        waiting.cancel()
        found = await seen(running, "nobody", lambda s: s("poll_consumers") == 0)
        listed = [each for each in found.labels("api_requests_total") if each["status"] == "200"]
        assert len(listed) == 1
        assert found("api_requests_total", operation="none", status="404") == 1
        assert found("api_request_duration_seconds_count") == 3


@moves(
    "config_last_reload_successful",
    "config_last_reload_success_timestamp_seconds",
    "config_info",
    "configurations",
    "daemons",
)
async def test_what_runs(receiver: Receiver, daemon: Running) -> None:
    loaded: list[Config | ConfigError] = [ConfigError(["a mistake"])]

    def load() -> Config:
        if isinstance(found := loaded[-1], ConfigError):
            raise found
        return found

    first, second = config(receiver, "hook"), config(receiver, "hook", "other")
    async with daemon(first, load=load) as running:
        found = await seen(running, "one", lambda s: s("daemons") == 1 and s("configurations") == 1)
        assert found("config_last_reload_successful") == 1
        assert found("config_info", hash=first.config_hash) == 1
        taken = found("config_last_reload_success_timestamp_seconds")
        assert taken is not None
        running.reload()
        found = await seen(running, "refused", lambda s: s("config_last_reload_successful") == 0)
        assert found("config_last_reload_success_timestamp_seconds") == taken
        async with daemon(second) as beside:
            for each in (running, beside):
                await seen(each, "two that differ", lambda s: s("daemons") == 2 and s("configurations") == 2)
            loaded.append(second)
            running.reload()
            found = await seen(running, "taken", lambda s: s("config_info", hash=second.config_hash) == 1)
            assert (found("config_last_reload_success_timestamp_seconds") or 0) > taken
            await seen(running, "alike", lambda s: s("configurations") == 1)


@moves("outbox_bytes", "tables_bytes", "default_partition_rows", "partition_days_ahead", "database_seen_age_seconds")
async def test_what_the_tables_are_like(dsn: str, sql: Sql, receiver: Receiver, daemon: Running) -> None:
    # A row in DEFAULT is what upkeep mends.
    async with daemon(config(receiver, "hook", retention={"manage_partitions": False})) as running:
        before = await seen(running, "both", lambda s: (s("partition_days_ahead") or 0) > 20 and s("outbox_bytes"))
        await sql.execute("INSERT INTO webhookd.attempt_default SELECT now() + interval '50 days', 1, 1, 1, true")
        await sql.execute(
            "INSERT INTO webhookd.outbox (type, payload) "
            "SELECT 'x', to_json(repeat(md5(random()::text), 9999)) FROM generate_series(1, 20)"
        )
        for name in ("outbox_bytes", "tables_bytes"):
            await seen(running, name, lambda s, name=name: s(name) > before(name))  # type: ignore[misc]
        await seen(running, "it", lambda s: s("default_partition_rows") == 1)
        await sql.execute("DELETE FROM webhookd.attempt_default")
        async with transaction(dsn, "LOCK TABLE webhookd.backlog IN ACCESS EXCLUSIVE MODE"):
            for part in ("view", "rest"):
                await seen(running, part, lambda s, part=part: (s("database_seen_age_seconds", part=part) or 0) > 0.5)  # type: ignore[misc]


@moves("loop_lag_seconds", "log_lines_dropped_total", "ready", "build_info")
async def test_how_the_process_is(dsn: str, receiver: Receiver) -> None:
    ready, lost = asyncio.Event(), [0]
    made = Daemon(
        config(receiver, "hook"),
        dsn,
        intervals=QUICK,
        on_ready=lambda _: ready.set(),
        log_lines_dropped=lambda: lost[0],
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(made.run())
        await ready.wait()
        found = await scrape(made)
        assert (found("ready"), found("log_lines_dropped_total")) == (1, 0)
        assert len(found.labels("build_info")) == 1
        lost[0] = 7
        time.sleep(0.3)  # noqa: ASYNC251 - which is what a loop must never meet
        found = await seen(made, "the stall", lambda s: (s("loop_lag_seconds") or 0) > 0.1)
        assert found("log_lines_dropped_total") == 7
        assert (await ask(made, "/readyz")) == (200, "It delivers.\n")
        made.stop()


def test_each_metric_is_moved_by_a_test() -> None:
    ours = {each.name for each in everything() if each.name.startswith("webhookd_")}
    assert MOVED.keys() == ours


async def test_a_live_scrape_has_all_that_is_documented_and_that_alerts_and_panels_look_at(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    receiver.answers("bad", 500)
    async with daemon(config(receiver, "hook", "bad")) as running:
        await insert_many(sql, 30)
        await seen(running, "that one fails", lambda s: s("endpoint_state", tenant="", endpoint="bad", state="failing"))
        await insert_many(sql, 2_000)
        found = await seen(running, "its cursor", lambda s: s("endpoint_cursor_age_seconds", tenant="", endpoint="bad"))
    assert re.findall(r"^# TYPE (\w+)", found.text, re.MULTILINE) == [each.name for each in everything()]
    samples = names(re.sub(r"^#.*$", "", found.text, flags=re.MULTILINE))
    unseen = {"webhookd_api_requests_total"}  # no API is served here
    for expression in [rule["expr"] for rule in RULES] + panels():
        assert names(expression) - unseen <= samples, expression


# Whether it can work.


async def test_it_lives_and_is_not_ready_while_there_is_no_database(receiver: Receiver) -> None:
    made = Daemon(config(receiver, "hook"), "postgresql://nobody@127.0.0.1:1/none", intervals=QUICK)
    async with asyncio.TaskGroup() as group:
        group.create_task(made.run())
        await until(lambda: made.metrics_url, "it listens")
        assert (await ask(made, "/healthz"))[0] == 200

        async def says_why() -> bool:
            status, why = await ask(made, "/readyz")
            assert status == 503
            return why.startswith("waiting for the database:")

        await eventually(says_why, "why")
        found = await scrape(made)
        assert (found("ready"), found("daemons")) == (0, None)
        made.stop()


async def test_it_is_not_ready_before_the_schema_is_there(dsn: str, sql: Sql, receiver: Receiver) -> None:
    await sql.execute("DROP SCHEMA webhookd CASCADE")
    made = Daemon(config(receiver, "hook"), dsn, intervals=QUICK)
    async with asyncio.TaskGroup() as group:
        group.create_task(made.run())
        await until(lambda: made.metrics_url, "it listens")

        async def says_why() -> bool:
            status, why = await ask(made, "/readyz")
            return status == 503 and "no webhookd schema: run `webhookd migrate`" in why

        await eventually(says_why, "why")
        made.stop()


async def test_it_is_not_ready_while_the_database_is_away(
    server: str, dsn: str, sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    name = await sql.fetchval("SELECT current_database()")
    elsewhere = await asyncpg.connect(server)

    async def ready(running: Daemon) -> int:
        return (await ask(running, "/readyz"))[0]

    try:
        async with daemon(config(receiver, "hook")) as running:
            assert await ready(running) == 200
            await elsewhere.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            await elsewhere.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = $1 AND application_name = 'webhookd'",
                name,
            )

            async def away() -> bool:
                return await ready(running) == 503

            async def back() -> bool:
                return await ready(running) == 200

            await eventually(away, "it is away")
            assert (await ask(running, "/healthz"))[0] == 200
            await elsewhere.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
            await eventually(back, "it is back")
    finally:
        await elsewhere.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await elsewhere.close()


# The pages.


async def test_nothing_listens_unless_it_is_to(receiver: Receiver, daemon: Running) -> None:
    async with daemon(config(receiver, "hook", metrics={})) as running:
        assert running.metrics_url == ""


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/metrics", 200),
        ("GET", "/metrics?x=1", 200),
        ("GET", "/", 200),
        ("GET", "/nothing", 404),
        ("GET", "/metrics/", 404),
        ("POST", "/metrics", 405),
    ],
)
async def test_other_questions(method: str, path: str, status: int, receiver: Receiver, daemon: Running) -> None:
    async with daemon(config(receiver, "hook")) as running:
        assert (await ask(running, path, method))[0] == status


async def test_endpoints_are_left_out_where_they_are_not_wanted(receiver: Receiver, daemon: Running) -> None:
    configs = [
        config(receiver, "hook", metrics={**LISTENS["metrics"], "endpoints": wanted}) for wanted in (False, True)
    ]
    async with daemon(configs[0], load=lambda: configs[1]) as running:
        found = await seen(running, "their states", lambda s: s("endpoints", state="active") == 1)
        assert "webhookd_endpoint_" not in found.text
        running.reload()
        await seen(running, "them", lambda s: s("endpoint_owed", tenant="", endpoint="hook") == 0)


@pytest.mark.parametrize(("ours", "others"), [(0, 0), (500, 0), (3, 10_000)])
async def test_it_is_asked_while_it_delivers(
    ours: int, others: int, sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    await sql.execute(
        """INSERT INTO webhookd.endpoint (tenant, name, source, spec)
           SELECT 'others', 'e' || n, 'api', '{"events": ["order.paid"]}' FROM generate_series(1, $1) n""",
        others,
    )
    async with daemon(config(receiver, *(f"hook-{n}" for n in range(ours)))) as running:
        await insert_many(sql, 5)
        for _ in range(10):
            await scrape(running)

        def all_(found: Scrape) -> bool:
            delivered = found("deliveries_total", result="delivered") == 5 * ours
            return delivered and found("endpoints", state="active") == ours + others

        found = await seen(running, "all", all_)
        assert len(found.labels("endpoint_owed")) == ours + others


async def test_many_who_ask_at_once_are_all_told(receiver: Receiver, daemon: Running) -> None:
    async with daemon(config(receiver, "hook")) as running:
        for found in await asyncio.gather(*(scrape(running) for _ in range(50))):
            assert found("in_flight_limit") == 500


async def test_an_address_that_is_taken_is_told(dsn: str, receiver: Receiver, daemon: Running) -> None:
    async with daemon(config(receiver, "hook")) as running:
        where = running.metrics_url.removeprefix("http://")
        with pytest.raises(ConfigError, match=rf"\[metrics\] listen: {where} cannot be listened on"):
            await Daemon(config(receiver, "hook", metrics={"listen": where}), dsn).run()


async def test_the_least_rights_are_enough(granted: Sql, dsn: str) -> None:
    async with Database(as_user(dsn, "webhookd_daemon"), size=1) as database:
        await overview(database, endpoints=True)
        assert (await health(database))["live_daemons"] == 0
    async with Database(as_user(dsn, "webhookd_reader"), size=1) as database:
        assert len(await database.fetch("SELECT * FROM webhookd.health")) == 1


async def test_many_endpoints_are_looked_at_in_pages(sql: Sql, dsn: str) -> None:
    await sql.execute(
        """INSERT INTO webhookd.endpoint (tenant, name, source, spec, removed_at)
           SELECT 't', 'e' || n, 'file', '{}', CASE WHEN n % 10 = 0 THEN now() END FROM generate_series(1, 2500) n"""
    )
    async with Database(dsn, size=1) as database:
        found, counted = [await overview(database, endpoints=wanted) for wanted in (True, False)]
    assert len(found.endpoints) == len({each.id for each in found.endpoints}) == 2_250
    assert found.states == counted.states
    assert found.states[EndpointState.ACTIVE] == 2_250
    assert counted.endpoints == ()


async def test_who_holds_a_transaction_open_is_named(dsn: str, sql: Sql) -> None:
    assert await sql.fetchval("SELECT snapshot_holder FROM webhookd.health") is None
    other = await asyncpg.connect(dsn, server_settings={"application_name": "a report"})
    try:
        async with other.transaction(isolation="repeatable_read"):
            await other.fetchval("SELECT count(*) FROM webhookd.outbox")
            row = await sql.fetchrow("SELECT snapshot_seconds, snapshot_holder FROM webhookd.health")
            assert row is not None
            assert row["snapshot_seconds"] > 0
            assert (
                row["snapshot_holder"]
                == f"process {other.get_server_pid()} of postgres (a report), idle in transaction"
            )
    finally:
        await other.close()


async def test_one_that_cannot_serve_all_serves_nothing(dsn: str, receiver: Receiver, daemon: Running) -> None:
    async with daemon(config(receiver, "hook")) as running:
        where = running.metrics_url.removeprefix("http://")
        before = asyncio.all_tasks()
        with pytest.raises(ConfigError, match=r"\[api\] listen: "):
            await Daemon(config(receiver, "hook", api={"listen": where}), dsn).run()
        assert [task for task in asyncio.all_tasks() - before if "Look" in repr(task)] == []
