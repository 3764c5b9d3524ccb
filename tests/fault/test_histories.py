"""Random histories of a fleet: who is owed something has a sender, limits are shared out, nothing waits for ever.

`--long` plays for ten minutes. A history that ends badly prints its seed: WEBHOOKD_TEST_SEED plays it again, first.
"""

import asyncio
from collections.abc import Iterator
from random import Random

import pytest
import structlog

from tests.conftest import connected, database
from tests.fault.histories import History, install

# A daemon that dies leaves its connections as they are.
pytestmark = pytest.mark.filterwarnings("ignore:.*Connection.__del__:pytest.PytestUnraisableExceptionWarning")
MOVES = 14
AT_ONCE = 3  # histories, each on a database of its own


async def play(server: str, template: str, seed: int) -> None:
    """One history, which has to end well."""
    name = f"history_{seed}"
    async with connected(server) as admin:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    dsn = database(server, name)
    async with connected(dsn) as sql:
        history = History(sql, dsn, Random(seed))
        try:
            async with asyncio.TaskGroup() as group:
                await history.play(MOVES, group)
                await history.judge(group)
                for member in history.live:
                    member.daemon.stop()
        except BaseException as error:
            error.add_note(f"WEBHOOKD_TEST_SEED={seed}\n{history.told()}")
            raise
    async with connected(server) as admin:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def play_for(seconds: float, server: str, template: str, seed: int) -> int:
    """Play one history after the other; how many there were."""
    loop = asyncio.get_running_loop()
    end, played = loop.time() + seconds, 0

    async def player(first: int) -> None:
        nonlocal played
        number = first
        while loop.time() < end:
            await play(server, template, seed + number)
            played += 1
            number += AT_ONCE

    async with asyncio.TaskGroup() as players:
        for first in range(AT_ONCE):
            players.create_task(player(first))
    return played


@pytest.fixture(autouse=True)
def fleet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    install(monkeypatch)
    yield
    structlog.reset_defaults()


@pytest.mark.timeout(300)
async def test_whatever_happens_everything_owed_has_a_sender(server: str, template: str, seed: int) -> None:
    assert await play_for(20.0, server, template, seed)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_whatever_happens_in_ten_minutes(server: str, template: str, seed: int) -> None:
    assert await play_for(600.0, server, template, seed + 1_000_000) > 50
