"""Events that cannot be read: each is set aside and told, and harms no other."""

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.conftest import database, execute
from tests.endpoints import HOOK
from tests.integration.cli.test_cli import configuration as files
from tests.integration.cli.test_cli import fails, webhookd
from tests.integration.conftest import (
    QUICK,
    Receiver,
    Running,
    Sql,
    as_user,
    configuration,
    eventually,
    finished,
    insert,
    insert_many,
    settled,
    states,
    status,
)
from webhookd.cli.main import exit_code
from webhookd.daemon.daemon import Daemon
from webhookd.errors import ConfigError, SchemaMismatch
from webhookd.policy.matching import passes_filter
from webhookd.store.batches import Batches
from webhookd.store.database import Database
from webhookd.store.listings import STATES, Asked, Listings
from webhookd.store.migrations import Rebased, migrate, rebase
from webhookd.store.reports import Reports

LATE = "to_timestamp(1764336000000)"  # milliseconds where seconds are wanted
UNREADABLE = {
    "late": f"occurred_at => {LATE}",
    "latest": "occurred_at => '294276-12-31 23:59:59+00'",
    "early": "occurred_at => '0001-12-31 23:59:59+00 BC'",
    "earliest": "occurred_at => '4713-01-01 00:00:00+00 BC'",
}
BOUNDED = {
    "type may have 512 characters at most": "repeat('t', 513), '{}'",
    "tenant may have 255 characters at most": "'t', '{}', tenant => repeat('é', 256)",
    "ordering_key may have 512 characters at most": "'t', '{}', ordering_key => repeat('k', 513)",
    "metadata may have 16 KiB at most: put more into the payload": "'t', '{}', metadata => to_json(repeat('m', 16383))",
    "occurred_at must lie in the years 1 to 9999": f"'t', '{{}}', occurred_at => {LATE}",
    "deliver_after must lie in the years 1 to 9999": "'t', '{}', deliver_after => 'infinity'",
    "types that begin with webhookd. are those of our own events": "'webhookd.endpoint.disabled', '{}'",
}
BOUNDS = """
SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
 WHERE conrelid = 'webhookd.outbox'::regclass AND contype = 'c' AND conname ~ ' '"""


async def unbound(sql: Sql) -> list[asyncpg.Record]:
    """As the table was for rows that are older than its bounds, which are returned."""
    bounds = await sql.fetch(BOUNDS)
    assert len(bounds) == 8
    for name, _ in bounds:
        await sql.execute(f'ALTER TABLE webhookd.outbox DROP CONSTRAINT "{name}"')
    return bounds


async def bind(sql: Sql, bounds: Sequence[asyncpg.Record]) -> None:
    """The bounds that `unbound` took, for what comes from now on."""
    for name, definition in bounds:
        await sql.execute(f'ALTER TABLE webhookd.outbox ADD CONSTRAINT "{name}" {definition}')


async def emit(sql: Sql, arguments: str) -> str:
    event_id: str = await sql.fetchval(f"SELECT webhookd.emit({arguments})")
    return event_id


async def number(sql: Sql, event_id: str) -> int:
    id_: int = await sql.fetchval("SELECT id FROM webhookd.outbox WHERE event_id = $1", event_id)
    return id_


# What an INSERT is told


@pytest.mark.parametrize("sentence", BOUNDED)
async def test_what_would_harm_others_is_refused_with_a_sentence(sql: Sql, sentence: str) -> None:
    with pytest.raises(asyncpg.CheckViolationError, match=f'"{sentence}"'):
        await emit(sql, BOUNDED[sentence])
    with pytest.raises(asyncpg.CheckViolationError, match="created_at must lie in the years 1970 to 9999"):
        await sql.execute("INSERT INTO webhookd.outbox (type, payload, created_at) VALUES ('t', '{}', 'infinity')")


