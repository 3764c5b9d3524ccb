"""What the HTTP API costs: a message, deliveries beside many requests, one endpoint of many that changes, the index."""

import asyncio
import json
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import psutil

from tests.bench import rig
from tests.bench.isolation import HEALTHY, P99, slice_of
from tests.bench.line import Line
from tests.bench.pairs import in_pairs, is_clear
from tests.bench.pgbench import pgbench
from webhookd.ids import new_id
from webhookd.message.sealing import Keyring, SealingKey, new_key, parse_key
from webhookd.store import tokens
from webhookd.store.database import Database
from webhookd.web.endpoints.specs import NEW

MESSAGES, WARM_UP = 2_000, 300
CPU = 1.0  # ms for one client that waits for each answer; with several there is less to wake up for
MIXED = 1.0  # ms
CLIENTS, BUSY = 8, 0.4  # ms
PATHS = ("/endpoint", "")
INSERT = """INSERT INTO webhookd.outbox (type, payload) VALUES ('nobody.wants', to_json(repeat('x', 1000)))"""
RATE = 500.0  # requests a second
SECONDS, SLICES = 5.0, 9  # of asking, around a slice of deliveries
ENDPOINTS, CHANGES, TURNS = 10_000, 100, 9
BETWEEN = 0.02  # seconds
CHANGE = "UPDATE webhookd.endpoint SET spec = spec || jsonb_build_object('description', $1::text) WHERE id = $2"
INSERTS, PAIRS = 4.0, 9  # seconds of a slice
PLAIN = """INSERT INTO webhookd.outbox (type, payload) VALUES ('order.created', '{"order": 42}')"""
TENANTS = """INSERT INTO webhookd.outbox (type, payload, tenant)
 VALUES ('order.created', '{"order": 42}', 'tenant-' || (random() * 1000)::int)"""


class Served(NamedTuple):
    """A daemon that serves the API, where, and an administrator's token."""

    process: psutil.Process
    where: str  # host:port
    token: str


async def admin(dsn: str) -> str:
    """A token of an administrator."""
    token = tokens.new_token()
    async with Database(dsn, size=1) as database:
        await tokens.add(database, new_id("tok_"), token, tokens.New("admin", "bench", "bench"))
    return token


@asynccontextmanager
async def served(dsn: str, endpoints: dict[str, dict[str, Any]], key: str) -> AsyncIterator[Served]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    token = await admin(dsn)
    with tempfile.TemporaryDirectory(prefix="webhookd-bench-") as folder:
        file = Path(folder) / "sealing.key"
        file.write_text(key)
        also = f'[api]\nlisten = "{where}"\n[encryption]\nkeys = [{{ id = "one", file = {json.dumps(str(file))} }}]\n'
        async with rig.daemon(dsn, endpoints, also=also, max_in_flight_per_host=10_000) as process:
            yield Served(process, where, token)


async def api(server: str) -> list[Line]:
    """Each in a database of its own."""
    found = [await part(server) for part in (_messages, _busy, _beside, _changes, _index)]
    return [line for lines in found for line in lines]


async def _messages(server: str) -> list[Line]:
    """One client that makes a message after the other, each with an idempotency key, and the same by INSERT."""
    async with rig.database(server, "messages") as (dsn, connection), served(dsn, {}, new_key()) as daemon:
        body = json.dumps({"eventType": "nobody.wants", "payload": {"order": 42, "text": "x" * 1000}}).encode()
        url = f"http://{daemon.where}/api/v1/app/default/msg"
        async with aiohttp.ClientSession(headers={"authorization": f"Bearer {daemon.token}"}) as session:

            async def ask(number: int) -> None:
                headers = {"idempotency-key": str(number), "content-type": "application/json"}
                async with session.post(url, data=body, headers=headers) as response:
                    assert response.status == 202
                    await response.read()

            async def insert(_: int) -> None:
                await connection.execute(INSERT)

            seconds, by_api = await _timed(daemon, ask)
            _, by_insert = await _timed(daemon, insert)
    return [
        Line("API: a message is made, p50", statistics.median(seconds) * 1000, "ms", 5.0),
        Line("API: CPU of the daemon for it, less that of an INSERT", (by_api - by_insert) * 1000, "ms", CPU),
    ]


