"""Debian's pgbouncer in transaction mode before a server, and what its guests leave on the connections they shared."""

import os
import shutil
import signal
import socket
import tempfile
from asyncio import create_subprocess_exec, timeout
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg

from tests.fault.verdict import ROLES
from tests.waiting import until

PROGRAM = "/usr/sbin/pgbouncer"
CONNECTIONS = 3  # to the server, for each role and database: fewer than one daemon has to the pooler
PORT = 6432  # of the socket's name: there is no other port
START_SECONDS = 10.0
STOP_SECONDS = 10.0
# Besides these nobody should set anything: the pooler keeps them for each client, as the client wishes.
POOLERS_OWN = ("application_name", "client_encoding", "DateStyle", "standard_conforming_strings", "TimeZone")

SETTINGS = """
[databases]
* = host={server} port=5432
[pgbouncer]
pool_mode = transaction
default_pool_size = {connections}
max_client_conn = 100
listen_addr =
listen_port = {port}
unix_socket_dir = {here}
auth_type = trust
auth_file = {here}/users
"""

# Asked at the beginning of a transaction: what is there now was there before, and belongs to nobody.
LEFT = """
SELECT pg_backend_pid() AS pid,
  ARRAY(SELECT format('lock %s/%s', classid, objid) FROM pg_locks
         WHERE pid = pg_backend_pid() AND locktype = 'advisory')
  || ARRAY(SELECT 'listens to ' || c FROM pg_listening_channels() c)
  || ARRAY(SELECT format('%s = %s', name, setting) FROM pg_settings
            WHERE source = 'session' AND name <> ALL ($1::text[]))
  || ARRAY(SELECT 'prepared ' || statement FROM pg_prepared_statements)
  || ARRAY(SELECT 'cursor ' || statement FROM pg_cursors WHERE name <> '')
  || ARRAY(SELECT 'temporary ' || oid::regclass FROM pg_class WHERE relnamespace = pg_my_temp_schema()) AS left
"""


class Pooler:
    """`async with Pooler(dsn) as pooler`: clients connect to `pooler.dsn(role)`; `dsn` must name a UNIX socket."""

    def __init__(self, dsn: str) -> None:
        self._database = urlsplit(dsn).path
        self._server = parse_qs(urlsplit(dsn).query)["host"][0]
        self._directory = Path()
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        # Not tmp_path: the path of a socket has 107 bytes at most, and only root could enter.
        self._directory = Path(tempfile.mkdtemp(prefix="webhookd-pooler-", dir="/tmp"))
        (self._directory / "users").write_text("".join(f'"{role}" ""\n' for role in ("postgres", *ROLES)))
        (self._directory / "ini").write_text(
            SETTINGS.format(server=self._server, connections=CONNECTIONS, port=PORT, here=self._directory)
        )
        for path in (self._directory, *self._directory.iterdir()):
            shutil.chown(path, self._account)
        try:
            await self.start()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        shutil.rmtree(self._directory)

    @property
    def _account(self) -> str:
        return Path(self._server).owner()  # whoever runs the server, so not root, which pgbouncer refuses to be

    def dsn(self, role: str) -> str:
        """The way through the pooler."""
        return f"postgresql://{role}@{self._database}?host={quote(str(self._directory), safe='')}&port={PORT}"

    @property
    def pid(self) -> int:
        """Its process, once it was started."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """What it wrote since it was started first."""
        return (self._directory / "log").read_text()

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        become = ("-u", self._account) if os.geteuid() == 0 else ()
        with (self._directory / "log").open("ab") as output:
            self._process = process = await create_subprocess_exec(
                PROGRAM, *become, self._directory / "ini", stdout=output, stderr=output, start_new_session=True
            )

        def answers() -> bool:
            assert process.returncode is None, self.log()
            with socket.socket(socket.AF_UNIX) as client:
                return client.connect_ex(str(self._directory / f".s.PGSQL.{PORT}")) == 0

        await until(answers, "pgbouncer answers", START_SECONDS)

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it at once, and all of its connections with it, whatever flows on them."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(how)
        try:
            async with timeout(STOP_SECONDS):
                await self._process.wait()
        finally:
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()

    async def left(self, role: str) -> Mapping[int, Sequence[str]]:
        """What is left on each connection to the server that clients of this role share, by its PID."""
        async with AsyncExitStack() as stack:
            found = {}
            for _ in range(CONNECTIONS):  # a transaction on each at the same time, so none is missed
                client = await asyncpg.connect(self.dsn(role), statement_cache_size=0)
                stack.push_async_callback(client.close)
                await stack.enter_async_context(client.transaction())
                row = await client.fetchrow(LEFT, POOLERS_OWN)
                assert row is not None
                found[row["pid"]] = row["left"]
        return found
