"""A daemon in this process, between hostile endpoints in another one and a good endpoint that must not notice them."""

import asyncio
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, NamedTuple, TypeAlias

import psutil

from tests.conftest import connected
from tests.fault.fleet import ROOT
from tests.integration.conftest import Receiver, Sql, eventually, insert, insert_many
from tests.planted import SECRET
from tests.stopwatch import Stopwatch, family
from tests.waiting import HANGS, until
from webhookd.config.config import Config, build

WITHIN = 1.0  # seconds, in which the good endpoint has its event whatever the others do
PROBE, LOOK = 0.001, 0.01  # seconds between two looks at the loop, and at the memory

Besiege: TypeAlias = Callable[..., AbstractAsyncContextManager["Siege"]]


class Asked(NamedTuple):
    """What came to a path of the hostile server, and what it did there besides answering."""

    requests: Sequence[str]
    notes: Sequence[str]


class Hostile:
    """The process of the hostile server. `authorities` are the certificates of its ports that speak TLS."""

    def __init__(self, ports: Mapping[str, int], authorities: Mapping[str, str]) -> None:
        self.ports = ports
        self.authorities = authorities

    async def asked(self, path: str) -> Asked:
        """What its ledger has on a path."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports["ledger"], limit=2**24)
        writer.write(path.encode() + b"\n")
        found = json.loads(await reader.readline())
        writer.close()
        await writer.wait_closed()
        return Asked(**found)


@contextmanager
def hostile_server() -> Iterator[Hostile]:
    """The hostile server, which ends with the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fault.hostile"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            yield Hostile(**json.loads(process.stdout.readline()))
            assert process.poll() is None, "it was there all the time"
        finally:
            process.kill()


class Attempt(NamedTuple):
    """A row of the log of attempts."""

    endpoint: str
    event_id: str
    number: int
    ok: bool
    code: int | None
    ms: int
    error: str | None
    response: bytes | None

    @property
    def verdict(self) -> int | str | None:
        """The status of what was delivered, the error of what was not."""
        return self.code if self.ok else self.error


