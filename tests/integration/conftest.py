"""A daemon in this process, a receiver with a ledger of all it got, and an application's database with its roles."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple, Protocol, TypeAlias

import asyncpg
import pytest
from aiohttp import web

from tests.conftest import execute
from tests.planted import SECRET
from tests.waiting import HANGS, until
from webhookd.config.config import Config, build
from webhookd.daemon.daemon import Daemon
from webhookd.engine.engine import Intervals
from webhookd.store.statements import GRANTS

Sql: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
QUICK = Intervals(beat=0.5, rescue=0.3, look=0.05, flush=0.004, patience=0.3)
DEBEZIUM = """
CREATE TABLE outbox (id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL,
                     type varchar(255) NOT NULL, payload jsonb)"""


class Got(NamedTuple):
    """A request, as the receiver saw it."""

    path: str
    headers: Mapping[str, str]  # lower case
    pairs: tuple[tuple[str, str], ...]  # the same with repetitions
    body: bytes
    at: float  # on the loop's clock

    @property
    def event_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def attempt(self) -> int:
        return int(self.headers["webhook-attempt"])


Script = Callable[[Got], Awaitable[web.Response]]


class Receiver:
    """An HTTP server on loopback. A path without a script answers 200 at once."""

    def __init__(self) -> None:
        self.port = 0
        self.got: list[Got] = []
        self.scripts: dict[str, Script] = {}
        self.flying: Counter[str] = Counter()
        self.peaks: Counter[str] = Counter()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def of(self, path: str) -> list[Got]:
        """The requests to this path, in the order of their arrival."""
        return [each for each in self.got if each.path == path]

    def events(self, path: str) -> list[str]:
        """The ids of the events that came to this path."""
        return [each.event_id for each in self.of(path)]

    def answers(self, path: str, *statuses: int, headers: Mapping[str, str] | None = None) -> None:
        """Answer each event with these statuses in turn, the last one for ever."""
        seen: Counter[str] = Counter()

        async def script(got: Got) -> web.Response:
            status = statuses[min(seen[got.event_id], len(statuses) - 1)]
            seen[got.event_id] += 1
            return web.Response(status=status, text=f"answer {status}", headers=headers)

        self.scripts[path] = script

    def hangs(self, path: str) -> asyncio.Event:
        """Answer only when the event that is returned is set."""
        healed = asyncio.Event()

        async def script(_: Got) -> web.Response:
            await healed.wait()
            return web.Response()

        self.scripts[path] = script
        return healed

    async def handle(self, request: web.Request) -> web.Response:
        path = request.path.removeprefix("/")
        pairs = tuple((name.lower(), value) for name, value in request.headers.items())
        at = asyncio.get_running_loop().time()
        got = Got(path, dict(pairs), pairs, await request.read(), at)
        self.got.append(got)
        self.flying[path] += 1
        self.peaks[path] = max(self.peaks[path], self.flying[path])
        try:
            script = self.scripts.get(path)
            return await script(got) if script else web.Response()
        finally:
            self.flying[path] -= 1


async def eventually(condition: Callable[[], Awaitable[bool]], what: str, timeout: float = HANGS) -> None:
    """Wait until what a query answers is true."""
    either: Callable[[], bool | Awaitable[bool]] = condition
    await until(either, what, timeout, interval=0.02)


async def insert(sql: Sql, payload: str = "{}", **columns: Any) -> str:
    """Insert an event; its event_id."""
    values = {"type": "order.created", **columns, "payload": payload}
    places = ", ".join(f"${n}" for n in range(1, len(values) + 1))
    event_id: str = await sql.fetchval(
        f"INSERT INTO webhookd.outbox ({', '.join(values)}) VALUES ({places}) RETURNING event_id", *values.values()
    )
    return event_id


async def insert_many(sql: Sql, count: int, type_: str = "order.created", payload: str = "{}") -> list[str]:
    rows = await sql.fetch(
        "INSERT INTO webhookd.outbox (type, payload) SELECT $1, $2 FROM generate_series(1, $3) RETURNING event_id",
        type_,
        payload,
        count,
    )
    return [row["event_id"] for row in rows]


async def status(sql: Sql, event_id: str) -> dict[str | None, asyncpg.Record]:
    """What event_status says, by endpoint."""
    rows = await sql.fetch("SELECT * FROM webhookd.event_status($1)", event_id)
    return {row["endpoint"]: row for row in rows}


async def states(sql: Sql, event_id: str) -> dict[str | None, str]:
    return {endpoint: row["state"] for endpoint, row in (await status(sql, event_id)).items()}


async def attempts(sql: Sql, event_id: str, endpoint: str = "hook") -> list[asyncpg.Record]:
    return await sql.fetch(
        """SELECT a.* FROM webhookd.attempt a JOIN webhookd.outbox o ON o.id = a.outbox_id
             JOIN webhookd.endpoint p ON p.id = a.endpoint_id
            WHERE o.event_id = $1 AND p.name = $2 ORDER BY a.attempt""",
        event_id,
        endpoint,
    )


async def settled(sql: Sql, event_id: str, wanted: dict[str | None, str]) -> None:
    async def reached() -> bool:
        return await states(sql, event_id) == wanted

    try:
        await eventually(reached, f"{wanted} of {event_id}")
    except AssertionError:
        assert await states(sql, event_id) == wanted
        raise


async def finished(sql: Sql, timeout: float = HANGS) -> None:
    """Wait until nothing is owed any more."""

    async def idle() -> bool:
        return not await sql.fetchval(
            """SELECT EXISTS (SELECT FROM webhookd.batch WHERE done_at IS NULL)
                   OR EXISTS (SELECT FROM webhookd.surplus)
                   OR EXISTS (SELECT FROM webhookd.backlog WHERE state = 'retry')
                   OR EXISTS (SELECT FROM webhookd.parked
                               WHERE next_batch < COALESCE(to_batch, (SELECT max(id) + 1 FROM webhookd.batch)))
                   OR NOT EXISTS (SELECT FROM webhookd.batch
                                   WHERE (SELECT max(id) FROM webhookd.outbox) = ANY (outbox_ids))"""
        )

    await eventually(idle, "the end of all", timeout)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver of this test's own."""
    there = Receiver()
    application = web.Application(client_max_size=64 * 1024 * 1024)
    application.router.add_post("/{path:.*}", there.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    there.port = runner.addresses[0][1]
    yield there
    await runner.cleanup()


def configuration(endpoints: Mapping[str, Mapping[str, Any]], **sections: Mapping[str, Any]) -> Config:
    """Endpoints may be on loopback, sign with SECRET, and want every event unless they say otherwise."""
    tables = {}
    for name, table in endpoints.items():
        own = {"events": ["*"], **table}
        if not own.keys() & {"secret", "secrets", "signature"}:
            own["secret"] = SECRET
        tables[name] = own
    document = {
        "egress": {"allow_http": True, "allow_networks": ["127.0.0.0/8"]},
        "retry": {"first": "50ms", "max_interval": "200ms", "factor": 2},
        **sections,
        "endpoint": tables,
    }
    return build(document, [], {}, lambda path, file: "")


class Ear:
    """Counts what is notified on the channel of the daemon, and by which backends."""

    def __init__(self) -> None:
        self.heard = 0
        self.pids: set[int] = set()

    def __call__(self, _connection: object, pid: int, *_: object) -> None:
        self.heard += 1
        self.pids.add(pid)


class Running(Protocol):
    """Runs a daemon; `load` is what a reload reads."""

    def __call__(
        self, config: Config, pace: Intervals = QUICK, load: Callable[[], Config] | None = None
    ) -> AbstractAsyncContextManager[Daemon]: ...


@pytest.fixture
def daemon(dsn: str) -> Running:
    """`async with daemon(config):` runs the whole daemon at a tenth of its pace, and stops it in order."""

    @asynccontextmanager
    async def run(
        config: Config, pace: Intervals = QUICK, load: Callable[[], Config] | None = None
    ) -> AsyncIterator[Daemon]:
        ready = asyncio.Event()
        made = Daemon(config, dsn, load=load, intervals=pace, on_ready=lambda _: ready.set())
        async with asyncio.TaskGroup() as group:
            task = group.create_task(made.run())
            try:
                async with asyncio.timeout(HANGS):
                    await ready.wait()
                yield made
            except BaseException:
                task.cancel()  # a test that failed must not wait for attempts that hang
                raise
            made.stop()

    return run


def as_user(dsn: str, user: str) -> str:
    """The same database, as another role."""
    return dsn.replace("//postgres@", f"//{user}@")


@pytest.fixture
def roles(server: str) -> Iterator[None]:
    """The roles of grants.sql and that of an application, which belong to the server, for a test."""
    names = ("webhookd_daemon", "webhookd_producer", "webhookd_reader", "my_app")
    for name in names:
        execute(server, f"CREATE ROLE {name} LOGIN")
    yield
    for name in reversed(names):
        execute(server, f"DROP ROLE {name}")


@pytest.fixture
async def granted(roles: None, sql: Sql) -> Sql:
    """A database in which the roles have their rights."""
    await sql.execute(GRANTS)
    return sql


@pytest.fixture
async def shop(granted: Sql) -> Sql:
    """A database of an application: a table, Debezium's outbox, and the roles."""
    await granted.execute("CREATE TABLE orders (id bigint PRIMARY KEY, status text NOT NULL)")
    await granted.execute("INSERT INTO orders VALUES (42, 'new'), (7, 'closed'), (8, 'closed')")
    await granted.execute(DEBEZIUM)
    await granted.execute("GRANT ALL ON orders, outbox TO my_app")
    return granted


@pytest.fixture
async def producer(shop: Sql, dsn: str) -> str:
    """The DSN of an application that is a member of webhookd_producer, and no more."""
    await shop.execute("GRANT webhookd_producer TO my_app")
    return as_user(dsn, "my_app")
