"""The unit that is shipped, in the eyes of systemd itself, and what the daemon says to it."""

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import Receiver
from tests.integration.test_cli import NOWHERE, PLAIN, configuration
from tests.waiting import until

FOLDER = Path(__file__).parents[2] / "systemd"
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
def test_it_is_hardened() -> None:
    found = systemd("systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", UNIT)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stderr == ""


@pytest.mark.parametrize("away", [False, True])
async def test_a_life_as_systemd_hears_it(dsn: str, receiver: Receiver, tmp_path: Path, away: bool) -> None:
    """READY and WATCHDOG also while the database is away: waiting for it is no reason to be killed."""
    address = str(tmp_path / "notify")
    heard: list[str] = []
    config = configuration(tmp_path, NOWHERE if away else dsn, receiver.url("hook"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.setblocking(False)

        def hears(what: str) -> bool:
            while True:
                try:
                    heard.append(manager.recv(4096).decode())
                except BlockingIOError:
                    return any(what in each.splitlines() for each in heard)

        environ = {**PLAIN, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"}
        daemon = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "webhookd", "run", "-c", config, env=environ, stderr=subprocess.DEVNULL
        )
        try:
            await until(lambda: hears("READY=1"), "it is ready")
            heard.clear()
            await until(lambda: hears("WATCHDOG=1"), "the watchdog is fed")
            if not away:
                daemon.send_signal(signal.SIGHUP)
                await until(lambda: hears("RELOADING=1"), "it reloads")
                await until(lambda: hears("READY=1"), "it is ready again")
            daemon.send_signal(signal.SIGTERM)
            await asyncio.wait_for(daemon.wait(), 15)
            assert daemon.returncode == 0
            assert away or hears("STOPPING=1")
        finally:
            if daemon.returncode is None:
                daemon.kill()
                await daemon.wait()
