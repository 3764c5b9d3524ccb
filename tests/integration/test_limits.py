"""Limits of endpoints: rates, slots that daemons share, and receivers that fall silent."""

import asyncio

from aiohttp import web

from tests.integration.conftest import (
    Got,
    Receiver,
    Running,
    Sql,
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
