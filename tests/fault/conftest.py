"""What the fault tests share: a watched database, and a fleet of processes on it."""

import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.fault.fleet import Fleet, fleet, seed_of
from tests.fault.siege import Besiege, Hostile, Siege, configuration, hostile_server
from tests.fault.verdict import audit
from tests.integration.conftest import Receiver, Running, Sql, daemon, receiver

__all__ = ["daemon", "receiver"]  # fixtures of theirs

_sieges = itertools.count(1)


@pytest.fixture
def seed() -> int:
    """What all randomness of the test begins with; it is printed when a test fails."""
    seed = seed_of()
    print(f"WEBHOOKD_TEST_SEED={seed}")  # noqa: T201 - pytest shows it with the failure
    return seed


@pytest.fixture
async def watched(sql: "asyncpg.Connection[asyncpg.Record]") -> "asyncpg.Connection[asyncpg.Record]":
    """A connection to the test's database, which keeps an eye on who writes what."""
    await audit(sql)
    return sql


@pytest.fixture
async def processes(
    tmp_path: Path, dsn: str, watched: "asyncpg.Connection[asyncpg.Record]", seed: int
) -> AsyncIterator[Fleet]:
    """A receiver, and daemons that end with the test."""
    async with fleet(tmp_path, dsn, seed) as made:
        yield made


@pytest.fixture(scope="session")
def hostile() -> Iterator[Hostile]:
    """The hostile server, which has a path for each endpoint of each test."""
    with hostile_server() as server:
        yield server


@pytest.fixture
def besiege(hostile: Hostile, sql: Sql, dsn: str, receiver: Receiver, daemon: Running) -> Besiege:
    """`async with besiege("mute", "ssh", timeout="1s") as siege:` runs a daemon with these attacks for endpoints.

    What is named is a key of each of them, or a table of the configuration.
    """

    @asynccontextmanager
    async def run(*attacks: str, **given: Any) -> AsyncIterator[Siege]:
        seen: Counter[str] = Counter()
        paths, siege = {}, next(_sieges)
        for attack in attacks:
            seen[attack] += 1
            name = f"{attack}-{seen[attack]}" if seen[attack] > 1 else attack
            paths[name] = f"/{siege}/{name}"
        sections = {name: value for name, value in given.items() if isinstance(value, Mapping)}
        keys = {name: value for name, value in given.items() if name not in sections}
        config = configuration(hostile, paths, receiver.url("good"), keys, **sections)
        async with daemon(config):
            yield Siege(sql, dsn, receiver, hostile, paths)

    return run
