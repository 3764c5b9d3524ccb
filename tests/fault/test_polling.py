"""Daemons and pollers are killed while events come: each event is fetched, and twice only after a lost answer."""

import asyncio
import json
import random
import socket
from collections import Counter
from collections.abc import Sequence

import aiohttp

from tests.fault.fleet import Fleet, seed_of
from tests.fault.verdict import ROLES
from tests.fault.writers import Connection
from tests.integration.web.conftest import a_token
from tests.waiting import HANGS

EVENTS, KILLS = 400, 4
INSERT = """INSERT INTO webhookd.outbox (type, payload) VALUES ('t', $1::text::json)"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Consumer:
    """Passes iterators on, at whichever daemon; now and then it dies with the answer in hand, and begins anew."""

    def __init__(self, ports: Sequence[int], token: str) -> None:
        self._bases = [f"http://127.0.0.1:{port}/api/v1/app/default/poller/polled/consumer/c" for port in ports]
        self._token = token
        self._chance = random.Random(seed_of())
        self._iterator = ""
        self.got: list[int] = []
        self.lost = 0

    async def run(self) -> None:
        async with aiohttp.ClientSession(headers={"authorization": f"Bearer {self._token}"}) as session:
            while len(set(self.got)) < EVENTS:
                try:
                    await self._ask(session)
                except (aiohttp.ClientError, TimeoutError):
                    await asyncio.sleep(0.02)

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        base = self._chance.choice(self._bases)
        async with session.get(f"{base}?limit=7&wait=2{self._iterator}") as response:
            page = await response.json(content_type=None)
        if response.status != 200:
            assert response.status in (409, 503), page  # the daemon begins or ends
            await asyncio.sleep(0.02)
        elif page["data"] and self._chance.random() < 0.05:
            self.lost, self._iterator = self.lost + 1, ""
        else:
            self.got += [each["payload"]["data"]["n"] for each in page["data"]]
            self._iterator = f"&iterator={page['iterator']}"


async def test_a_consumer_has_each_event_whoever_is_killed(processes: Fleet, watched: Connection, dsn: str) -> None:
    ports = {role: free_port() for role in ROLES[:2]}
    processes.receiver.heal()

    async def launch(role: str) -> None:
        api = {"listen": f"127.0.0.1:{ports[role]}"}
        processes.configure({"healthy": {}, "polled": {"kind": "poll"}}, api=api)
        await processes.start(role)

    async def produce() -> None:
        for n in range(EVENTS):
            await watched.execute(INSERT, json.dumps({"n": n}))
            await asyncio.sleep(0.005)

    async def kill() -> None:
        for number in range(KILLS):
            await asyncio.sleep(0.5)
            role = list(ports)[number % 2]
            await processes.daemons[role].kill()
            await launch(role)

    for role in ports:
        await launch(role)
    consumer = Consumer(list(ports.values()), await a_token(dsn, "admin"))
    async with asyncio.timeout(HANGS), asyncio.TaskGroup() as group:
        for work in (consumer.run(), produce(), kill()):
            group.create_task(work)
    counts = Counter(consumer.got)
    assert sorted(counts) == list(range(EVENTS))
    assert consumer.lost, "no answer was lost: this tested nothing"
    assert max(counts.values()) == 1, "the answer that was lost was counted by nobody, and comes again"
    polled = "SELECT id FROM webhookd.endpoint WHERE name = 'polled'"
    rows = f"SELECT count(*) FROM webhookd.parked WHERE endpoint_id = ({polled})"
    assert await watched.fetchval(rows) == 0
