"""The demo, as a stranger meets it."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest

from tests.waiting import HANGS, until

COMMAND = (sys.executable, "-m", "webhookd", "demo", "--directory")
PLAIN = {key: text for key, text in os.environ.items() if not key.startswith(("WEBHOOKD_", "PG"))}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for the demo."""
    with tempfile.TemporaryDirectory(prefix="webhookd-demo-") as name:
        Path(name).chmod(0o755)
        yield Path(name) / "here"


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, folder, *arguments], capture_output=True, text=True, timeout=90, check=False, env=PLAIN
    )


def accounted(found: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The summary, in which everything has to add up."""
    assert (found.returncode, found.stderr) == (0, "")
    summary: dict[str, Any] = json.loads(found.stdout)
    assert summary["unaccounted"] == 0
    assert set(summary["endpoints"]) == {"healthy", "flaky", "slow"}
    for line in summary["endpoints"].values():
        states = sum(line[state] for state in ("delivered", "retrying", "exhausted", "rejected", "waiting"))
        assert states == line["owed"] > 0
        assert line["received"] >= line["delivered"]
        assert line["unverified"] == line["unaccounted"] == 0
    healthy = summary["endpoints"]["healthy"]
    assert healthy["owed"] == healthy["delivered"] == healthy["received"] == summary["events"]
    assert healthy["duplicates"] == healthy["failed_attempts"] == 0
    return summary


def servers(folder: Path) -> list[psutil.Process]:
    """The Postgres processes that work in the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


async def line_with(demo: Process, what: str) -> str:
    assert demo.stdout is not None
    while line := (await demo.stdout.readline()).decode():
        if what in line:
            return line
    raise AssertionError(f"the demo ended without saying {what!r}")


def test_every_event_is_accounted_for_and_the_folder_serves_again(folder: Path) -> None:
    first = accounted(demo(folder, "--seconds", "5", "--json"))
    assert 5 <= first["events"] <= 25  # fewer on a machine that has other work
    second = accounted(demo(folder, "--seconds", "1", "--rate", "50", "--json"))
    assert 5 <= second["events"] <= 60
    assert second["endpoints"]["flaky"]["failed_attempts"] > 0
    assert (folder / "webhookd.toml").exists()
    assert (folder / "endpoints.d" / "demo.toml").exists()
    assert "stopped" in (folder / "webhookd.log").read_text()
    assert not servers(folder)


def test_what_it_prints_fits_80_columns_and_explains_its_words_and_its_files_are_in_order(folder: Path) -> None:
    found = subprocess.run(
        [*COMMAND, folder, "--seconds", "3"],
        capture_output=True, text=True, timeout=90, check=True, env={**PLAIN, "COLUMNS": "80"},
    )  # fmt: skip
    assert [line for line in found.stdout.splitlines() if len(line) > 80 and "postgresql://" not in line] == []
    checked = subprocess.run(
        [sys.executable, "-m", "webhookd", "check", "--offline", "-c", folder / "webhookd.toml"],
        capture_output=True, text=True, timeout=90, check=True, env=PLAIN,
    )  # fmt: skip
    assert re.fullmatch(r".*: no mistake; 3 endpoints; configuration [0-9a-f]{16}\n", checked.stdout)
    assert re.search(r"\nowed +the deliveries that \d+ events meant for an endpoint\n", found.stdout)
    assert re.search(r"\n\d+ events; every delivery is accounted for(; \d+ still owed)?\.\n", found.stdout)


def test_a_file_is_no_folder_for_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "below"):
        found = demo(place)
        assert (found.returncode, found.stdout) == (2, "")
        wanted = f"{file} is no folder: name one, which is made if it is not there\n"
        assert found.stderr == f"webhookd: --directory: {wanted}"
        run = [sys.executable, "-m", "webhookd", "run", "--dev", "--embedded", str(place)]
        again = subprocess.run(run, capture_output=True, text=True, check=False, env=PLAIN, timeout=60)
        assert (again.returncode, again.stderr) == (2, f"webhookd: --embedded: {wanted}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_cleanly(folder: Path, number: signal.Signals) -> None:
    running = await asyncio.create_subprocess_exec(*COMMAND, folder, stdout=PIPE, stderr=PIPE, env=PLAIN)
    await line_with(running, "INSERT INTO webhookd.outbox")
    await line_with(running, "delivered")
    assert servers(folder)
    running.send_signal(number)
    shown, complaints = await asyncio.wait_for(running.communicate(), HANGS)
    assert (running.returncode, complaints) == (0, b"")
    assert b"every delivery is accounted for" in shown
    assert not servers(folder)


async def test_what_it_prints_can_be_used_from_another_terminal(folder: Path) -> None:
    running = await asyncio.create_subprocess_exec(*COMMAND, folder, "--rate", "0.1", stdout=PIPE, env=PLAIN)
    command = "".join([await line_with(running, "psql "), *[await line_with(running, "") for _ in range(3)]])
    assert "INSERT INTO webhookd.outbox" in command
    second = await asyncio.to_thread(demo, folder, "--json")
    assert (second.returncode, second.stdout) == (69, "")
    assert second.stderr.count("\n") == 1
    assert "another process uses" in second.stderr

    sent = await asyncio.create_subprocess_shell(command, stdout=PIPE, stderr=PIPE)
    assert await sent.communicate() == (b"INSERT 0 1\n", b"")

    block = await line_with(running, "TOKEN=")
    while "Ctrl-C" not in (line := await line_with(running, "")):
        block += line
    names, curl, python = block.strip().split("\n\n")
    assert curl.lstrip().startswith("curl $API/app/default/msg")
    posted = await asyncio.create_subprocess_shell(f"{names}\n{python}", stdout=PIPE, stderr=PIPE)
    answer, complaints = await posted.communicate()
    assert (complaints, json.loads(answer)["payload"]) == (b"", {"hello": "world"})

    address = names.split("API=")[1].split()[0]
    token = names.split("TOKEN=")[1].split()[0]
    hook = json.dumps({"url": "http://127.0.0.1:9/", "disabled": True}).encode()
    asked = Request(f"{address}/app/default/endpoint", hook, {"authorization": f"Bearer {token}"})  # noqa: S310
    assert json.loads((await asyncio.to_thread(urlopen, asked)).read())["id"].startswith("ep_")

    def arrived() -> bool:
        status = [sys.executable, "-m", "webhookd", "status", "--json", "-c", str(folder / "webhookd.toml")]
        shown = subprocess.run(status, capture_output=True, check=True, env=PLAIN)
        delivered = {each["name"]: each["last_minute"]["delivered"] for each in json.loads(shown.stdout)["endpoints"]}
        return bool(delivered["healthy"] >= 3 and delivered["flaky"] >= 3)

    await until(arrived, "the event of the other terminal is delivered")
    running.send_signal(signal.SIGINT)
    await running.communicate()
    assert running.returncode == 0


async def test_a_reader_that_goes_away_ends_it(folder: Path) -> None:
    reading, writing = os.pipe()
    running = await asyncio.create_subprocess_exec(*COMMAND, folder, stdout=writing, stderr=PIPE, env=PLAIN)
    os.close(writing)
    await asyncio.to_thread(os.read, reading, 1)
    os.close(reading)
    _, complaints = await asyncio.wait_for(running.communicate(), HANGS)
    assert b"Traceback" not in complaints
    assert not servers(folder)


def test_a_configuration_of_somebody_else_is_not_overwritten(folder: Path) -> None:
    folder.mkdir()
    (folder / "webhookd.toml").write_text("# mine\n")
    found = demo(folder, "--seconds", "1")
    assert found.returncode == 1
    assert found.stderr == f"webhookd: {folder}/webhookd.toml is not of a demo: choose another --directory\n"
    assert (folder / "webhookd.toml").read_text() == "# mine\n"
    assert not servers(folder)


def test_what_the_receiver_never_saw_is_unaccounted_for(folder: Path) -> None:
    blind = (
        "from webhookd.cli.demo.accounts import Receipts\n"
        "from webhookd.cli.main import main\n"
        "Receipts.add = lambda *_: None\n"
        "main()"
    )
    arguments = ["demo", "--directory", str(folder), "--seconds", "1", "--json"]
    found = subprocess.run([sys.executable, "-c", blind, *arguments], capture_output=True, check=False, env=PLAIN)
    summary = json.loads(found.stdout)
    assert found.returncode == 1
    assert summary["unaccounted"] == sum(line["delivered"] for line in summary["endpoints"].values()) > 0
