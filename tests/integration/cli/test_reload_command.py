"""Changing files under `webhookd run`, as people, tools and Kubernetes change them (acceptance 46, 47, 63)."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.integration.cli.test_cli import configuration, fails, running, webhookd
from tests.integration.conftest import Sql, eventually
from tests.waiting import until

NAMES = [f"e{n}" for n in range(20)]


def endpoint(name: str, events: str = "*") -> str:
    return f'[endpoint.{name}]\nurl = "http://127.0.0.1:9/{name}"\nevents = ["{events}"]\nsignature = "none"\n'


@asynccontextmanager
async def serving(
    config: Path, *options: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[dict[str, Any]]]]:
    """`webhookd run` from the moment it reads until the end of the block, when it has to stop in order."""
    async with running(config, *options) as (daemon, log):
        await until(lambda: said(log, "reading"), "a start")
        yield daemon, log
        daemon.send_signal(signal.SIGTERM)
    assert daemon.returncode == 0


def said(log: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in log if line["event"] == event]


async def names(sql: Sql) -> set[str]:
    rows = await sql.fetch("SELECT name FROM webhookd.endpoint WHERE removed_at IS NULL")
    return {row["name"] for row in rows}


async def test_a_file_that_is_edited_is_picked_up_and_a_mistake_is_not(dsn: str, sql: Sql, tmp_path: Path) -> None:
    config = configuration(tmp_path, dsn)
    directory = tmp_path / "endpoints.d"
    directory.mkdir()
    async with serving(config) as (_, log):

        async def watched() -> bool:
            # The watch may begin a moment after the start; every write is another chance.
            (directory / "new.toml").write_text(endpoint("new"))
            return "new" in await names(sql)

        await eventually(watched, "the new file")
        (directory / "new.toml").write_text(endpoint("new") + "timeout = \n")
        await until(lambda: said(log, "reload_refused"), "the refusal")
        assert "new.toml:5" in said(log, "reload_refused")[0]["mistakes"][0]
        assert "new" in await names(sql)
        found = webhookd("status", "-c", config, "--json", env={"WEBHOOKD_DSN": dsn})
        assert "new.toml:5" in found.stdout + found.stderr


async def test_sighup_reloads_where_nothing_is_watched(dsn: str, sql: Sql, tmp_path: Path) -> None:
    config = configuration(tmp_path, dsn)
    config.write_text("[daemon]\nwatch = false\n" + config.read_text())
    async with serving(config) as (daemon, log):
        config.write_text(config.read_text() + endpoint("more"))
        for _ in range(200):
            os.kill(daemon.pid, signal.SIGHUP)
        await until(lambda: said(log, "reloaded"), "the reload")
        assert await names(sql) == {"orders", "more"}
        assert len(said(log, "reloaded")) < 20


async def test_a_mounted_volume_changes_by_its_link(dsn: str, sql: Sql, tmp_path: Path) -> None:
    config = configuration(tmp_path, dsn)
    volume = tmp_path / "endpoints.d"
    for version, name in (("..1", "first"), ("..2", "second")):
        (volume / version).mkdir(parents=True)
        (volume / version / "orders.toml").write_text(endpoint(name))
    (volume / "..data").symlink_to("..1")
    (volume / "orders.toml").symlink_to("..data/orders.toml")
    async with serving(config):
        assert await names(sql) == {"orders", "first"}
        turn = 0

        async def swapped() -> bool:
            nonlocal turn
            turn += 1
            (volume / "..tmp").symlink_to("..2")
            (volume / "..tmp").rename(volume / "..data")  # what the kubelet does
            return await names(sql) == {"orders", "second"}

        await eventually(swapped, "the new version")


async def test_webhookd_reload_tells_what_the_daemons_made_of_it(dsn: str, sql: Sql, tmp_path: Path) -> None:
    config = configuration(tmp_path, dsn)
    config.write_text("[daemon]\nwatch = false\n" + config.read_text())
    directory = tmp_path / "endpoints.d"
    directory.mkdir()
    full, half = "".join(map(endpoint, NAMES)), "".join(map(endpoint, NAMES[:10]))
    (directory / "all.toml").write_text(full)

    nobody = webhookd("reload", "-c", config)
    assert (nobody.returncode, nobody.stderr) == (0, "")
    assert "no daemon is running" in nobody.stdout

    async with serving(config):
        (directory / "all.toml").write_text(full + endpoint("more"))
        found = webhookd("reload", "-c", config)
        assert found.returncode == 0, found.stderr
        assert "added    more" in found.stdout
        assert ": reloaded\n" in found.stdout
        assert "more" in await names(sql)

        (directory / "all.toml").write_text(full + "nonsense\n")
        fails(webhookd("reload", "-c", config), 78, "all.toml:81")

        (directory / "all.toml").write_text(half)
        fails(webhookd("reload", "-c", config), 1, "11 of 22 endpoints are gone", "--accept-removals")
        assert "more" in await names(sql)
        found = webhookd("reload", "-c", config, "--accept-removals")
        assert found.returncode == 0, found.stderr
        assert await names(sql) == {"orders", *NAMES[:10]}

        # Emptied: that is no configuration of no endpoints, but a mistake.
        (directory / "all.toml").write_text("")
        config.write_text(config.read_text().split("[endpoint.orders]")[0])
        fails(webhookd("reload", "-c", config, "--accept-removals"), 78, "has no endpoint")
        assert await names(sql) == {"orders", *NAMES[:10]}


async def test_the_log_of_a_refusal_has_the_command_that_reads_the_same_files_in_the_same_way(
    dsn: str, sql: Sql, tmp_path: Path
) -> None:
    config = configuration(tmp_path, dsn)
    config.write_text("[daemon]\nwatch = false\n" + config.read_text())
    (tmp_path / "endpoints.d").mkdir()
    others = tmp_path / "endpoints.d" / "all.toml"
    others.write_text("\n".join(map(endpoint, NAMES)))
    async with serving(config, "--dev") as (daemon, log):
        others.unlink()
        daemon.send_signal(signal.SIGHUP)
        (refusal,) = await until(lambda: said(log, "reload_refused"), "the refusal")
        command = f"webhookd reload --accept-removals -c {config} --dev"
        assert refusal["mistakes"][0].endswith(f"; if that is meant, run `{command}`")
        found = webhookd(*command.split()[1:])
        assert found.returncode == 0, found.stderr
        assert await names(sql) == {"orders"}


async def test_what_another_daemon_has_in_its_files_is_kept_and_by_whom_is_told(
    dsn: str, sql: Sql, tmp_path: Path
) -> None:
    here, there = (tmp_path / name for name in ("here", "there"))
    for folder in (here, there):
        folder.mkdir()
        config = configuration(folder, dsn)
        config.write_text("[daemon]\nwatch = false\n" + config.read_text() + endpoint("goes"))
    mine, theirs = here / "webhookd.toml", there / "webhookd.toml"
    async with serving(mine), serving(theirs):
        other = await sql.fetchval("SELECT max(id) FROM webhookd.daemon")
        before = mine.read_text()
        mine.write_text(before.replace(endpoint("goes"), ""))
        found = webhookd("reload", "-c", mine)
        assert found.returncode == 0, found.stderr
        assert "removed  goes\n" in found.stdout
        (line,) = [line for line in found.stdout.splitlines() if line.startswith("kept by others: ")]
        assert line.startswith(f"kept by others: goes, which daemon {other} on ")
        assert line.endswith(" still has in the files")
        assert "goes" in await names(sql)
        document = json.loads(webhookd("reload", "-c", mine, "--json").stdout)
        assert document["kept_by_others"] == [{"endpoint": "goes", "daemons": [other]}]

        theirs.write_text(theirs.read_text().replace(endpoint("goes"), ""))
        found = webhookd("reload", "-c", mine)
        assert "kept by others" not in found.stdout
        assert await names(sql) == {"orders"}
