"""`webhookd token`: made, listed, revoked."""

import json
import os
import subprocess
import sys

import pytest

from tests.integration.conftest import Sql
from webhookd.store.tokens import hash_of


def webhookd(dsn: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "WEBHOOKD_DSN": dsn}
    command = [sys.executable, "-m", "webhookd", "token", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)


async def test_one_is_made_listed_and_revoked(dsn: str, sql: Sql) -> None:
    made = webhookd(dsn, "new", "admin", "backend", "--expires", "90d")
    token = made.stdout.strip()
    assert (made.returncode, token.startswith("whtk_")) == (0, True)
    assert token not in made.stderr
    row = await sql.fetchrow("SELECT * FROM webhookd.token")
    assert row is not None
    assert (row["hash"], row["role"], row["name"]) == (hash_of(token), "admin", "backend")
    assert row["id"] in made.stderr
    assert (row["expires_at"] - row["created_at"]).days == 90
    (listed,) = json.loads(webhookd(dsn, "list", "--json").stdout)["tokens"]
    assert (listed["id"], listed["role"], listed["tenant"]) == (row["id"], "admin", None)
    assert "backend" in webhookd(dsn, "list").stdout
    assert webhookd(dsn, "revoke", row["id"]).returncode == 0
    again = webhookd(dsn, "revoke", row["id"])
    assert (again.returncode, "no token" in again.stderr) == (1, True)
    assert json.loads(webhookd(dsn, "list", "--json").stdout)["tokens"] == []
    assert len(json.loads(webhookd(dsn, "list", "--json", "--all").stdout)["tokens"]) == 1
    deeds = [row["action"] for row in await sql.fetch("SELECT action FROM webhookd.audit ORDER BY id")]
    assert deeds == ["create token", "revoke token"]


async def test_a_portals_is_of_an_application(dsn: str, sql: Sql) -> None:
    made = webhookd(dsn, "new", "portal", "p", "--tenant", "default", "--capability", "ViewBase", "--json")
    assert made.returncode == 0
    assert await sql.fetchval("SELECT tenant FROM webhookd.token") == "app_" + "0" * 27


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["king", "a"], "ROLE"),
        (["admin", " "], "NAME"),
        (["portal", "a"], "--tenant"),
        (["admin", "a", "--capability", "ViewBase"], "--capability"),
        (["portal", "a", "--tenant", "default", "--capability", "All"], "--capability"),
        (["admin", "a", "--expires", "soon"], "--expires"),
        (["read", "a", "--tenant", "nobody"], "no application"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_sentence(dsn: str, arguments: list[str], sentence: str) -> None:
    found = webhookd(dsn, "new", *arguments)
    assert found.returncode in (1, 2)
    assert sentence in found.stderr
    assert "Traceback" not in found.stderr