class Others:
    """How the events of the good endpoint fare, and our process: seconds, and MiB that are resident."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.lag = 0.0  # the longest that the loop was late
        self.memory = 0.0  # the most

    def __str__(self) -> str:
        longest = max(self.latencies, default=0.0)
        return (
            f"{len(self.latencies)} events of others within {longest:.3f} s,"
            f" the loop {self.lag:.3f} s late, {self.memory:.1f} MiB"
        )


class Siege:
    """What is done to the hostile endpoints, which are named as the attacks; one of several is `name-2`."""

    def __init__(self, sql: Sql, dsn: str, receiver: Receiver, hostile: Hostile, paths: Mapping[str, str]) -> None:
        self._sql = sql
        self._dsn = dsn
        self._receiver = receiver
        self._hostile = hostile
        self._watch = Stopwatch(*family(sql.get_server_pid()))
        self.paths = paths

    @property
    def noise(self) -> float:
        """Seconds of other work on this machine since it began."""
        return self._watch.left_out

    async def attack(self, count: int = 1, payload: str = "{}") -> list[str]:
        """Owe each hostile endpoint so many events more; their ids."""
        return await insert_many(self._sql, count, "attack", payload)

    async def asked(self, endpoint: str, below: str = "") -> Asked:
        """What came to a hostile endpoint, or to a path below its own."""
        return await self._hostile.asked(self.paths[endpoint] + below)

    async def forged(self, endpoint: str, count: int) -> None:
        """Wait until so many answers were forged there."""

        async def are_there() -> bool:
            return len((await self.asked(endpoint)).notes) >= count

        await eventually(are_there, f"{count} forged answers at {endpoint}")

    async def attempts(self) -> dict[str, list[Attempt]]:
        """The attempts at each hostile endpoint, in the order in which they were made."""
        found = defaultdict(list)
        for row in await self._sql.fetch(
            """SELECT p.name, o.event_id, a.attempt, a.ok, a.code, a.ms, a.error, a.response FROM webhookd.attempt a
                 JOIN webhookd.outbox o ON o.id = a.outbox_id JOIN webhookd.endpoint p ON p.id = a.endpoint_id
                WHERE o.type = 'attack' ORDER BY a.at"""
        ):
            found[row["name"]].append(Attempt(*row))
        return dict(found)

    async def met(self, condition: Callable[[Sequence[Attempt]], bool], what: str, timeout: float = HANGS) -> None:
        """Wait until the attempts at each hostile endpoint are so."""
        missing: list[str] = []

        async def all_are() -> bool:
            found = await self.attempts()
            missing[:] = [name for name in self.paths if not condition(found.get(name, ()))]
            return not missing

        try:
            await eventually(all_are, what, timeout)
        except AssertionError:
            raise AssertionError(f"not within {timeout:g} s: {what} at {missing}") from None

    def others(self) -> AbstractAsyncContextManager[Others]:
        """Meanwhile the good endpoint gets events, each within a second, and the loop is watched."""
        return others_flow(self._dsn, self._receiver)


@asynccontextmanager
async def others_flow(dsn: str, receiver: Receiver) -> AsyncIterator[Others]:
    """Meanwhile the endpoint at the path `good` gets events of the type `good`, each within a second."""
    others, over = Others(), asyncio.Event()
    async with connected(dsn) as connection, asyncio.TaskGroup() as group:
        flowing = group.create_task(_flow(connection, receiver, others, over))
        watching = group.create_task(_watch(others))
        try:
            yield others
        finally:
            over.set()
            await asyncio.wait([flowing])
            watching.cancel()
    assert others.latencies, "at least one event was for the good endpoint"
    assert max(others.latencies) < WITHIN, others


async def _flow(connection: Sql, receiver: Receiver, others: Others, over: asyncio.Event) -> None:
    while not over.is_set():
        event_id = await insert(connection, type="good")
        watch = Stopwatch(*family(connection.get_server_pid()))
        await until(lambda: event_id in receiver.events("good"), "the good endpoint has it")  # noqa: B023
        others.latencies.append(watch.seconds)
        await asyncio.sleep(0.02)


async def _watch(others: Others) -> None:
    process, looked = psutil.Process(), 0.0
    while True:
        watch = Stopwatch()
        await asyncio.sleep(PROBE)
        others.lag = max(others.lag, watch.seconds - PROBE)
        now = time.monotonic()
        if now - looked > LOOK:
            looked = now
            others.memory = max(others.memory, process.memory_info().rss / 2**20)


async def tables_with(sql: Sql, text: bytes, *, but: str = "") -> set[str]:
    """The tables of the schema in which a row has this text, as text or in bytes; a column named `but` is left out."""
    found = set()
    for (table,) in await sql.fetch(
        "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'webhookd'::regnamespace"
        " AND relkind IN ('r', 'p') AND NOT relispartition"
    ):
        rows = f"SELECT (to_jsonb(t) - $3::text)::text AS row FROM {table} t"
        has = f"SELECT EXISTS (SELECT FROM ({rows}) r WHERE strpos(row, $1) > 0 OR strpos(row, $2) > 0)"
        if await sql.fetchval(has, text.decode(), text.hex(), but):
            found.add(table)
    return found


def configuration(
    hostile: Hostile, paths: Mapping[str, str], good: str, keys: Mapping[str, Any], **sections: Mapping[str, Any]
) -> Config:
    """A good endpoint for the events `good`, and hostile ones at these paths for the events `attack`."""
    endpoints: dict[str, dict[str, Any]] = {"good": {"url": good, "events": ["good"], "secret": SECRET}}
    for name, path in paths.items():
        attack = attack_of(name)
        scheme = "https" if attack.startswith("tls_") else "http"
        endpoints[name] = {
            "url": f"{scheme}://127.0.0.1:{hostile.ports[attack]}{path}",
            "events": ["attack"],
            "secret": SECRET,
            **keys,
        }
        if attack in hostile.authorities and attack != "tls_self_signed":
            endpoints[name]["tls"] = {"ca_file": attack}
    document = {
        "egress": {"allow_http": True, "allow_networks": ["127.0.0.0/8"]},
        "retry": {"first": "50ms", "max_interval": "200ms", "factor": 2},
        **sections,
        "endpoint": endpoints,
    }
    return build(document, [], {}, lambda path, file: hostile.authorities[path])


def attack_of(endpoint: str) -> str:
    """The attack behind an endpoint."""
    return endpoint.partition("-")[0]
