"""Daemons that live side by side: who counts, who shares what, and when an endpoint is nobody's any longer."""

from functools import partial
from typing import Any

import pytest

from tests.integration.conftest import (
    Receiver,
    Running,
    Sql,
    configuration,
    eventually,
    finished,
    insert,
    insert_many,
    states,
)
from tests.integration.daemon.test_reload import Files, running_names
from tests.waiting import until
from webhookd.config.config import Config
from webhookd.policy.members import Member
from webhookd.store.database import Database
from webhookd.store.registry import Registry

MANY = 8_000
DELIVERED = "SELECT bool_or(state = 'delivered') FROM webhookd.event_status($1) WHERE endpoint = 'one'"
ONE_SLOT = {"max_in_flight": 1}
NO_KEYS = frozenset[str]()


async def both_are_owed(sql: Sql) -> bool:
    """Of a new event, once each daemon has looked; one that is late on a busy machine may have seemed dead."""
    event_id = await insert(sql)
    await finished(sql)
    return await states(sql, event_id) == {"one": "delivered", "two": "delivered"}


def endpoints(receiver: Receiver, *names: str, **sections: Any) -> Config:
    return configuration({name: {"url": receiver.url(name), **ONE_SLOT} for name in names}, **sections)


async def daemons(sql: Sql, live: int) -> None:
    """Wait until so many count, and each has beaten since."""

    async def know() -> bool:
        return bool(
            await sql.fetchval(
                "SELECT count(*) = $1 AND min(beat_at) > (SELECT max(at) FROM seen) FROM webhookd.daemon"
                " WHERE stopped_at IS NULL AND counts",
                live,
            )
        )

    await sql.execute("CREATE TEMP TABLE IF NOT EXISTS seen (at timestamptz)")
    await sql.execute("INSERT INTO seen VALUES (clock_timestamp())")
    await eventually(know, f"{live} to know of each other")