async def _busy(server: str) -> list[Line]:
    """The CPU of a daemon for a request, of eight clients that ask as fast as they are answered."""
    async with rig.database(server, "many") as (dsn, _), served(dsn, {}, new_key()) as daemon:
        headers = {"authorization": f"Bearer {daemon.token}", "content-type": "application/json"}
        base, message = f"http://{daemon.where}/api/v1/app", b'{"eventType": "nobody.wants", "payload": {"order": 42}}'
        async with aiohttp.ClientSession(headers=headers) as session:
            await session.post(base, data=b'{"name": "Shop", "uid": "shop"}')
            for n in range(5):
                given = {"url": f"https://example.com/{n}", "disabled": True}
                await session.post(f"{base}/shop/endpoint", data=json.dumps(given).encode())

            async def client(turns: Iterable[int]) -> None:
                for n in turns:
                    method, path, data = ("POST", "/msg", message) if n % 10 < 3 else ("GET", PATHS[n % 10 % 2], None)
                    async with session.request(method, f"{base}/shop{path}", data=data) as response:
                        assert response.status in (200, 202)
                        await response.read()

            async def all_of(many: int) -> float:
                turns, before = iter(range(many)), rig.cpu(daemon.process)
                async with asyncio.TaskGroup() as group:
                    for _ in range(CLIENTS):
                        group.create_task(client(turns))
                return (rig.cpu(daemon.process) - before) / many

            await all_of(WARM_UP)
            spent = [await all_of(MESSAGES) for _ in range(5)]
    what = "API: CPU of the daemon per request, of a mix by eight clients that never rest"
    return [Line(what, statistics.median(spent) * 1000, "ms", BUSY)]


async def _timed(daemon: Served, act: Callable[[int], Awaitable[None]]) -> tuple[list[float], float]:
    """How long each took, and the seconds of CPU that the daemon has used for one."""
    for number in range(WARM_UP):
        await act(number)
    seconds, before = list[float](), rig.cpu(daemon.process)
    for number in range(WARM_UP, WARM_UP + MESSAGES):
        started = time.perf_counter()
        await act(number)
        seconds.append(time.perf_counter() - started)
    return seconds, (rig.cpu(daemon.process) - before) / MESSAGES


async def _beside(server: str) -> list[Line]:
    """The p99 of deliveries of a daemon that serves 500 requests a second, and of one that serves none."""
    async with (
        rig.receiver() as url,
        rig.database(server, "busy") as (busy, asked),
        rig.database(server, "idle") as (idle, unasked),
    ):
        endpoints: dict[str, dict[str, Any]] = {
            f"healthy-{n}": {"url": f"{url}/healthy", "events": [f"healthy.{n}"]} for n in range(HEALTHY)
        }
        async with served(idle, endpoints, new_key()), served(busy, endpoints, new_key()) as daemon:
            headers = {"authorization": f"Bearer {daemon.token}", "content-type": "application/json"}
            async with aiohttp.ClientSession(headers=headers) as session:
                base = f"http://{daemon.where}/api/v1/app"
                await session.post(base, data=b'{"name": "Shop", "uid": "shop"}')
                for n in range(5):
                    given = {"url": f"https://example.com/{n}", "disabled": True}
                    await session.post(f"{base}/shop/endpoint", data=json.dumps(given).encode())
            async with rig.process("tests.bench.asker", daemon.where, daemon.token, str(RATE)) as asker:
                assert asker.stdin is not None

                async def measure(connection: Any) -> float:
                    if connection is unasked:
                        return await slice_of(url, connection, HEALTHY)
                    assert asker.stdin is not None
                    asker.stdin.write(b"%f\n" % SECONDS)
                    found = await slice_of(url, connection, HEALTHY)
                    answered = int(await rig.line(asker))
                    assert answered >= 0.95 * RATE * SECONDS, f"only {answered} requests were answered"
                    return found

                before, quiet = rig.cpu(daemon.process), await _cpu(daemon, SECONDS)
                asker.stdin.write(b"%f\n" % SECONDS)
                answered = int(await rig.line(asker))
                spent = rig.cpu(daemon.process) - before - 2 * quiet
                pairs = await in_pairs(measure, unasked, asked, P99, least=SLICES, most=3 * SLICES)
    ratios = [beside / alone for alone, beside in pairs]
    what = f"p99 of deliveries beside {RATE:.0f} API requests/s / alone"
    return [
        Line("API: CPU of the daemon per request, of a mix at 500/s", spent / answered * 1000, "ms", MIXED),
        Line(what, statistics.median(ratios), "ratio", P99, clear=is_clear(ratios, P99)),
    ]


