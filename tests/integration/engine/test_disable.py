"""What disables an endpoint beside 410: failing for too long, where that has a limit, and its receiver's own word."""

import asyncio
from typing import Any

import asyncpg
import pytest
from aiohttp import web

from tests.integration.conftest import (
    Got,
    Receiver,
    Running,
    Sql,
    configuration,
    eventually,
    insert,
    insert_many,
    settled,
    states,
)
from tests.waiting import until

QUICKLY = {"schedule": ["20ms"]}
LIMIT = {"failures": 5, "for": "300ms"}


def hook(receiver: Receiver, **table: Any) -> Any:
    return configuration({"hook": {"url": receiver.url("hook"), **table}}, retry=QUICKLY)


async def why(sql: Sql) -> str | None:
    found: str | None = await sql.fetchval("SELECT disabled_why FROM webhookd.endpoint WHERE name = 'hook'")
    return found


async def is_disabled(sql: Sql) -> bool:
    return await why(sql) is not None


@pytest.mark.parametrize("where", ["endpoint", "delivery"])
async def test_failing_for_too_long(sql: Sql, receiver: Receiver, daemon: Running, where: str) -> None:
    receiver.answers("hook", 500)
    tables: dict[str, dict[str, Any]] = {"hook": {"url": receiver.url("hook")}}
    tables["told"] = {"url": receiver.url("told"), "events": ["webhookd.*"]}
    if where == "endpoint":
        tables["hook"]["disable_after"] = LIMIT
        config = configuration(tables, retry=QUICKLY)
    else:
        config = configuration(tables, retry=QUICKLY, delivery={"disable_after": LIMIT})
    async with daemon(config):
        event_id = await insert(sql)
        await eventually(lambda: is_disabled(sql), "it to be disabled")
        assert await why(sql) == "failing"
        failed = await sql.fetchrow(
            """SELECT count(*), (SELECT disabled_at FROM webhookd.endpoint WHERE id = 1) - min(at) >= interval '300 ms'
                 FROM webhookd.attempt WHERE NOT ok"""
        )
        assert failed is not None
        assert failed[0] >= 5
        assert failed[1]
        missed = await insert(sql)
        await settled(sql, missed, {"hook": "missed"})
        await until(
            lambda: any(b"endpoint.disabled" in got.body for got in receiver.of("told")), "others to hear of it"
        )
        receiver.answers("hook", 200)
        assert await is_disabled(sql)  # only a person enables it
        await sql.execute("SELECT webhookd.enable('{1}')")
        await settled(sql, event_id, {"hook": "delivered"})
        assert await states(sql, missed) == {"hook": "missed"}


LIMITS = (
    {"failures": 5, "for": "1h"},
    {"failures": 100_000, "for": "50ms"},
    {"failures": 0, "for": "50ms"},
    None,
)


@pytest.mark.parametrize("limit", LIMITS)
async def test_both_must_be_so(sql: Sql, receiver: Receiver, daemon: Running, limit: Any) -> None:
    receiver.answers("hook", 500)
    table = {} if limit is None else {"disable_after": limit}
    everybody = {"disable_after": LIMIT} if limit and not limit["failures"] else {}
    config = configuration({"hook": {"url": receiver.url("hook"), **table}}, retry=QUICKLY, delivery=everybody)
    async with daemon(config):
        await insert(sql)
        await until(lambda: len(receiver.got) >= 12, "more failures than are allowed")
        assert not await is_disabled(sql)


