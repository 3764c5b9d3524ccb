"""A command line at the database of a test, which has endpoints."""

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.integration.conftest import Sql
from tests.waiting import HANGS
from webhookd.cli.main import app


class Prompt:
    """A command line at the database of the test."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    async def __call__(self, *arguments: object, code: int = 0) -> str:
        given = list(map(str, arguments))
        found = await asyncio.to_thread(CliRunner().invoke, app, given, env={"WEBHOOKD_DSN": self._dsn})
        assert found.exit_code == code, found.exception or found.output
        return found.stdout if code == 0 else str(found.exception)

    async def json(self, *arguments: object) -> Any:
        return json.loads(await self(*arguments, "--json"))

    async def states(self) -> dict[str, str]:
        listed = (await self.json("endpoints", "list"))["endpoints"]
        return {f"{each['tenant']}/{each['name']}".lstrip("/"): each["state"] for each in listed}


class Shell(Prompt):
    """The same in a process of its own, for tests in whose process a daemon writes a log."""

    async def __call__(self, *arguments: object, code: int = 0, output: bool = False) -> str:
        """What it prints; or of a mistake the sentence, unless what it prints all the same is asked for."""
        run = subprocess.run
        found = await asyncio.to_thread(
            run,
            [sys.executable, "-m", "webhookd", *map(str, arguments)],
            env={**os.environ, "WEBHOOKD_DSN": self._dsn},
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=HANGS,
            check=False,
        )
        assert found.returncode == code, found.stderr or found.stdout
        assert "Traceback" not in found.stderr
        return found.stdout if code == 0 or output else found.stderr.removeprefix("webhookd: ").rstrip("\n")


@pytest.fixture
def shell(dsn: str) -> Shell:
    """A command line at a database that has nothing yet."""
    return Shell(dsn)


@pytest.fixture
async def prompt(dsn: str, sql: Sql) -> Prompt:
    """With four endpoints of two tenants at two hosts."""
    for tenant, name, url in (
        ("", "orders", "https://hooks.example.com/a"),
        ("", "stock", "https://hooks.example.com:8443/b"),
        ("acme", "orders", "https://other.example.com/c"),
        ("acme", "mail", "https://HOOKS.example.com/d"),
    ):
        spec = {"tenant": tenant, "name": name, "url": url, "events": ["order.*"], "max_in_flight": 10, "rate_limit": 0}
        await sql.execute(
            "INSERT INTO webhookd.endpoint (tenant, name, source, spec) VALUES ($1, $2, 'file', $3)",
            tenant,
            name,
            json.dumps(spec),
        )
    return Prompt(dsn)