async def _changes(server: str) -> list[Line]:
    """CPU of a daemon for an endpoint that changes, of 10,000 of the API; an event after it has it looked for."""
    key = new_key()
    async with rig.database(server, "changes") as (dsn, connection):
        await _make(connection, key)
        first = await connection.fetchval("SELECT min(id) FROM webhookd.endpoint")
        async with served(dsn, {}, key) as daemon:
            await asyncio.sleep(3.0)

            async def measure(changes: bool) -> float:
                before = rig.cpu(daemon.process)
                for number in range(CHANGES):
                    if changes:
                        async with connection.transaction():
                            await connection.execute("SELECT webhookd.lock_endpoints()")
                            await connection.execute(CHANGE, str(time.time()), first + number * 17)
                            await connection.execute("UPDATE webhookd.config_version SET version = version + 1")
                    await connection.execute(INSERT)
                    await asyncio.sleep(BETWEEN)
                return (rig.cpu(daemon.process) - before) / CHANGES

            await measure(True)
            spent = [await measure(True) - await measure(False) for _ in range(TURNS)]
    return [Line("one endpoint of 10,000 changes, CPU of a daemon", statistics.median(spent) * 1000, "ms", 5.0)]


async def _make(connection: Any, key: str) -> None:
    keyring = Keyring([SealingKey("one", parse_key(key))])
    specs = [
        json.dumps({**NEW, "name": f"ep_{n}", "tenant": f"t{n % 500}", "url": f"https://example.com/{n}"})
        for n in range(ENDPOINTS)
    ]
    rows = await connection.fetch(
        "INSERT INTO webhookd.endpoint (tenant, name, source, spec)"
        " SELECT s ->> 'tenant', s ->> 'name', 'api', s FROM unnest($1::jsonb[]) s RETURNING id",
        specs,
    )
    sealed = [(row[0], *keyring.seal(row[0], rig.SECRET)) for row in rows]
    await connection.executemany(
        "INSERT INTO webhookd.secret (endpoint_id, number, key_id, sealed) VALUES ($1, 1, $2, $3)", sealed
    )
    await connection.execute("UPDATE webhookd.config_version SET version = version + 1")


async def _cpu(daemon: Served, seconds: float) -> float:
    before = rig.cpu(daemon.process)
    await asyncio.sleep(seconds)
    return rig.cpu(daemon.process) - before


async def _index(server: str) -> list[Line]:
    """How fast an INSERT is with the index by tenant, compared to without; no daemon runs."""
    lines = []
    async with rig.database(server, "indexed") as (having, _), rig.database(server, "bare") as (without, connection):
        await connection.execute("DROP INDEX webhookd.outbox_tenant")

        async def measure(case: tuple[str, str]) -> float:
            dsn, statement = case
            done = await pgbench(dsn, statement, clients=1, seconds=INSERTS)
            return statistics.fmean(each.seconds for each in done)

        for what, statement, budget in (("no tenant", PLAIN, 0.97), ("1,000 tenants", TENANTS, 0.9)):
            ways = (having, statement), (without, statement)
            pairs = await in_pairs(measure, *ways, budget, least=PAIRS, most=3 * PAIRS)
            ratios = [bare / indexed for indexed, bare in pairs]
            name, clear = f"INSERT speed with the index by tenant / without: {what}", is_clear(ratios, budget)
            lines.append(Line(name, statistics.median(ratios), "ratio", budget, at_least=True, clear=clear))
    return lines
