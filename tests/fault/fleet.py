"""Starts receivers and daemons as processes, and ends the ones it started."""

import json
import os
import signal
import sys
from asyncio import create_subprocess_exec, timeout
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.planted import SECRET, said_in
from tests.waiting import HANGS, until

ROOT = Path(__file__).parents[2]


class Started:
    """A process of ours. `words` are what it said on stdout, where its first line begins with `ready`."""

    def __init__(self, process: Process, stdout: Path, stderr: Path) -> None:
        self.process = process
        self._stdout = stdout
        self._stderr = stderr

    @classmethod
    async def start(cls, directory: Path, name: str, *arguments: str) -> Self:
        """Start `python -m …`; its output goes to files in `directory`."""
        stdout, stderr = directory / f"{name}.out", directory / f"{name}.err"
        with stdout.open("wb") as out, stderr.open("ab") as error:
            process = await create_subprocess_exec(
                sys.executable, "-m", *arguments, cwd=ROOT, stdout=out, stderr=error, start_new_session=True
            )
        return cls(process, stdout, stderr)

    async def ready(self) -> list[str]:
        """The words after `ready`."""

        def said() -> list[str]:
            if self.process.returncode is not None:
                raise AssertionError(f"ended with {self.process.returncode}: {self.log()[-2000:]}")
            return self._stdout.read_text().split()

        return (await until(said, "the process is ready"))[1:]

    def log(self) -> str:
        """What it wrote to stderr."""
        return self._stderr.read_text()

    def send(self, which: signal.Signals) -> None:
        """Send a signal to this very process, unless it has ended."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(which)

    async def ended(self, seconds: float = HANGS) -> int:
        """The exit code, which must come within `seconds`."""
        try:
            async with timeout(seconds):
                return await self.process.wait()
        except TimeoutError:
            raise AssertionError(f"still runs after {seconds:g} s: {self.log()[-2000:]}") from None

    async def kill(self) -> None:
        """End it at once, frozen or not."""
        self.send(signal.SIGKILL)
        await self.process.wait()


class Receipt(NamedTuple):
    """A line of the receiver's ledger."""

    path: str
    id: str
    attempt: int
    body: str
    data: str
    status: int
    at: float


class Receiver:
    """The receiver's process, its ports and its ledger."""

    def __init__(self, started: Started, ledger: Path, port: int, dead_port: int) -> None:
        self._started = started
        self._ledger = ledger
        self.port = port
        self.dead_port = dead_port

    def url(self, path: str) -> str:
        """Where an endpoint of that behaviour is; `dead…` is on the port that refuses."""
        return f"http://127.0.0.1:{self.dead_port if path.startswith('dead') else self.port}/{path}"

    @property
    def pid(self) -> int:
        """Its process."""
        return self._started.process.pid

    def heal(self) -> None:
        """All endpoints answer 200 from now on."""
        self._started.send(signal.SIGUSR1)

    def release(self) -> None:
        """Answer what was held."""
        self._started.send(signal.SIGUSR2)

    def receipts(self) -> list[Receipt]:
        """All whole lines of the ledger."""
        if not self._ledger.exists():
            return []
        lines = self._ledger.read_bytes().split(b"\n")[:-1]
        return [Receipt(**json.loads(line)) for line in lines]

    def count(self, path: str, status: int = 200) -> int:
        """Receipts of one endpoint with that status."""
        return sum(receipt.path == f"/{path}" and receipt.status == status for receipt in self.receipts())


class Fleet:
    """A receiver and any number of daemons on one configuration."""

    def __init__(self, directory: Path, dsn: str, receiver: Receiver) -> None:
        self.directory = directory
        self.receiver = receiver
        self.daemons: dict[str, Started] = {}
        self._dsn = dsn
        self._document: dict[str, Any] = {}

    def configure(self, endpoints: Mapping[str, Mapping[str, Any]], **sections: Mapping[str, Any]) -> None:
        """Endpoints by path at the receiver, which is their name too; dashes instead of slashes."""
        self._document = {
            "egress": {"allow_http": True, "allow_networks": ["127.0.0.0/8"]},
            **sections,
            "endpoint": {
                path.replace("/", "-"): {
                    **({} if keys.get("kind") == "poll" else {"url": self.receiver.url(path)}),
                    "events": ["*"],
                    "secret": SECRET,
                    **keys,
                }
                for path, keys in endpoints.items()
            },
        }

    async def start(self, name: str, *arguments: str, dsn: str = "", direct_dsn: str = "") -> Started:
        """A daemon, ready, that is known to the database by the role `name`."""
        started = await self.launch(name, *arguments, dsn=dsn, direct_dsn=direct_dsn)
        await started.ready()
        return started

    async def launch(self, name: str, *arguments: str, dsn: str = "", direct_dsn: str = "") -> Started:
        """The same, without waiting for it."""
        file = self.directory / f"{name}.toml"
        where = {"dsn": dsn or _as(name, self._dsn), "direct_dsn": direct_dsn}
        file.write_text(_toml({**self._document, "database": where}))
        started = await Started.start(self.directory, name, "tests.fault.process", str(file), *arguments)
        self.daemons[name] = started
        return started

    async def command(self, name: str, command: str = "run", *arguments: str, dsn: str = "") -> Started:
        """A real command, such as `webhookd run`, at its own pace; nothing on stdout tells when that is ready."""
        file = self.directory / f"{name}.toml"
        file.write_text(_toml({**self._document, "database": {"dsn": dsn or _as(name, self._dsn)}}))
        started = await Started.start(self.directory, name, "webhookd", command, "-c", str(file), *arguments)
        self.daemons[name] = started
        return started

    async def stop(self, name: str, seconds: float = HANGS) -> None:
        """Stop it in order, which must work."""
        daemon = self.daemons[name]
        daemon.send(signal.SIGTERM)
        code = await daemon.ended(seconds)
        assert code == 0, daemon.log()[-2000:]

    def log(self) -> str:
        """What all of the daemons wrote, for a failure's message."""
        return "\n".join(f"{name}: {daemon.log()[-3000:]}" for name, daemon in self.daemons.items())


def _as(role: str, dsn: str) -> str:
    return dsn.replace("postgres@", f"{role}@", 1)


@asynccontextmanager
async def fleet(directory: Path, dsn: str, seed: int) -> AsyncIterator[Fleet]:
    """A receiver and what its daemons need; whatever was started is ended."""
    ledger = directory / "ledger"
    receiving = await Started.start(directory, "receiver", "tests.fault.receiver", str(ledger), str(seed))
    made: Fleet | None = None
    try:
        port, dead_port = map(int, await receiving.ready())
        made = Fleet(directory, dsn, Receiver(receiving, ledger, port, dead_port))
        yield made
        said = said_in(*(daemon.log() for daemon in made.daemons.values()))
        assert not said, f"a secret came up in the log: {said}"
    finally:
        for daemon in made.daemons.values() if made else ():
            await daemon.kill()
        await receiving.kill()


def seed_of(environment: Mapping[str, str] = os.environ) -> int:
    """A fixed seed, or another one to look for trouble with."""
    return int(environment.get("WEBHOOKD_TEST_SEED", "20261120"))


def _toml(document: Mapping[str, Any]) -> str:
    lines = []
    for section, table in document.items():
        tables = (
            {f"endpoint.{name}": keys for name, keys in table.items()} if section == "endpoint" else {section: table}
        )
        for header, keys in tables.items():
            lines.append(f"[{header}]")
            lines += [f"{key} = {_value(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)  # of strings, numbers, booleans and lists of them, JSON is TOML
