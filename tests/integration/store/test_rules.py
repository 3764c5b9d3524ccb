"""What the owner of a database adds to it, such as constraints, costs no event and holds up nobody."""

import secrets
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
    settled,
)
from tests.integration.engine.test_unreadable import bind, unbound
from tests.integration.store.test_place import ELSEWHERE
from tests.integration.store.test_sessions import whole_path
from tests.waiting import until
from webhookd.engine.intake.reader import MOST_PER_CUT
from webhookd.store.database import Database
from webhookd.store.migrations import rebase
from webhookd.store.registry import Registry

WEEK = 7 * 86_400.0
PUBLISHED = "CREATE PUBLICATION everything FOR ALL TABLES"
WITHOUT_IDENTITY = """
SELECT c.relname FROM pg_class c
 WHERE c.relnamespace = 'webhookd'::regnamespace AND c.relkind = 'r' AND c.relname !~ '^lock_' AND c.relreplident = 'd'
   AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)"""
RULES = {
    "a constraint": "ALTER TABLE webhookd.outbox ADD CONSTRAINT tenants CHECK (tenant <> '')",
    "a column": "ALTER TABLE webhookd.outbox ADD COLUMN shop int, ADD CHECK (shop IS NOT NULL OR NOT own)",
    "a trigger": """
        CREATE FUNCTION known() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          IF NEW.type <> 'order.created' THEN RAISE EXCEPTION 'a type that nobody knows: %', NEW.type; END IF;
          RETURN NEW;
        END $$;
        CREATE TRIGGER known BEFORE INSERT ON webhookd.outbox FOR EACH ROW EXECUTE FUNCTION known()""",
    "a trigger that lacks a setting": """
        CREATE FUNCTION shop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          IF NEW.own THEN NEW.ordering_key := current_setting('my.shop'); END IF;
          RETURN NEW;
        END $$;
        CREATE TRIGGER shop BEFORE INSERT ON webhookd.outbox FOR EACH ROW EXECUTE FUNCTION shop()""",
}


async def test_the_whole_path_works_where_a_publication_has_all_tables(dsn: str, sql: Sql, receiver: Receiver) -> None:
    await sql.execute(PUBLISHED)
    await whole_path(dsn, dsn, sql, receiver)


async def test_every_table_has_what_its_rows_are_known_by(dsn: str, sql: Sql) -> None:
    assert await sql.fetch(WITHOUT_IDENTITY) == []
    await sql.execute("INSERT INTO webhookd.attempt_default SELECT now() + interval '50 days', 1, 1, 1, true")
    async with Database(dsn) as database:
        while await Registry(database).maintain(WEEK, WEEK):
            pass
    assert await sql.fetchval("SELECT count(*) FROM webhookd.attempt_default") == 0
    assert await sql.fetch(WITHOUT_IDENTITY) == []