async def test_a_daemon_that_does_not_have_an_endpoint_takes_no_share_of_it(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    names = [f"hook-{n}" for n in range(6)]
    async with daemon(endpoints(receiver, *names)), daemon(endpoints(receiver, "other")):
        await daemons(sql, 2)
        events = await insert_many(sql, 20)
        await finished(sql)
    assert all(sorted(receiver.events(name)) == sorted(events) for name in (*names, "other"))
    assert max(receiver.peaks.values()) == 1


async def test_of_an_endpoint_that_only_some_have_those_share_it(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    """Three have one of the two each, and the last has both: nobody ever exceeds a limit, and all arrives."""
    async with (
        daemon(endpoints(receiver, "a")),
        daemon(endpoints(receiver, "b")),
        daemon(endpoints(receiver, "a", "b")),
    ):
        await daemons(sql, 3)
        for _ in range(5):
            await insert_many(sql, 10)
        await finished(sql)
    assert len(receiver.of("a")) == len(receiver.of("b")) == 50
    assert receiver.peaks == {"a": 1, "b": 1}


async def test_a_daemon_that_cannot_join_leaves_no_trace_and_takes_no_share(
    sql: Sql, receiver: Receiver, daemon: Running, dsn: str
) -> None:
    """It is refused what it has to write first, and tries again and again."""
    names = [f"hook-{n}" for n in range(6)]
    await sql.execute(
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN
             RAISE 'not by you' USING ERRCODE = 'insufficient_privilege';
           END $$"""
    )
    async with daemon(endpoints(receiver, *names)):
        await sql.execute("CREATE TRIGGER refuse BEFORE INSERT ON webhookd.endpoint EXECUTE FUNCTION refuse()")
        async with Database(dsn) as database:
            registry = Registry(database)
            specs = endpoints(receiver, "new").specs
            for _ in range(5):
                with pytest.raises(Exception, match="not by you"):
                    await registry.join("here", "1", specs, "hash", 1.5)
        assert await sql.fetchval("SELECT count(*) FROM webhookd.daemon") == 1
        events = await insert_many(sql, 20)
        await finished(sql)
    assert all(sorted(receiver.events(name)) == sorted(events) for name in names)


async def test_one_that_dies_before_its_first_heartbeat_takes_no_share(
    sql: Sql, receiver: Receiver, daemon: Running, dsn: str
) -> None:
    names = [f"hook-{n}" for n in range(6)]
    config = endpoints(receiver, *names)
    async with daemon(config), Database(dsn) as database:
        registry = Registry(database)
        for _ in range(5):
            await registry.join("here", "1", config.specs, config.config_hash, 1.5)
        await sql.execute(
            "UPDATE webhookd.daemon SET beat_at = now() + interval '1 hour' WHERE NOT counts"
        )  # they look alive
        first = await sql.fetchval("SELECT clock_timestamp()")

        async def has_beaten() -> bool:
            return bool(await sql.fetchval("SELECT beat_at > $1 FROM webhookd.daemon WHERE counts", first))

        await eventually(has_beaten, "a heartbeat beside them")
        await insert_many(sql, 20)
        await until(lambda: len(receiver.got) == 120, "all of it while they still look alive")


async def test_hosts_whose_delivery_differs_agree_that_an_endpoint_is_gone(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    def config(source: str, *names: str) -> Config:
        return endpoints(receiver, *names, delivery={"source": source})

    here, there = Files(config("https://here", "one", "two")), Files(config("https://there", "one", "two"))
    async with (
        daemon(config("https://here", "one", "two"), load=here.load) as one,
        daemon(config("https://there", "one", "two"), load=there.load) as other,
    ):
        await daemons(sql, 2)
        here.now = config("https://here", "one")
        one.reload()
        await until(lambda: here.reads, "the first reload")
        await eventually(lambda: both_are_owed(sql), "events to be owed to both still")
        there.now = config("https://there", "one")
        other.reload()

        async def gone() -> bool:
            return await running_names(sql) == {"one"}

        async def is_owed_nothing() -> bool:
            """Of five events in a row; either daemon may cut one, and each learns of it with a look of its own."""
            rows = await sql.fetchval("SELECT count(*) FROM webhookd.backlog")
            for _ in range(5):
                event = await insert(sql)
                await eventually(partial(sql.fetchval, DELIVERED, event), "the first to have it")
                if "two" in await states(sql, event):
                    return False
            return bool(await sql.fetchval("SELECT count(*) FROM webhookd.backlog") == rows)

        await eventually(gone, "both to agree")
        await eventually(is_owed_nothing, "both to know")


async def test_an_endpoint_that_a_live_daemon_names_is_not_gone_though_inactive(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    files = Files(endpoints(receiver, "one", "two"))
    inactive = configuration(
        {"one": {"url": receiver.url("one")}, "two": {"url": receiver.url("two"), "active": False}}
    )
    async with daemon(endpoints(receiver, "one", "two"), load=files.load) as running, daemon(inactive):
        await daemons(sql, 2)
        files.now = endpoints(receiver, "one")
        running.reload()
        named = "SELECT bool_and(inactive_ids = '{2}' OR endpoint_ids = '{1}') FROM webhookd.daemon"
        await eventually(lambda: sql.fetchval(named), "the reload")
        assert await running_names(sql) == {"one", "two"}


async def test_what_was_removed_while_its_daemon_seemed_dead_is_back_when_it_is(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    async with daemon(endpoints(receiver, "one")), daemon(endpoints(receiver, "two")):
        await daemons(sql, 2)
        await sql.execute("UPDATE webhookd.endpoint SET removed_at = now() WHERE name = 'two'")
        await sql.execute("UPDATE webhookd.config_version SET version = version + 1")

        async def is_back() -> bool:
            return await running_names(sql) == {"one", "two"}

        await eventually(is_back, "it to be back")
        await eventually(lambda: both_are_owed(sql), "events to be owed to both")


async def test_a_heartbeat_leaves_what_a_daemon_has_where_it_is(sql: Sql, dsn: str) -> None:
    specs = {("", f"hook-{n}"): {"active": n % 2 == 0, "events": ["*"], "filter": {}} for n in range(MANY)}
    where = "SELECT pg_column_toast_chunk_id(endpoint_ids), pg_column_size(endpoint_ids) FROM webhookd.daemon"
    if await sql.fetchval("SELECT current_setting('server_version_num')::int") < 170000:
        where = "SELECT chunk_id, chunk_seq FROM {} ORDER BY 1, 2".format(
            await sql.fetchval("SELECT reltoastrelid::regclass FROM pg_class WHERE oid = 'webhookd.daemon'::regclass")
        )
    async with Database(dsn) as database:
        registry = Registry(database)
        joined = await registry.join("here", "1", specs, "hash", 15.0)
        before = await sql.fetch(where)
        assert before
        assert before[0][0] is not None
        written = await sql.fetchval("SELECT pg_current_wal_insert_lsn()")
        for _ in range(20):
            await registry.beat(joined.daemon_id, joined.low, 15.0)
        wal = await sql.fetchval("SELECT pg_current_wal_insert_lsn() - $1", written)
        assert await sql.fetch(where) == before
    assert int(wal) < 20 * 1000  # the array alone is 16 KB


async def test_a_heartbeat_learns_what_the_others_have_only_when_it_has_changed(sql: Sql, dsn: str) -> None:
    specs = {("", f"hook-{n}"): {"active": True, "events": ["*"], "filter": {}} for n in range(1, 4)}
    async with Database(dsn) as one, Database(dsn) as other:
        here, there = Registry(one), Registry(other)
        me = await here.join("here", "1", specs, "hash", 15.0)
        it = await there.join("there", "1", specs, "hash", 15.0)
        assert not me.has_company
        assert it.has_company
        assert (await here.beat(me.daemon_id, 0, 15.0)).members == ()  # it has not beaten yet
        assert (await there.beat(it.daemon_id, 0, 15.0)).members == (
            Member(me.daemon_id, frozenset({1, 2, 3}), NO_KEYS),
        )
        assert (await here.beat(me.daemon_id, 0, 15.0)).members == (
            Member(it.daemon_id, frozenset({1, 2, 3}), NO_KEYS),
        )
        known = (await here.beat(me.daemon_id, 0, 15.0)).members[0].endpoint_ids
        assert known is (await here.beat(me.daemon_id, 0, 15.0)).members[0].endpoint_ids
        await there.sync_endpoints(it.daemon_id, dict(list(specs.items())[:1]), "hash", 15.0)
        assert (await here.beat(me.daemon_id, 0, 15.0)).members == (Member(it.daemon_id, frozenset({1}), NO_KEYS),)
        await sql.execute(
            "UPDATE webhookd.daemon SET endpoint_ids = NULL, endpoints_hash = NULL, key_ids = NULL WHERE host = 'there'"
        )
        assert (await here.beat(me.daemon_id, 0, 15.0)).members == (Member(it.daemon_id, None),)
        await there.leave(it.daemon_id)
        assert (await here.beat(me.daemon_id, 0, 15.0)).members == ()
