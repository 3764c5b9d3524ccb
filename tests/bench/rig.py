"""What every benchmark needs: a Postgres, a receiver and a daemon, each a process of its own."""

import asyncio
import base64
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import psutil

from webhookd.cli.embedded import postgres
from webhookd.store.migrations import migrate

SECRET = "whsec_" + base64.b64encode(b"this-is-a-fake-secret-for-benchmarks").decode()


@contextmanager
def server() -> Iterator[str]:
    """A fresh PostgreSQL with its defaults, but for checkpoints: their full page images are not our work."""
    with tempfile.TemporaryDirectory(prefix="webhookd-bench-") as directory:
        Path(directory).chmod(0o755)
        settings = {
            "max_wal_size": "8GB",
            "checkpoint_timeout": "1h",
            "shared_buffers": "256MB",
            "max_connections": "100",
        }
        with postgres(Path(directory) / "data", settings=settings) as dsn:
            yield dsn


@asynccontextmanager
async def database(server_dsn: str, name: str) -> AsyncIterator[tuple[str, Any]]:
    """A migrated database of that name, and a connection to it."""
    admin = await asyncpg.connect(server_dsn)
    await admin.execute(f"CREATE DATABASE {name}")
    dsn = server_dsn.replace("/postgres?", f"/{name}?")
    await migrate(dsn)
    connection = await asyncpg.connect(dsn)
    await admin.execute("CHECKPOINT")
    try:
        yield dsn, connection
    finally:
        await connection.close()
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


@asynccontextmanager
async def program(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program with its arguments, ended with SIGTERM, and with SIGKILL when it does not go."""
    child = await asyncio.create_subprocess_exec(
        *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):  # it has been killed this very moment
                child.terminate()
            try:
                async with asyncio.timeout(30):
                    await child.wait()
            except TimeoutError:
                child.kill()
                await child.wait()


def process(*arguments: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """`python -m …`, ended like any program."""
    return program(sys.executable, "-m", *arguments)


async def line(child: asyncio.subprocess.Process) -> str:
    """The next line of its output."""
    assert child.stdout is not None
    async with asyncio.timeout(60):
        return (await child.stdout.readline()).decode().strip()


@asynccontextmanager
async def receiver() -> AsyncIterator[str]:
    """The URL of a receiver process."""
    async with process("tests.bench.receiver") as child:
        yield f"http://127.0.0.1:{await line(child)}"


def configuration(dsn: str, endpoints: dict[str, dict[str, Any]], also: str = "", **delivery: Any) -> str:
    """A file with these endpoints; `also` is more of it."""
    lines = [
        f"[database]\ndsn = {json.dumps(dsn)}",
        "[egress]\nallow_http = true",
        'allow_networks = ["127.0.0.0/8"]',
    ]
    lines += ["[delivery]", *(f"{key} = {json.dumps(value)}" for key, value in delivery.items())]
    for name, keys in endpoints.items():
        lines += [f"[endpoint.{name}]", *(f"{k} = {json.dumps(v)}" for k, v in ({"secret": SECRET} | keys).items())]
    return "\n".join([*lines, also]) + "\n"


@asynccontextmanager
async def daemon(
    dsn: str, endpoints: dict[str, dict[str, Any]], *, careless: bool = False, also: str = "", **delivery: Any
) -> AsyncIterator[psutil.Process]:
    """A daemon process that delivers to these endpoints; `also` is more of its file."""
    with tempfile.TemporaryDirectory(prefix="webhookd-bench-") as directory:
        file = Path(directory) / "webhookd.toml"
        file.write_text(configuration(dsn, endpoints, also, **delivery))
        async with process("tests.bench.process", str(file), *(["--careless"] if careless else [])) as child:
            assert await line(child) == "ready"
            yield psutil.Process(child.pid)


@asynccontextmanager
async def asking(dsn: str) -> AsyncIterator[Any]:
    """One more connection."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def wal(connection: Any) -> float:
    """Bytes of WAL the server has written since it was made."""
    return float(await connection.fetchval("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"))


def cpu(of: psutil.Process | asyncio.subprocess.Process) -> float:
    """Seconds of CPU that all threads of a process have used, to the nanosecond where its times have 10 ms."""
    return time.clock_gettime(~of.pid << 3 | 2)  # what clock_getcpuclockid(3) gives


def cpu_of_backend(connection: Any) -> float:
    """Seconds of CPU that the server process of a connection has used, to the nanosecond."""
    return int(Path(f"/proc/{connection.get_server_pid()}/schedstat").read_text().split()[0]) / 1e9


async def moments(url: str) -> dict[str, float]:
    """When the receiver got which event, monotonic; it forgets them."""
    async with aiohttp.ClientSession() as session, session.get(url + "/moments") as response:
        found: dict[str, float] = json.loads(await response.read())["moments"]
        return found


async def switch(url: str) -> None:
    """Let /dead answer from now on, and /mute no longer."""
    async with aiohttp.ClientSession() as session, session.get(url + "/switch") as response:
        assert response.status == 200


async def refused(url: str) -> int:
    """How often the receiver has answered with 429."""
    async with aiohttp.ClientSession() as session, session.get(url + "/moments") as response:
        return int(json.loads(await response.read())["refused"])


async def until_recorded(connection: Any, deliveries: int, seconds: float = 300.0, *, look: float = 0.2) -> None:
    """Wait until so many deliveries are in the log and every batch is done; `look` at that every so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done = await connection.fetchval(
            "SELECT (SELECT count(*) FROM webhookd.attempt WHERE ok) >= $1"
            " AND NOT EXISTS (SELECT FROM webhookd.batch WHERE done_at IS NULL)",
            deliveries,
        )
        if done:
            return
        await asyncio.sleep(look)
    raise TimeoutError(f"{deliveries} deliveries were not recorded within {seconds} s")