async def test_what_just_fits_is_delivered(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    just = [
        "repeat('é', 512), '{}'",
        "'t', '{}', tenant => repeat('é', 255)",
        "'t', '{}', ordering_key => repeat('é', 512)",
        "'t', '{}', metadata => to_json(repeat('m', 16382))",
        "'t', '{}', occurred_at => '0001-01-01 00:00:00+00'",
        "'t', '{}', occurred_at => '9999-12-31 23:59:59.999999+00'",
        "'t', '{}', deliver_after => '0001-01-01 00:00:00+00'",
    ]
    formats = ("standard", "raw", "cloudevents", "cloudevents-binary")
    config = configuration({name: {"url": receiver.url(name), "tenant": "*", "format": name} for name in formats})
    async with daemon(config):
        ids = [await emit(sql, arguments) for arguments in just]
        await finished(sql)
    for name in formats:
        assert sorted(receiver.events(name)) == sorted(ids)


# Rows that are there all the same


@pytest.mark.parametrize("kind", UNREADABLE)
async def test_an_unreadable_event_is_set_aside_and_all_others_of_its_batch_go_on(
    sql: Sql, receiver: Receiver, daemon: Running, kind: str
) -> None:
    await unbound(sql)
    async with sql.transaction():
        first = await insert_many(sql, 200)
        bad = [await emit(sql, f"'order.created', '{{}}', {UNREADABLE[kind]}") for _ in range(3)]
        last = await insert_many(sql, 200)
    config = configuration({"hook": {"url": receiver.url("hook")}})
    async with daemon(config), daemon(config):
        await finished(sql)
        later = await insert(sql)
        await finished(sql)
    assert sorted(receiver.events("hook")) == sorted([*first, *last, later])
    rows = await sql.fetch("SELECT outbox_id, why FROM webhookd.unreadable ORDER BY outbox_id")
    assert [row["outbox_id"] for row in rows] == [await number(sql, each) for each in bad]
    assert all("out of range" in row["why"] for row in rows)
    for each in bad:
        (row,) = (await status(sql, each)).values()
        assert (row["state"], row["last_error"]) == ("unreadable", rows[0]["why"])
    assert await sql.fetchval("SELECT unreadable_events FROM webhookd.health") == 3


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "294276-12-31 23:59:59+00", "4713-01-01 00:00:00+00 BC"])
async def test_a_created_at_that_cannot_be_read_harms_nobody(
    sql: Sql, receiver: Receiver, daemon: Running, moment: str
) -> None:
    await unbound(sql)
    query = "INSERT INTO webhookd.outbox (type, payload, created_at) VALUES ('t', '{}', $1::text::timestamptz)"
    good = await insert_many(sql, 3)
    bad = await sql.fetchval(f"{query} RETURNING id", moment)
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        await finished(sql)
    assert sorted(receiver.events("hook")) == sorted(good)
    assert [row[0] for row in await sql.fetch("SELECT outbox_id FROM webhookd.unreadable")] == [bad]
    assert await sql.fetchval("SELECT unread_events FROM webhookd.health") == 0


