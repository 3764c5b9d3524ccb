"""A Postgres of our own: it keeps its data, is used by one process at a time, and survives how that process ends."""

import asyncio
import os
import signal
import stat
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.conftest import DEBIAN_15
from tests.waiting import until
from webhookd.cli.embedded import postgres
from webhookd.errors import EmbeddedUnavailable, StoreUnavailable
from webhookd.store import wheel
from webhookd.store.database import Database

FAST = {"fsync": "off"}
KILLED = """
import sys, time
from pathlib import Path
from webhookd.cli.embedded import postgres
with postgres(Path(sys.argv[1]), 18, {"fsync": "off"}) as dsn:
    print(dsn, flush=True)
    time.sleep(600)
"""


async def fetch(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


@pytest.mark.parametrize("version", [18, 16])
async def test_data_persists_in_a_directory_with_spaces(tmp_path: Path, version: int) -> None:
    directory = tmp_path / "my data, 100%"
    with postgres(directory, version, FAST) as dsn:
        assert str(await fetch(dsn, "SHOW server_version")).startswith(str(version))
        await fetch(dsn, "CREATE TABLE kept AS SELECT 42 AS n")
    with postgres(directory, version, FAST) as dsn:
        assert await fetch(dsn, "SELECT n FROM kept") == 42


async def test_the_dsn_stays_the_same(open_directory: Path) -> None:
    told: list[str] = []
    directory = open_directory / "my data, 100%".replace(",", "")
    with postgres(directory, 18, FAST, tell=told.append) as dsn:
        assert await fetch(dsn, "SELECT 1") == 1
        assert stat.S_IMODE((directory / "postgres.run").stat().st_mode) == 0o700
    assert not (directory / "postgres.run").exists()
    whose = "It belongs to a `webhookd run --embedded` or `webhookd demo`, and runs as long as that does."
    async with Database(dsn, size=1) as database:
        with pytest.raises(StoreUnavailable, match=rf"No such file or directory\. {whose}$"):
            await database.fetch("SELECT 1")
    (directory / "postgres.run").mkdir()
    (directory / "postgres.run" / ".s.PGSQL.5432").touch()
    with postgres(directory, 18, FAST, tell=told.append) as again:
        assert again == dsn
        assert await fetch(again, "SELECT 1") == 1
    assert told == []


@pytest.mark.parametrize(
    ("name", "why"),
    [("x" * 100, "AF_UNIX path too long"), ("a,b", "its path has a comma or a quote"), ('a"b', "a comma or a quote")],
)
async def test_where_no_socket_can_be_there_is_one_elsewhere(open_directory: Path, name: str, why: str) -> None:
    told: list[str] = []
    with postgres(open_directory / name, 18, FAST, tell=told.append) as dsn:
        assert await fetch(dsn, "SELECT 1") == 1
    assert len(told) == 1
    assert told[0].startswith("the DSN is another one at each start, as there can be no socket in ")
    assert told[0].endswith(why)


@pytest.mark.skipif(os.geteuid() != 0, reason="another account runs the server for root alone")
def test_where_the_account_of_the_server_may_not_go_there_is_no_socket(open_directory: Path) -> None:
    told: list[str] = []
    open_directory.chmod(0o700)
    with postgres(open_directory / "own", 18, FAST, tell=told.append) as dsn:
        assert str(open_directory) not in dsn
    assert "who runs the server, may not pass the directories above it" in told[0]


async def test_settings_apply_and_no_port_is_open(tmp_path: Path) -> None:
    with postgres(tmp_path, 18, {**FAST, "max_connections": "7"}) as dsn:
        assert await fetch(dsn, "SHOW max_connections") == "7"
        assert await fetch(dsn, "SHOW listen_addresses") == ""


async def test_a_second_start_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with postgres(tmp_path, 18, FAST) as dsn:
        with pytest.raises(EmbeddedUnavailable, match="another process uses"), postgres(tmp_path, 18, FAST):
            pass
        assert await fetch(dsn, "SELECT 1") == 1


async def test_an_exception_in_the_block_stops_the_server(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), postgres(tmp_path, 18, FAST) as dsn:
        raise ZeroDivisionError
    assert not (tmp_path / "postgres" / "postmaster.pid").exists()
    with pytest.raises(OSError, match="No such file"):
        await asyncpg.connect(dsn)


async def test_the_server_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    starter = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, tmp_path, stdout=PIPE)
    assert starter.stdout is not None
    dsn = (await starter.stdout.readline()).decode().strip()
    await fetch(dsn, "CREATE TABLE kept AS SELECT 42 AS n")
    starter.kill()
    await starter.wait()
    assert await fetch(dsn, "SELECT 1") == 1  # nobody stopped it
    with postgres(tmp_path, 18, FAST) as again:
        assert await fetch(again, "SELECT n FROM kept") == 42


async def test_a_killed_server_recovers(tmp_path: Path) -> None:
    with postgres(tmp_path, 18, FAST) as dsn:
        await fetch(dsn, "CREATE TABLE kept AS SELECT 42 AS n")
        pid = int((tmp_path / "postgres" / "postmaster.pid").read_text().split()[0])
        backend = await asyncpg.connect(dsn)
        os.kill(pid, signal.SIGKILL)
        await until(backend.is_closed, "the backend notices that its server is gone")
    with postgres(tmp_path, 18, FAST) as dsn:
        assert await fetch(dsn, "SELECT n FROM kept") == 42


async def test_programs_that_only_root_may_enter_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webhookd.cli.embedded._open_to_all", lambda _path: False)
    with postgres(tmp_path, 18, FAST) as dsn:
        assert await fetch(dsn, "SELECT 1") == 1


def test_another_version_is_refused_with_the_reason(tmp_path: Path) -> None:
    with postgres(tmp_path, 16, FAST):
        pass
    with pytest.raises(EmbeddedUnavailable, match="initialized by PostgreSQL version 16"), postgres(tmp_path, 18, FAST):
        pass


def test_a_missing_wheel_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "find_spec", lambda _name: None)
    with (
        pytest.raises(EmbeddedUnavailable, match=r"in the checkout of webhookd run .pip install '\.\[embedded\]'"),
        postgres(tmp_path),
    ):
        pass


def test_a_setting_it_does_not_know_is_shown(tmp_path: Path) -> None:
    with (
        pytest.raises(EmbeddedUnavailable, match='unrecognized configuration parameter "fsink"'),
        postgres(tmp_path, 18, {"fsink": "off"}),
    ):
        pass


@pytest.mark.skipif(not DEBIAN_15.exists(), reason="Debian's PostgreSQL 15 is not installed")
async def test_the_programs_of_another_installation_serve(open_directory: Path) -> None:
    with postgres(open_directory, settings=FAST, bin_directory=DEBIAN_15) as dsn:
        assert str(await fetch(dsn, "SHOW server_version")).startswith("15")


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that any account may enter, unlike tmp_path as root: PostgreSQL 15 needs that."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
