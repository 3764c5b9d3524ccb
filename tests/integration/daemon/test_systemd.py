"""The unit that is shipped, in the eyes of systemd itself, and what the daemon says to it."""

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import pytest
from typer.testing import CliRunner

from tests.fault.proxy import Proxy
from tests.integration.cli.test_cli import NOWHERE, PLAIN, configuration
from tests.integration.conftest import Receiver, Sql, insert
from tests.waiting import HANGS, until
from webhookd.cli.main import app
from webhookd.cli.systemd import PLACES, unit_file
from webhookd.errors import WebhookdError
from webhookd.store.migrations import migrate

FOLDER = Path(__file__).parents[3] / "systemd"
UNIT = FOLDER / "webhookd.service"
analyzed = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here; on Debian: apt install systemd"
)


def systemd(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(each) for each in arguments], capture_output=True, text=True, timeout=60, check=False)


@analyzed
def test_verify_is_silent(tmp_path: Path) -> None:
    """Silence counts: verify returns 0 for keys it does not know. It wants a program that exists, hence the copy."""
    program = tmp_path / "webhookd"
    program.symlink_to(sys.executable)
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/webhookd/bin/webhookd", str(program)))
    found = systemd("systemd-analyze", "verify", copy)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")

    copy.write_text(copy.read_text() + "NoSuchKey=yes\n")  # or this test could not fail
    assert "NoSuchKey" in systemd("systemd-analyze", "verify", copy).stderr


@analyzed
@pytest.mark.parametrize("prefix", ["/opt/webhookd", "/srv/of-ours/env-1.2", "/usr"])
def test_what_is_installed_starts_the_command_that_installs_it(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, prefix)
    text = unit_file("webhookd.service")
    scripts = "/usr/local/bin" if prefix == "/usr" else f"{prefix}/bin"
    assert f"\nExecStart={scripts}/webhookd run\n" in text
    first = "/usr/local" if prefix == "/usr" else prefix
    assert f"\nExecPaths={first} /usr/bin /usr/lib /lib /lib64\n" in text
    if prefix == "/opt/webhookd":
        assert text == UNIT.read_text()
    program = tmp_path / "webhookd"
    program.symlink_to(sys.executable)
    copy = tmp_path / UNIT.name
    copy.write_text(text.replace(f"{scripts}/webhookd", str(program)))
    found = systemd("systemd-analyze", "verify", copy)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def pretend(monkeypatch: pytest.MonkeyPatch, prefix: str, base: str = "/usr") -> None:
    """Let this be a Python of that place, whose virtualenv it is."""
    scripts = "/usr/local/bin" if prefix == "/usr" else f"{prefix}/bin"
    monkeypatch.setattr("webhookd.cli.systemd.sys.prefix", prefix)
    monkeypatch.setattr("webhookd.cli.systemd.sys.base_prefix", base)
    monkeypatch.setattr("webhookd.cli.systemd.sysconfig.get_path", {"scripts": scripts}.get)


def test_a_python_of_another_place_may_be_executed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "/opt/webhookd", "/opt/python-3.13")
    assert "\nExecPaths=/opt/webhookd /opt/python-3.13 /usr/bin /usr/lib" in unit_file("webhookd.service")


@pytest.mark.parametrize(
    ("prefix", "base", "why"),
    [
        ("/home/me/venv", "/usr", "/home/me/venv cannot be seen by the service"),
        ("/opt/webhookd", "/root/.pyenv/versions/3.12.1", "/root/.pyenv/versions/3.12.1 cannot be seen by the service"),
        ("/run/user/0/venv", "/usr", "/run/user/0/venv cannot be seen by the service"),
        ("/opt/100%", "/usr", "/opt/100% has characters that mean something in a unit"),
        ("/opt/a b", "/usr", "/opt/a b has characters that mean something in a unit"),
    ],
)
def test_what_the_service_could_not_run_is_not_installed(
    prefix: str, base: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, prefix, base)
    places = {name: f"{tmp_path}{place}" for name, place in PLACES.items()}
    monkeypatch.setattr("webhookd.cli.systemd.PLACES", places)
    found = CliRunner().invoke(app, ["systemd", "install"])
    assert isinstance(found.exception, WebhookdError)
    assert str(found.exception).startswith(f"{why}")
    assert found.stdout == ""
    shown = CliRunner().invoke(app, ["systemd", "install", "--dry-run"])
    assert str(shown.exception).startswith(f"install would refuse that:\n{why}"), "but it is shown"
    assert all(f"# {place}: new\n" in shown.stdout for place in places.values())
    assert not any(tmp_path.iterdir())