async def test_the_retrier_meets_one(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    """A row of the backlog whose event has become unreadable ends, and so do those of other endpoints."""
    receiver.answers("hook", 500)
    receiver.answers("other", 500)
    config = configuration(
        {name: {"url": receiver.url(name)} for name in ("hook", "other")}, retry={"first": "1s", "jitter": 0}
    )
    async with daemon(config):
        events = await insert_many(sql, 20)

        async def failed() -> bool:
            return bool(await sql.fetchval("SELECT count(*) = 40 FROM webhookd.backlog"))

        await eventually(failed, "a first failure of each")
    await unbound(sql)
    await sql.execute(f"UPDATE webhookd.outbox SET occurred_at = {LATE} WHERE event_id = $1", events[7])
    receiver.answers("hook", 200)
    receiver.answers("other", 200)
    async with daemon(config):
        await finished(sql)
    found = await status(sql, events[7])
    assert {endpoint: row["state"] for endpoint, row in found.items()} == {
        "hook": "rejected",
        "other": "rejected",
        None: "unreadable",
    }
    assert {found[name]["last_error"] for name in ("hook", "other")} == {"event_unreadable"}
    for each in (*events[:7], *events[8:]):
        assert await states(sql, each) == {"hook": "delivered", "other": "delivered"}


async def test_a_cursor_meets_one(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    """What is parked while it comes is read by a cursor, a whole page at a time."""
    await unbound(sql)
    config = configuration({"hook": {"url": receiver.url("hook")}})
    async with daemon(config):
        await sql.execute("SELECT webhookd.pause(array_agg(id)) FROM webhookd.endpoint")
    async with sql.transaction():
        good = await insert_many(sql, 50)
        bad = await emit(sql, f"'t', '{{}}', occurred_at => {LATE}")
    async with daemon(config):
        good.append(await insert(sql))
        await sql.execute("SELECT webhookd.resume(array_agg(id)) FROM webhookd.endpoint")
        await finished(sql)
    assert sorted(receiver.events("hook")) == sorted(good)
    assert await sql.fetchval("SELECT outbox_id FROM webhookd.unreadable") == await number(sql, bad)


async def test_what_is_unreadable_is_forgotten_with_its_event(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    await unbound(sql)
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        bad = await emit(sql, f"'t', '{{}}', tenant => 'acme', occurred_at => {LATE}")
        await finished(sql)
    assert await sql.fetchval("SELECT count(*) FROM webhookd.unreadable") == 1
    await sql.fetch("SELECT * FROM webhookd.erase(event_id => $1)", bad)
    assert await sql.fetchval("SELECT count(*) FROM webhookd.unreadable") == 0
    await sql.execute("INSERT INTO webhookd.unreadable (outbox_id, why) VALUES (1, 'gone'), (1000, 'there')")
    await sql.execute("ALTER SEQUENCE webhookd.outbox_id_seq RESTART WITH 1000")
    await insert(sql)
    await sql.fetch("SELECT webhookd.sweep()")
    assert [row[0] for row in await sql.fetch("SELECT outbox_id FROM webhookd.unreadable")] == [1000]


async def test_a_partition_for_what_is_older_than_the_bounds_is_made_moved_and_attached(sql: Sql) -> None:
    """Both rows fall into DEFAULT, in two gaps, so one of them is written anew."""
    bounds = await unbound(sql)
    for days in (-40, 60):
        await sql.execute(
            f"""INSERT INTO webhookd.outbox (type, payload, created_at, occurred_at)
                VALUES (repeat('t', 1000), '{{}}', now() + $1 * interval '1 day', {LATE})""",
            days,
        )
    await bind(sql, bounds)
    done = [tuple(row) for row in await sql.fetch("SELECT * FROM webhookd.maintain(interval '90 days')")]
    done += [tuple(row) for row in await sql.fetch("SELECT * FROM webhookd.maintain(interval '90 days')")]
    assert [problem for _, problem in done] == [None, None]
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox WHERE char_length(type) = 1000") == 2
    assert await sql.fetchval("SELECT count(*) FROM webhookd.outbox_default") == 0
    # A whole partition that was taken out comes back.
    (name, since, until), *_ = await sql.fetch(
        "SELECT * FROM webhookd.partitions('outbox') WHERE until < now() AND name ~ 'until' ORDER BY until"
    )
    assert await sql.fetchval(f"SELECT count(*) FROM webhookd.{name}") == 1
    await sql.execute(f"ALTER TABLE webhookd.outbox DETACH PARTITION webhookd.{name}")
    low = "MINVALUE" if since.year == 1 else f"'{since}'"
    await sql.execute(
        f"ALTER TABLE webhookd.outbox ATTACH PARTITION webhookd.{name} FOR VALUES FROM ({low}) TO ('{until}')"
    )
    with pytest.raises(asyncpg.CheckViolationError):  # whatever DEFAULT is now
        await sql.execute(
            "INSERT INTO webhookd.outbox (type, payload, created_at) SELECT repeat('t', 513), '{}', '2222-02-22'"
        )


async def test_a_copy_with_events_older_than_the_bounds_is_taken_over(sql: Sql, dsn: str) -> None:
    bounds = await unbound(sql)
    bad = await emit(sql, f"repeat('t', 513), '{{}}', occurred_at => {LATE}")
    await sql.execute("UPDATE webhookd.outbox SET xid = (xid::text::bigint + 8000000000)::text::xid8")
    await bind(sql, bounds)
    await sql.execute("DELETE FROM webhookd.binding")
    await sql.execute("INSERT INTO webhookd.binding (system_identifier, environment) VALUES ('7', 'production')")
    assert await rebase(dsn, "production", "deliver", "me") == Rebased(events=1, batches=0, deliveries=0, later=0)
    assert await sql.fetchval("SELECT xid FROM webhookd.outbox WHERE event_id = $1", bad) == 0
    rows = await sql.fetch(BOUNDS)
    assert sorted(map(tuple, rows)) == sorted(map(tuple, bounds))


async def test_a_batch_may_be_adopted_without_end(sql: Sql, dsn: str) -> None:
    await insert(sql)
    await sql.execute("SELECT webhookd.cut(100, 500, 1)")
    await sql.execute("UPDATE webhookd.batch SET claims = 32766, owner = NULL WHERE done_at IS NULL")
    async with Database(dsn) as asked:
        for _ in range(3):
            (adopted,) = await Batches(asked).adopt(7, 0, [], steady_until=0.0, dead_after=15.0, most=20)
            assert adopted.claims == 32767
            await sql.execute("UPDATE webhookd.batch SET owner = NULL WHERE done_at IS NULL")


# Metadata and moments that SQL alone cannot read

METADATA = [
    (r'{"region": "eu", "x": "\u0000"}', True),
    (r'{"region": "eu", "x": {"y": ["\u0000\u0000"]}}', True),
    (r'{"region": "eu", "\u0000": 1}', True),
    (r'{"region": "eu\u0000"}', False),
    (r'{"region": "\\u0000"}', False),
    (r'{"region": "eu", "x": "\\\u0000\\\\u0000"}', True),
    (r'{"region\u0000": "eu"}', False),
    (r'{"region": "us", "region": "eu"}', True),
    (r'{"region": null}', False),
    (r'["region"]', False),
    (r'"region"', False),
    (r'{"region": ["us", "eu\u0000", "uk"]}', True),
    (r'{"region": ["us", "eu\u0000"]}', False),
    (r'{"region": []}', False),
    (r'{"region": [["eu"]]}', False),
    ("[" * 3000 + "]" * 3000, False),
    ("{}", False),
]


@pytest.mark.parametrize(("metadata", "passes"), METADATA)
async def test_event_status_answers_whatever_metadata_holds_and_sees_what_the_daemon_sees(
    sql: Sql, receiver: Receiver, daemon: Running, metadata: str, passes: bool
) -> None:
    filtered: dict[str, Any] = {"url": receiver.url("hook"), "filter": {"region": ["eu", "uk"]}}
    config = configuration({"hook": filtered, "all": {"url": receiver.url("all")}})
    async with daemon(config):
        await sql.execute("SELECT webhookd.pause(array_agg(id)) FROM webhookd.endpoint WHERE name = 'hook'")
        event_id = await insert(sql, metadata=metadata)

        async def sent() -> bool:
            return (await states(sql, event_id)).get("all") == "delivered"

        await eventually(sent, "it to be delivered to the endpoint without a filter")
        assert ("hook" in await states(sql, event_id)) is passes
        await sql.execute("SELECT webhookd.resume(array_agg(id)) FROM webhookd.endpoint WHERE name = 'hook'")
        await finished(sql)
    assert (receiver.events("hook") == [event_id]) is passes


VALUES = ["null", "true", "false", "1", "1.5", "-7", '"eu"', '""', r'"\\u0000"', r'"\u0000"', '"é"', r'"\ufffd"', "[]"]
VALUES += [f"[{value}]" for value in VALUES] + [f'["x", {value}, {{"eu": "eu"}}]' for value in VALUES]


@pytest.mark.parametrize(
    "wanted", ["null", "true", "1", "1.5", "-7", "eu", "", "\\u0000", "\N{REPLACEMENT CHARACTER}", "é"]
)
async def test_the_filter_of_sql_is_that_of_the_daemon(sql: Sql, wanted: str) -> None:
    endpoint = replace(HOOK, filter={"key": (wanted,)})
    for value in VALUES:
        metadata = f'{{"key": {value}}}'
        found = await sql.fetchval("SELECT webhookd.passes($1, $2)", json.dumps({"key": [wanted]}), metadata)
        assert found is passes_filter(endpoint, metadata.encode()), (wanted, value)


# What people see


async def test_status_answers_where_moments_are_infinite(
    sql: Sql, dsn: str, receiver: Receiver, daemon: Running
) -> None:
    await unbound(sql)
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        event_id = await insert(sql)
        never = await emit(sql, "'t', '{}', deliver_after => 'infinity'")
        await emit(sql, "'t', '{}', deliver_after => '294276-12-31 00:00:00+00'")
        await emit(sql, "'t', '{}', deliver_after => '-infinity'")
        await finished(sql)
    await sql.execute("INSERT INTO webhookd.outbox (type, payload, created_at) VALUES ('t', '{}', 'infinity')")
    async with Database(dsn, size=1) as asked:
        found = await Reports(asked).status(15.0)
        assert found.scheduled.events == 2
        assert found.waiting.events == 1
        ((_, fates),) = await Reports(asked).fates(never)
        assert [(fate.state, fate.due_in) for fate in fates] == [("waiting", None)]
    assert len(receiver.got) == 2
    assert event_id in receiver.events("hook")
    await sql.fetch("SELECT * FROM webhookd.health")


async def test_commands_show_what_can_be_shown_of_an_event_that_cannot_be_read(
    sql: Sql, dsn: str, receiver: Receiver, daemon: Running
) -> None:
    await unbound(sql)
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        bad = await emit(sql, f"'order.created', '{{}}', tenant => 'acme', occurred_at => {LATE}")
        await finished(sql)
    await sql.execute("UPDATE webhookd.outbox SET created_at = '294276-12-31 00:00:00+00'")
    async with Database(dsn, size=1) as asked:
        ((event, fates),) = await Reports(asked).fates(bad)
        assert (event.event_id, event.type, event.tenant) == (bad, "order.created", "acme")
        assert [(fate.endpoint, fate.state) for fate in fates] == [(None, "unreadable")]
        assert (await Reports(asked).status(15.0)).health.unreadable == 1
        listings = Listings(asked)
        ((line,), _) = await listings.events(Asked(10), None, None)
        assert (line.event_id, line.state) == (bad, "unreadable")
        await listings.deliveries(Asked(10), None, STATES, bad)


async def test_emit_explain_and_status_say_it_in_a_sentence(
    sql: Sql, dsn: str, receiver: Receiver, daemon: Running, tmp_path: Path
) -> None:
    file = files(tmp_path, dsn)
    found = await asyncio.to_thread(webhookd, "emit", "-c", file, "--tenant", "t" * 256, "a", "{}")
    fails(found, 1, "the outbox does not take this event: tenant may have 255 characters at most")
    await unbound(sql)
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        bad = await emit(sql, f"'order.created', '{{}}', occurred_at => {LATE}")
        await finished(sql)
    found = await asyncio.to_thread(webhookd, "explain", "-c", file, bad)
    why = await sql.fetchval("SELECT why FROM webhookd.unreadable")
    assert "unreadable" in found.stdout + found.stderr
    assert why in found.stdout
    found = await asyncio.to_thread(webhookd, "status", "-c", file)
    assert "problem      1 event could not be read: the table webhookd.unreadable says why" in found.stdout


async def test_a_right_that_is_missing_makes_a_daemon_wait_and_say_so(
    granted: Sql, dsn: str, receiver: Receiver
) -> None:
    """Of one table only, so that it can still say it where others look."""
    sql = granted
    config = configuration({"hook": {"url": receiver.url("hook")}})
    await sql.execute("REVOKE SELECT ON webhookd.outbox FROM webhookd_daemon")
    daemon = Daemon(config, as_user(dsn, "webhookd_daemon"), intervals=QUICK)
    async with asyncio.TaskGroup() as group:
        group.create_task(daemon.run())
        event_id = await insert(sql)

        async def told() -> bool:
            problems = await sql.fetchval("SELECT problems FROM webhookd.health")
            return "permission denied for" in (problems or "") and "Grant the daemon's role" in problems

        await eventually(told, "health to say what is missing")
        assert receiver.got == []
        await sql.execute("GRANT SELECT ON webhookd.outbox TO webhookd_daemon")
        await settled(sql, event_id, {"hook": "delivered"})

        async def well() -> bool:
            return await sql.fetchval("SELECT problems FROM webhookd.health") is None

        await eventually(well, "health to say that all is well")
        daemon.stop()


# Another encoding


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_a_database_that_is_not_utf8_is_refused_with_the_way_out(server: str, encoding: str) -> None:
    name = f"other_{encoding.lower()}_{os.getpid()}"
    await asyncio.to_thread(
        execute, server, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"
    )
    other = database(server, name)
    try:
        with pytest.raises(SchemaMismatch, match=f"is {encoding}, and webhookd needs UTF8: make one with") as caught:
            await migrate(other)
        assert exit_code(caught.value) == 78
        with pytest.raises(SchemaMismatch, match="needs UTF8"):
            await Daemon(configuration({"hook": {"url": "http://127.0.0.1/"}}), other).run()
        async with Database(other, size=1) as asked:
            with pytest.raises(SchemaMismatch, match="needs UTF8"):  # which is what `check` asks
                await Reports(asked).deployed(15.0)
    finally:
        await asyncio.to_thread(execute, server, f"DROP DATABASE {name} WITH (FORCE)")


async def test_endpoints_that_the_database_does_not_take_are_a_refused_reload(
    sql: Sql, dsn: str, receiver: Receiver, daemon: Running
) -> None:
    """By a constraint, as by whatever else."""
    before = configuration({"hook": {"url": receiver.url("hook")}})
    after = configuration({"hook": {"url": receiver.url("hook"), "description": "no such sign here"}})
    await sql.execute("ALTER TABLE webhookd.endpoint ADD CHECK (spec::text !~ 'no such sign')")
    files = [before]
    async with daemon(before, load=lambda: files[-1]) as running:
        files.append(after)
        running.reload()

        async def refused() -> bool:
            problem = await sql.fetchval("SELECT config_problem FROM webhookd.daemon")
            return "the database does not take these endpoints" in (problem or "")

        await eventually(refused, "the reload to be refused")
        event_id = await insert(sql)
        await settled(sql, event_id, {"hook": "delivered"})
    with pytest.raises(ConfigError, match="the database does not take the endpoints of these files"):
        await Daemon(after, dsn).run()
