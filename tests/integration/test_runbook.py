"""The runbook's commands are run as they stand, on a deployment in which something is wrong, and print what it says."""

import asyncio
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.integration.conftest import QUICK, Receiver, Sql, eventually, insert, settled
from tests.integration.store.test_place import ELSEWHERE
from tests.planted import SECRET
from webhookd.config import loader
from webhookd.daemon.daemon import Daemon

PAGE: Final = (Path(__file__).parents[2] / "docs/runbook.md").read_text()
SECTIONS: Final = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
BLOCK: Final = re.compile(r"^```(console|sql)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MAIN: Final = """
[egress]
allow_http = true
allow_networks = ["127.0.0.0/8"]

[metrics]
listen = "127.0.0.1:0"

[encryption]
keys = [{ id = "2026", file = "webhookd.key" }]
"""
ENDPOINT: Final = """
[endpoint.{name}]
url = "{url}"
tenant = "{tenant}"
events = ["{events}"]
secret = "{secret}"
"""


class Step(NamedTuple):
    """A command, and what the page says it prints."""

    command: str
    printed: str

    def fits(self, output: str) -> bool:
        """Whether that is printed: a line of … is any lines, and … in a line any text.

        How wide a column is depends on how many milliseconds something took, so several blanks are as good as one.
        """
        pattern = "".join(
            r"(?:.*\n)*?"
            if line == "…"
            else re.escape(line).replace(r"\ …\ ", r"\ (?:.*\ )?").replace("…", ".*") + r"\n"
            for line in _narrow(self.printed).splitlines()
        )
        return bool(re.fullmatch(pattern, _narrow(output) + "\n"))


def _narrow(text: str) -> str:
    return "\n".join(re.sub(" +", " ", line).rstrip() for line in text.strip().splitlines())


def steps(section: str) -> list[Step]:
    found = []
    for kind, text in BLOCK.findall(SECTIONS[section]):
        if kind == "sql":
            found.append(Step(text, "…"))
            continue
        for command, printed in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
            found.append(Step(command, printed))
    return found


class World(NamedTuple):
    """A deployment: its files, and a daemon that may have been stopped."""

    files: Path
    daemon: Daemon
    running: asyncio.Task[None]
    environ: dict[str, str]


@pytest.fixture
async def world(
    dsn: str, sql: Sql, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    """`orders` is well, acme's `hook` fails, and `old` has said that it is gone; one delivery of each kind is there."""
    receiver.answers("hook", 500)
    receiver.answers("old", 410)
    (tmp_path / "endpoints.d").mkdir(mode=0o700)
    (tmp_path / "webhookd.toml").write_text(MAIN)
    (tmp_path / "webhookd.key").write_text("k" * 43 + "=\n")
    for name, tenant, events in (("orders", "", "order.*"), ("hook", "acme", "invoice.*"), ("old", "", "gone")):
        table = ENDPOINT.format(name=name, tenant=tenant, events=events, url=receiver.url(name), secret=SECRET)
        (tmp_path / "endpoints.d" / f"{name}.toml").write_text(table)
    for file in (tmp_path / "webhookd.toml", tmp_path / "webhookd.key", *(tmp_path / "endpoints.d").iterdir()):
        file.chmod(0o600)
    environ = {"WEBHOOKD_DSN": dsn, "WEBHOOKD_CONFIG": str(tmp_path / "webhookd.toml")}
    main = tmp_path / "webhookd.toml"

    def load() -> Any:
        return loader.load(main, environ)

    ready = asyncio.Event()
    made = Daemon(load(), dsn, load=load, intervals=QUICK, on_ready=lambda _: ready.set())
    async with asyncio.TaskGroup() as group:
        running = group.create_task(made.run())
        await ready.wait()
        await insert(sql, event_id="evt_good", type="order.created")
        await insert(sql, event_id="evt_bad", type="invoice.paid", tenant="acme")
        for _ in range(3):
            await insert(sql, type="gone")
        await settled(sql, "evt_good", {"orders": "delivered"})

        async def wrong() -> bool:
            await insert(sql, type="invoice.paid", tenant="acme")
            row = await sql.fetchrow("SELECT failing_endpoints, disabled_endpoints FROM webhookd.health")
            return row is not None and tuple(row) == (1, 1)

        await eventually(wrong, "what is wrong")
        await sql.execute(
            "UPDATE webhookd.backlog SET state = 'exhausted', due = now() "
            "WHERE outbox_id = (SELECT id FROM webhookd.outbox WHERE event_id = 'evt_bad')"
        )
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        yield World(tmp_path, made, running, {**os.environ, **environ, "PATH": path, "COLUMNS": "120"})
        made.stop()


async def run(world: World, command: str) -> tuple[int, str]:
    """The exit code and all that is printed."""
    command = command.replace("http://127.0.0.1:9464", world.daemon.metrics_url)
    made = await asyncio.create_subprocess_shell(
        command, cwd=world.files, env=world.environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(90):
        output, _ = await made.communicate()
    return made.returncode or 0, output.decode()


@pytest.mark.parametrize("section", SECTIONS)
async def test_each_command_prints_what_the_page_says(section: str, sql: Sql, receiver: Receiver, world: World) -> None:
    if section == "A restore":
        world.daemon.stop()
        await world.running
        await sql.execute(ELSEWHERE)
    assert shutil.which("curl"), "the page asks with curl"
    for step in steps(section):
        if step.printed == "…":
            assert await sql.fetch(step.command) is not None
            continue
        code, output = await run(world, step.command)
        assert "Traceback" not in output
        assert step.fits(output), f"$ {step.command} (exit {code})\n{output}"


def test_the_page_begins_with_a_list_of_its_symptoms() -> None:
    linked = re.findall(r"^\|[^|]*\| \[([^\]]+)\]\(#([a-z-]+)\) \|$", PAGE, re.MULTILINE)
    assert [title for title, _ in linked] == list(SECTIONS)
    assert [anchor for _, anchor in linked] == [title.lower().replace(" ", "-") for title in SECTIONS]


@pytest.mark.parametrize(
    ("printed", "output", "fits"),
    [
        ("a\n…\nd", "a\nb\nc\nd", True),
        ("a\n…\nd", "a\nd", True),
        ("a … c", "a b c", True),
        ("a  …  c", "a   c", True),
        ("a … c", "ab c", False),
        ("a … c", "a b\nc", False),
        ("a\n…", "a\nb\nc", True),
        ("…", "anything\nat all", True),
        ("a", "a\nb", False),
        ("(.*)", "x", False),
    ],
)
def test_what_fits(printed: str, output: str, fits: bool) -> None:
    assert Step("", printed).fits(output) is fits