def test_install_writes_what_dry_run_shows_and_only_what_is_not_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "/opt/webhookd")
    places = {name: f"{tmp_path}{place}" for name, place in PLACES.items()}
    monkeypatch.setattr("webhookd.cli.systemd.PLACES", places)
    shown = CliRunner().invoke(app, ["systemd", "install", "--dry-run"])
    assert shown.exit_code == 0
    assert not any(tmp_path.iterdir())
    for name, place in places.items():
        assert f"# {place}: new\n{(FOLDER / name).read_text()}\n" in shown.stdout
    assert "\nNext:\n  systemd-sysusers webhookd.conf\n  systemd-tmpfiles --create webhookd.conf\n" in shown.stdout

    monkeypatch.setattr("webhookd.cli.systemd.os.geteuid", lambda: 1000)
    refused = CliRunner().invoke(app, ["systemd", "install"])
    assert str(refused.exception) == "only root may write below /etc: call it with sudo, or look at it with --dry-run"
    assert not any(tmp_path.iterdir())

    monkeypatch.setattr("webhookd.cli.systemd.os.geteuid", lambda: 0)
    found = CliRunner().invoke(app, ["systemd", "install"])
    assert found.stdout.splitlines()[:3] == [f"wrote {place}" for place in places.values()]
    assert "\n  systemctl daemon-reload\n" in found.stdout
    for name, place in places.items():
        assert Path(place).read_text() == (FOLDER / name).read_text()
        assert Path(place).stat().st_mode & 0o777 == 0o644
    unit = Path(places["webhookd.service"])
    unit.write_text("[Service]\nExecStart=/bin/old\n")
    shown = CliRunner().invoke(app, ["systemd", "install", "--dry-run"])
    first, *others = places.values()
    assert f"# {first}: changed\n--- {first}\n+++ as it would be\n" in shown.stdout
    assert "\n-ExecStart=/bin/old\n" in shown.stdout
    assert "\n+ExecStart=/opt/webhookd/bin/webhookd run\n" in shown.stdout
    assert all(f"# {place}: unchanged\n" in shown.stdout for place in others)
    again = CliRunner().invoke(app, ["systemd", "install"])
    assert again.stdout.splitlines()[:3] == [f"wrote {first}", *(f"unchanged {place}" for place in others)]
    assert unit.read_text() == UNIT.read_text()
    assert [each.name for each in unit.parent.iterdir()] == [unit.name]


def test_what_is_to_be_run_and_is_not_here_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "/opt/webhookd")
    programs, booted = tmp_path / "bin", tmp_path / "booted"
    programs.mkdir()
    monkeypatch.setattr("webhookd.cli.systemd.SEARCHED", str(programs))
    monkeypatch.setattr("webhookd.cli.systemd.BOOTED", booted)

    def told() -> str:
        return CliRunner().invoke(app, ["systemd", "install", "--dry-run"]).stdout.splitlines()[-1]

    assert told() == "not found on this machine: systemd-sysusers, systemd-tmpfiles, systemctl"
    for name in ("systemd-sysusers", "systemd-tmpfiles", "systemctl"):
        (programs / name).touch(0o755)
    assert told().startswith("systemd does not run on this machine")
    booted.mkdir()
    assert told() == "  systemctl enable --now webhookd"


@analyzed
def test_it_is_hardened() -> None:
    found = systemd("systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", UNIT)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stderr == ""


class Manager:
    """The service manager of a daemon, and what it was told.

    It listens all the time, as systemd does: behind ten datagrams that nobody reads the next is lost.
    """

    def __init__(self, process: asyncio.subprocess.Process, told: socket.socket) -> None:
        self.process = process
        self._told = told
        self.heard: list[str] = []

    def listen(self) -> None:
        """Hear what has come."""
        with suppress(BlockingIOError):
            while True:
                self.heard.append(self._told.recv(4096).decode())

    def hears(self, what: str) -> bool:
        """Whether a line that begins with this was heard."""
        return any(line.startswith(what) for each in self.heard for line in each.splitlines())

    async def stop(self) -> None:
        """Stop it in order."""
        self.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(self.process.wait(), HANGS)
        assert self.process.returncode == 0


@asynccontextmanager
async def started(config: Path) -> AsyncIterator[Manager]:
    """`webhookd run`, as systemd starts it."""
    address = str(config.parent / "notify")
    environ = {**PLAIN, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(address)
        told.setblocking(False)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "webhookd", "run", "-c", config, env=environ, stderr=subprocess.DEVNULL
        )
        manager = Manager(process, told)
        loop = asyncio.get_running_loop()
        loop.add_reader(told.fileno(), manager.listen)
        try:
            yield manager
        finally:
            loop.remove_reader(told.fileno())
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.mark.parametrize("away", [False, True])
async def test_a_life_as_systemd_hears_it(dsn: str, receiver: Receiver, tmp_path: Path, away: bool) -> None:
    """READY and WATCHDOG also while the database is away: waiting for it is no reason to be killed."""
    config = configuration(tmp_path, NOWHERE if away else dsn, receiver.url("hook"))
    async with started(config) as manager:
        await until(lambda: manager.hears("READY=1"), "it is ready")
        manager.heard.clear()
        await until(lambda: manager.hears("WATCHDOG=1"), "the watchdog is fed")
        if not away:
            manager.process.send_signal(signal.SIGHUP)
            await until(lambda: manager.hears("RELOADING=1"), "it reloads")
            await until(lambda: manager.hears("READY=1"), "it is ready again")
        await manager.stop()
        if not away:
            await until(lambda: manager.hears("STOPPING=1"), "it stops")


WAITS = {
    "server": "STATUS=waiting for the database: The database does not answer",
    "schema": "STATUS=waiting for the database: the database has no webhookd schema: run `webhookd migrate`",
}


@pytest.mark.parametrize("missing", WAITS)
async def test_ready_says_that_it_waits_for_the_database_and_then_it_delivers(
    dsn: str, empty_dsn: str, receiver: Receiver, tmp_path: Path, missing: str
) -> None:
    async with Proxy(dsn if missing == "server" else empty_dsn) as proxy:
        if missing == "server":
            proxy.cut()
        async with started(configuration(tmp_path, proxy.dsn("postgres"), receiver.url("hook"))) as manager:
            await until(lambda: manager.hears(WAITS[missing]), "it says that it waits")
            assert manager.hears("READY=1")
            if missing == "schema":
                await migrate(proxy.target)
            sql: Sql = await asyncpg.connect(proxy.target)
            event_id = await insert(sql)
            await sql.close()
            proxy.heal()
            await until(lambda: manager.hears("STATUS=delivering to 1 endpoints"), "it says that it delivers")
            await until(lambda: receiver.events("hook") == [event_id], "the event arrives")
            await manager.stop()
