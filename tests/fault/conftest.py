"""What the fault tests share: a watched database, and a fleet of processes on it."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from tests.fault.fleet import Fleet, fleet, seed_of
from tests.fault.verdict import audit


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