@pytest.mark.parametrize("rule", RULES)
async def test_a_rule_that_refuses_our_own_events_costs_them_alone(
    rule: str, sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    await sql.execute(RULES[rule])
    receiver.answers("bad", 500)
    config = configuration({name: {"url": receiver.url(name), "tenant": "*"} for name in ("good", "bad")})
    async with daemon(config):

        async def parked() -> bool:
            await insert(sql, tenant="a")
            return bool(await sql.fetchval("SELECT count(*) FROM webhookd.parked WHERE reason = 'failing'"))

        await eventually(parked, "it is parked")
        before = len(set(receiver.events("good")))
        count = MOST_PER_CUT + 700  # of which some wait in the surplus
        await sql.execute(
            """INSERT INTO webhookd.outbox (type, payload, tenant)
               SELECT 'order.created', '{}', 'b' FROM generate_series(1, $1)""",
            count,
        )
        await until(lambda: len(set(receiver.events("good"))) >= before + count, "all of it has come to the other")
        receiver.scripts.clear()
        await finished(sql)
        made = await sql.fetchval("SELECT count(*) FROM webhookd.outbox")
        assert [len(set(receiver.events(name))) for name in ("good", "bad")] == [made, made]


@pytest.mark.parametrize("rule", RULES)
async def test_a_delivery_that_is_exhausted_costs_its_event_nothing_where_nobody_may_hear_of_it(
    rule: str, sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    await sql.execute(RULES[rule])
    receiver.answers("good", 500, 200)
    receiver.answers("bad", 500)
    policies = {"good": {"schedule": ["4s"]}, "bad": {"schedule": ["500ms"], "give_up_after": "1s"}}
    config = configuration(
        {name: {"url": receiver.url(name), "tenant": "*", "retry": policies[name]} for name in policies}
    )
    async with daemon(config):
        event_id = await insert(sql, tenant="a")
        await settled(sql, event_id, {"*/good": "delivered", "*/bad": "exhausted"})


ATTEMPT_RULES = {
    "a constraint": "ALTER TABLE webhookd.attempt ADD CONSTRAINT quick CHECK (ms < 0) NOT VALID",
    "a column": "ALTER TABLE webhookd.attempt ADD COLUMN shop int, ADD CHECK (shop IS NOT NULL) NOT VALID",
    "a trigger": """
        CREATE FUNCTION no_teapot() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          IF NEW.code = 418 OR NEW.error = 'internal' THEN RAISE EXCEPTION 'no teapot'; END IF;
          RETURN NEW;
        END $$;
        CREATE TRIGGER no_teapot BEFORE INSERT ON webhookd.attempt FOR EACH ROW EXECUTE FUNCTION no_teapot()""",
}


@pytest.mark.parametrize("rule", ATTEMPT_RULES)
async def test_a_rule_that_refuses_attempts_costs_no_delivery(
    rule: str, sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    await sql.execute(ATTEMPT_RULES[rule])
    receiver.answers("bad", 418, 418, 200)
    config = configuration(
        {name: {"url": receiver.url(name), "retry": {"schedule": ["500ms"]}} for name in ("good", "bad")}
    )
    async with daemon(config):
        event_id = await insert(sql)
        await until(lambda: len(receiver.events("bad")) == 3, "it to be tried again until it is taken")
        await insert(sql)
        await until(
            lambda: len(set(receiver.events("good"))) == len(set(receiver.events("bad"))) == 2, "what comes next"
        )
        await finished(sql)
        assert await sql.fetchval("SELECT count(*) FROM webhookd.unreadable") == 0

        async def told() -> bool:
            problems = await sql.fetchval("SELECT problems FROM webhookd.health")
            return "refuses attempts" in (problems or "")

        await eventually(told, "it to be a problem")
    assert receiver.events("good").count(event_id) == 1


async def test_sequences_that_were_left_behind_give_no_number_twice(
    dsn: str, sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    """As logical replication leaves them: an event would be taken for an old one that is still owed."""
    receiver.answers("hook", 500, 500)
    slow: dict[str, dict[str, Any]] = {"hook": {"url": receiver.url("hook"), "retry": {"schedule": ["1h"]}}}
    async with daemon(configuration(slow)):
        old = await insert(sql)
        await settled(sql, old, {"hook": "retrying"})
    sequences = [row[0] for row in await sql.fetch("SELECT oid::regclass::text FROM pg_class WHERE relkind = 'S'")]
    for sequence in sequences:
        await sql.execute("SELECT setval($1::text::regclass, 1, false)", sequence)
    await sql.execute(ELSEWHERE)
    await rebase(dsn, "production", "deliver", "me")
    more = {**slow, "more": {"url": receiver.url("more")}}
    async with daemon(configuration(more)):
        new = await insert(sql)
        await settled(sql, new, {"hook": "retrying", "more": "delivered"})
    assert await sql.fetchval("SELECT count(DISTINCT id) FROM webhookd.outbox") == 2
    assert await sql.fetchval("SELECT count(*) FROM webhookd.backlog") == 2


@pytest.mark.parametrize("wait", ["now()", "now() + interval '1 hour'"])
async def test_a_tenant_that_is_longer_than_an_index_takes_holds_nobody_up(
    wait: str, sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    """Of a row that is older than the bound."""
    bounds = await unbound(sql)
    count = MOST_PER_CUT + 100
    await sql.execute(
        f"""INSERT INTO webhookd.outbox (type, payload, tenant, deliver_after)
            SELECT 'order.created', '{{}}', $1, {wait} FROM generate_series(1, $2)""",
        secrets.token_hex(8_000),
        count,
    )
    await bind(sql, bounds)
    async with daemon(configuration({"hook": {"url": receiver.url("hook"), "tenant": "*"}})):
        event_id = await insert(sql)
        await until(lambda: event_id in receiver.events("hook"), "the event of another")
        if wait == "now()":
            await until(lambda: len(set(receiver.events("hook"))) == count + 1, "the others, too")
        else:
            assert await sql.fetchval("SELECT count(*) FROM webhookd.scheduled") == count
