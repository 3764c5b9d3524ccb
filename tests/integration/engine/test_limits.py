"""Limits of endpoints: rates, slots that daemons share, and receivers that fall silent."""

import asyncio
import itertools

from aiohttp import web

from tests.integration.conftest import (
    Got,
    Receiver,
    Running,
    Sql,
    attempts,
    configuration,
    eventually,
    finished,
    insert,
    insert_many,
    settled,
)
from tests.waiting import until

RATE = 100


async def test_a_rate_limit_is_kept_and_every_event_arrives(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    """400 at once: 200 wait in memory, what would wait for longer in the backlog; all go out at the rate."""
    config = configuration({"hook": {"url": receiver.url("hook"), "rate_limit": f"{RATE}/s"}})
    async with daemon(config):
        events = await insert_many(sql, 400)
        await until(lambda: len(receiver.got) >= 400, "all of them")
        await finished(sql)
    assert sorted(receiver.events("hook")) == sorted(events)  # each once
    moments = [got.at for got in receiver.of("hook")]
    for first in range(400 - RATE - 30):  # a burst of 10, and what the machine delays by up to 0.2 s
        assert moments[first + RATE + 30] - moments[first] > 0.9
    assert await sql.fetchval("SELECT count(*) FROM webhookd.attempt") == 400


async def test_daemons_share_the_slots_of_an_endpoint(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    async def slow(_: Got) -> web.Response:
        await asyncio.sleep(0.02)
        return web.Response()

    receiver.scripts |= {"three": slow, "one": slow}
    config = configuration(
        {
            "three": {"url": receiver.url("three"), "max_in_flight": 3},
            "one": {"url": receiver.url("one"), "max_in_flight": 1},
        }
    )
    async with daemon(config), daemon(config):

        async def knows() -> bool:
            """The first has beaten since the second came."""
            return bool(
                await sql.fetchval(
                    "SELECT count(*) = 2 AND min(beat_at) > (SELECT max(joined_at) FROM seen) FROM webhookd.daemon"
                    " WHERE stopped_at IS NULL"
                )
            )

        await sql.execute("CREATE TEMP TABLE seen AS SELECT now() AS joined_at")
        await eventually(knows, "both to know of each other")
        for _ in range(4):
            await insert_many(sql, 50)
        await finished(sql)
    assert len(receiver.of("three")) == len(receiver.of("one")) == 200
    assert receiver.peaks["three"] <= 3
    assert receiver.peaks["one"] == 1


async def test_receivers_that_fall_silent_do_not_take_all_slots(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    """Eight slots, and eight receivers that hang with more than enough for all of them."""
    paths = [f"silent-{n}" for n in range(8)]
    healed = [receiver.hangs(path) for path in paths]
    endpoints = {path: {"url": receiver.url(path), "events": ["silent"]} for path in paths}
    config = configuration(
        {**endpoints, "fine": {"url": receiver.url("fine"), "events": ["fine"]}}, delivery={"max_in_flight": 8}
    )
    async with daemon(config):
        await insert_many(sql, 5, "silent")
        await until(lambda: receiver.flying.total() >= 8, "every slot to be taken")
        for _ in range(5):
            await settled(sql, await insert(sql, type="fine"), {"fine": "delivered"})
        assert receiver.flying.total() >= 8
        for event in healed:
            event.set()
        await finished(sql)
    assert all(len(set(receiver.events(path))) == 5 for path in paths)
    assert len(receiver.of("fine")) == 5


async def test_429_narrows_an_endpoint_and_loses_nothing(sql: Sql, receiver: Receiver, daemon: Running) -> None:
    """A receiver that takes two at a time and says 429 to more."""
    refused = 0

    async def narrow(_: Got) -> web.Response:
        nonlocal refused
        if receiver.flying["hook"] > 2:
            refused += 1
            return web.Response(status=429)
        await asyncio.sleep(0.005)
        return web.Response()

    receiver.scripts["hook"] = narrow
    config = configuration({"hook": {"url": receiver.url("hook"), "max_in_flight": 40}}, retry={"first": "100ms"})
    async with daemon(config):
        await insert_many(sql, 400)
        await finished(sql)
    assert refused < 200  # about 80; nearly 400 a round when nothing follows the answers
    assert len(set(receiver.events("hook"))) == 400


async def test_who_asks_for_less_uses_up_no_step_and_is_waited_for_as_long_as_was_asked(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    """A second step of a schedule would be an hour away, for the old delivery and, behind it, for a new one."""
    receiver.answers("hook", 500, 429, 503, 429, 200, headers={"Retry-After": "1"})
    receiver.answers("fine", 200)
    config = configuration(
        {"hook": {"url": receiver.url("hook")}, "fine": {"url": receiver.url("fine")}},
        retry={"schedule": ["100ms", "1h"]},
    )
    async with daemon(config):
        old = await insert(sql)
        await until(lambda: len(receiver.of("hook")) >= 2, "the first 429")
        new = await insert(sql)
        await settled(sql, old, {"hook": "delivered", "fine": "delivered"})
        await eventually(lambda: _tried(sql, new, 1), "the new one to be sent when the endpoint may be asked again")
    tried = await attempts(sql, old)
    assert [(each["attempt"], each["code"]) for each in tried] == [(1, 500), (2, 429), (3, 503), (4, 429), (5, 200)]
    assert [got.attempt for got in receiver.of("hook") if got.event_id == old] == [1, 2, 3, 4, 5]
    moments = [each["at"].timestamp() for each in tried]
    assert all(later - earlier > 0.98 for earlier, later in itertools.pairwise(moments[1:]))
    fine = {each["attempt"] for event in (old, new) for each in await attempts(sql, event, "fine")}
    assert fine == {1}


async def _tried(sql: Sql, event: str, times: int) -> bool:
    return len(await attempts(sql, event)) >= times


async def test_the_next_daemon_knows_which_attempts_used_up_no_step(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    receiver.answers("hook", 429, 429, 500, 200, headers={"Retry-After": "1"})
    config = configuration({"hook": {"url": receiver.url("hook")}}, retry={"schedule": ["100ms", "1h"]})
    async with daemon(config):
        event = await insert(sql)
        await eventually(lambda: _tried(sql, event, 1), "the first attempt")
    assert await sql.fetchval("SELECT asked FROM webhookd.backlog") == 1
    async with daemon(config), daemon(config):
        await settled(sql, event, {"hook": "delivered"})
    assert [(each["attempt"], each["code"]) for each in await attempts(sql, event)] == [
        (1, 429), (2, 429), (3, 500), (4, 200)
    ]  # fmt: skip