async def test_what_counts_as_a_failure(sql: Sql) -> None:
    """Neither a 429 nor a resend; and what was before it was last well, or last enabled, is over."""
    await sql.execute("INSERT INTO webhookd.endpoint (name, source, spec) VALUES ('hook', 'file', '{}')")
    attempt = """INSERT INTO webhookd.attempt (at, outbox_id, endpoint_id, attempt, ok, code, error, trigger)
                 VALUES (now() - $1 * interval '1 min', 1, 1, 1, $2, $3, 'x', $4)"""
    disable = "SELECT webhookd.disable_failing(1, 3, 600)"
    for minutes, ok, code, trigger in (
        (70, False, 500, None), (65, False, 500, None), (64, False, 500, None), (60, True, 200, None),
        (50, False, 500, None), (40, False, 429, None), (30, False, 500, "resend"), (5, False, None, "replay"),
    ):  # fmt: skip
        await sql.execute(attempt, minutes, ok, code, trigger)
    assert not await sql.fetchval(disable)
    await sql.execute(attempt, 1, False, 404, None)
    assert not await sql.fetchval("SELECT webhookd.disable_failing(1, 3, 6000)")
    await sql.execute("UPDATE webhookd.endpoint SET revived_at = now() - interval '20 min'")
    assert not await sql.fetchval(disable)
    await sql.execute("UPDATE webhookd.endpoint SET revived_at = NULL")
    assert await sql.fetchval(disable)
    assert not await sql.fetchval(disable)  # it is already
    await sql.execute("SELECT webhookd.enable('{1}')")
    assert not await sql.fetchval(disable)


@pytest.mark.parametrize("status", [200, 500])
async def test_a_receiver_that_wants_nothing_more(sql: Sql, receiver: Receiver, daemon: Running, status: int) -> None:
    async def script(_: Got) -> web.Response:
        return web.Response(status=status, headers={"webhook-delivery": "disable"})

    receiver.scripts["hook"] = script
    async with daemon(hook(receiver)):  # it is not allowed to
        event_id = await insert(sql)
        await until(lambda: len(receiver.got) == 1, "a request")
        await eventually(lambda: _has(sql, event_id), "the answer")
        assert not await is_disabled(sql)
    async with daemon(hook(receiver, disable_on_request=True)):
        for _ in range(2):
            await insert(sql)
            await eventually(lambda: is_disabled(sql), "it to be disabled")
            assert await why(sql) == "receiver"
            await sql.execute("SELECT webhookd.enable('{1}')")


async def _has(sql: Sql, event_id: str) -> bool:
    return (await states(sql, event_id)).get("hook") in ("delivered", "retrying")


async def test_one_that_may_be_disabled_is_parked_while_it_fails(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    """Of many failures at once the first asks whether that goes on for too long, and a later one opens its breaker."""
    receiver.answers("hook", 500)
    limit = {"failures": 1000, "for": "3d"}
    async with daemon(hook(receiver, disable_after=limit, max_in_flight=30)):
        await insert_many(sql, 30)

        async def is_parked() -> bool:
            return bool(await sql.fetchval("SELECT EXISTS (SELECT FROM webhookd.parked WHERE reason = 'failing')"))

        await eventually(is_parked, "it to be parked")


async def test_after_its_receiver_had_its_way_410_counts_again(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    receiver.answers("hook", 200, headers={"webhook-delivery": "disable"})
    config = configuration(
        {"hook": {"url": receiver.url("hook"), "disable_on_request": True, "max_in_flight": 1}},
        retry={"schedule": ["1h"]},
    )
    async with daemon(config):
        await insert(sql)
        await eventually(lambda: is_disabled(sql), "it to be disabled")
        receiver.answers("hook", 410)
        await sql.execute("SELECT webhookd.enable('{1}')")
        for number in range(2, 5):
            await insert(sql)
            await until(lambda n=number: len(receiver.got) == n, "another 410")  # type: ignore[misc]
        await eventually(lambda: is_disabled(sql), "it to be disabled again")
        assert await why(sql) == "http_410"


async def test_who_enables_it_meanwhile_is_believed(sql: Sql, dsn: str) -> None:
    """The word of a receiver waits for the lock that whoever enables has."""
    await sql.execute("INSERT INTO webhookd.endpoint (name, source, spec) VALUES ('hook', 'file', '{}')")
    await sql.execute("SELECT webhookd.disable(1, 'http_410')")
    other = await asyncpg.connect(dsn)
    try:
        transaction = sql.transaction()
        await transaction.start()
        await sql.execute("SELECT webhookd.enable('{1}')")
        asked = asyncio.create_task(
            other.fetchval("SELECT webhookd.disable_since(1, 'http_410', now() - interval '1 min')")
        )
        await eventually(lambda: _waits(sql), "it to wait for the lock")
        await transaction.commit()
        assert await asked is False
    finally:
        await other.close()
    assert not await is_disabled(sql)


async def _waits(sql: Sql) -> bool:
    return bool(await sql.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"))
