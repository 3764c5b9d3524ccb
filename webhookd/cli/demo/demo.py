"""`webhookd demo`: everything at once on this machine, for a first look.

producer ──INSERT──▶ Postgres of its own ──▶ the daemon ──POST──▶ receiver: healthy, flaky, slow
                          └──────── what the tables say ─────────▶ table, lines or JSON
"""

import asyncio
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Annotated, cast

import typer

from webhookd.cli import logging
from webhookd.cli.demo import files
from webhookd.cli.demo.accounts import Receipts, Summary, summarize
from webhookd.cli.demo.view import Seen, summary_table, summary_text, view
from webhookd.cli.embedded import postgres
from webhookd.cli.options import STOP_SIGNALS, AsJson, folder, on_stop_signals, ran
from webhookd.cli.receiver import Received, local_receiver
from webhookd.cli.tables import say, show_json, tell
from webhookd.config.config import Config
from webhookd.daemon.daemon import Daemon
from webhookd.errors import StoreUnavailable
from webhookd.ids import new_id
from webhookd.message.signing import new_secret, parse_secret
from webhookd.model import Endpoint
from webhookd.store import tokens, wheel
from webhookd.store.database import Database
from webhookd.store.migrations import migrate
from webhookd.store.reports import Mark, Producer, Pulse, Reports
from webhookd.tasks import wait_for
from webhookd.web.table import BASE

LOOK_SECONDS = 0.5
SETTLE_SECONDS = 30.0  # for the last retries to succeed
AWAY_SECONDS = 0.5
INSERT = (
    "INSERT INTO webhookd.outbox (type, payload)",
    r"""VALUES ('order.created', '{\"hello\": \"world\"}')""",
)  # for a shell
MESSAGE = '{"eventType": "order.created", "payload": {"hello": "world"}}'


def demo(
    directory: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the database and the configuration are kept.")
    ] = Path("webhookd-demo"),
    seconds: Annotated[
        float | None, typer.Option(min=0, metavar="N", help="Stop by itself: N seconds of events, then what is owed.")
    ] = None,
    rate: Annotated[float, typer.Option(min=0.1, max=2000, metavar="N", help="Events a second.")] = 4.0,
    as_json: AsJson = False,
) -> None:
    """Try it, with all that it needs, until Ctrl-C.

    That is a Postgres, a receiver with three endpoints, the daemon and a stream of events.
    """
    folder("--directory", directory)
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # until the loop takes over: Postgres must not be left behind
    if not as_json:
        tell(f"starting PostgreSQL in {directory}, which takes some seconds the first time")
    try:
        with postgres(directory) as dsn:
            try:
                summary = ran(_Demo(directory, dsn, seconds, rate, quiet=as_json).run())
            finally:
                for number in STOP_SIGNALS:
                    signal.signal(number, signal.SIG_IGN)  # what is left takes moments
    except asyncio.CancelledError:
        raise typer.Exit(1) from None
    if as_json:
        show_json(summary.document())
    else:
        say(summary_table(summary))
        tell(f"{summary_text(summary)}\nThe data stays in {directory}.")
    raise typer.Exit(1 if summary.unaccounted else 0)


class _Demo:
    """One run of it, on a Postgres that runs."""

    def __init__(self, directory: Path, dsn: str, seconds: float | None, rate: float, *, quiet: bool) -> None:
        self._directory = directory
        self._dsn = dsn
        self._seconds = seconds
        self._rate = rate
        self._quiet = quiet
        self._stopped = asyncio.Event()  # by a signal
        self._enough = asyncio.Event()  # events
        self._over = asyncio.Event()
        self._doing = ""
        self._random = Random()  # noqa: S311 - moods of a receiver and sample data
        self._emitted = 0
        self._receipts = {name: Receipts() for name in files.SCENES}
        self._pulses: dict[int, Pulse] = {}

    async def run(self) -> Summary:
        """Run until stopped or settled; what became of every event."""
        on_stop_signals(self._stopped.set, cast(asyncio.Task[Summary], asyncio.current_task()).cancel)
        secret = new_secret()
        await migrate(self._dsn)
        async with (
            local_receiver((parse_secret(secret),), self._receive, files.BEHAVIOURS, random=self._random.random) as url,
            Database(self._dsn, size=3) as database,
        ):
            config = files.write(self._directory, self._dsn, url, secret)
            with (self._directory / "webhookd.log").open("a", buffering=1) as stream:
                logging.configure(config.log.level, config.log.format, stream)
                return await self._play(config, database)

    async def _play(self, config: Config, database: Database) -> Summary:
        reports, ready = Reports(database), asyncio.Event()
        since = await reports.mark()
        daemon = Daemon(config, self._dsn, on_ready=lambda _: ready.set())
        async with asyncio.TaskGroup() as tasks:
            delivering = tasks.create_task(daemon.run())
            await ready.wait()
            ids = await reports.endpoint_ids()
            endpoints = {ids[each.tenant, each.name]: each for each in config.endpoints}
            if not self._quiet:
                with self._shown():
                    say(introduction(self._directory, self._dsn, daemon.api_url, await self._token(database)))
            producing = tasks.create_task(self._produce(Producer(database)))
            watching = tasks.create_task(self._watch(reports, endpoints, config, since))
            await _either(self._stopped, self._seconds)
            self._enough.set()
            await asyncio.wait([producing])
            if not self._stopped.is_set():
                self._doing = "finishing"
                await self._settle(reports, since)
            self._doing = "stopping"
            daemon.stop()
            await asyncio.wait([delivering])
            self._over.set()
            await asyncio.wait([watching])
        return await summarize(reports, endpoints, self._receipts, since, self._emitted, self._pulses)

    async def _token(self, database: Database) -> str:
        """A token of the API for whoever reads our lines."""
        token = tokens.new_token()
        await tokens.add(database, new_id("tok_"), token, tokens.New("admin", "demo", "webhookd demo"))
        return token

    def _receive(self, received: Received) -> None:
        self._receipts.setdefault(received.path.removeprefix("/"), Receipts()).add(received)

    async def _produce(self, producer: Producer) -> None:
        """INSERT at the rate, whatever time an INSERT takes."""
        started, pause = time.monotonic(), 0.0
        for type_, payload in files.samples(self._random):
            if await wait_for(self._enough, pause):
                return
            try:
                await producer.insert(type_, payload)
                self._emitted += 1
            except StoreUnavailable:
                await asyncio.sleep(AWAY_SECONDS)
            pause = max(0.0, started + self._emitted / self._rate - time.monotonic())

    async def _watch(self, reports: Reports, endpoints: Mapping[int, Endpoint], config: Config, since: Mark) -> None:
        started, last = time.monotonic(), False
        with view(self._quiet) as show:
            while not last:
                last = await wait_for(self._over, LOOK_SECONDS)
                try:
                    events = await reports.events(since)
                    self._pulses = await reports.pulse(list(endpoints), since)
                except StoreUnavailable:
                    continue
                rows = [
                    (each.label, str(config.specs[each.tenant, each.name]["description"]), self._pulses[id_])
                    for id_, each in endpoints.items()
                ]
                with self._shown():
                    show(Seen(time.monotonic() - started, self._doing, events, rows))

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Stop in order when whoever read our lines has gone."""
        try:
            yield
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._stopped.set()

    async def _settle(self, reports: Reports, since: Mark) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            try:
                if not await reports.unsettled(since):
                    return
            except StoreUnavailable:
                pass  # it may come back in time
            if await wait_for(self._stopped, LOOK_SECONDS):
                return


async def _either(stopped: asyncio.Event, seconds: float | None) -> None:
    if seconds is None:
        await stopped.wait()
    else:
        await wait_for(stopped, seconds)


def introduction(directory: Path, dsn: str, api: str, token: str) -> str:
    """Where everything is, and commands to paste."""
    begun, _, ended = MESSAGE.replace('"', r"\"").partition(", ")
    return f"""
configuration  {directory / "webhookd.toml"}
endpoints      {directory / "endpoints.d"}
log            {directory / "webhookd.log"}
database       {dsn}

Send an event of your own, from another terminal:

  {_psql()} \\
    {shlex.quote(dsn)} \\
    -c "{INSERT[0]} \\
        {INSERT[1]}"

or by the HTTP API, with curl or with Python:

  TOKEN={token}
  API={api}{BASE}

  curl $API/app/default/msg -H "authorization: Bearer $TOKEN" \\
    -d '{MESSAGE}'

  python3 -c "from urllib.request import Request, urlopen; \\
    print(urlopen(Request('$API/app/default/msg', \\
    b'{begun}, \\
    {ended}', \\
    {{'authorization': 'Bearer $TOKEN'}})).read().decode())"

Ctrl-C stops.
"""


def _psql() -> str:
    """The psql of this machine, else the one in the wheel."""
    if shutil.which("psql") or (brought := wheel.folder()) is None:
        return "psql"
    return shlex.quote(str(brought / "pginstall18" / "bin" / "psql"))
