"""Every endpoint that does not work is seen to, also when the database is away, or when others fail meanwhile."""

import asyncio
from typing import Any, cast

import pytest

from tests.waiting import until
from webhookd import follower
from webhookd.errors import StoreUnavailable
from webhookd.follower import Dispatcher, Follower, Recorder, Store
from webhookd.pages import Pages
from webhookd.parking import Parking


class Tables:
    """A store that only parks; `during` happens while it does."""

    def __init__(self) -> None:
        self.parked: list[tuple[str, list[int]]] = []
        self.troubles: list[Exception] = []
        self.during: list[Any] = []

    async def version(self) -> int:
        return 0

    async def park(self, breakers: dict[int, tuple[int, float]], why: str, owner: int) -> None:
        if self.during:
            self.during.pop()()
        await asyncio.sleep(0)
        if self.troubles:
            raise self.troubles.pop()
        self.parked.append((why, sorted(breakers)))


class Nobody:
    """A dispatcher without queues."""

    def follow(self, fed: object) -> None:
        pass

    def breaker(self, endpoint_id: int) -> tuple[int, float]:
        return 1, 1.0


@pytest.mark.parametrize("troubles", [[], [StoreUnavailable("gone")]])
async def test_no_trouble_is_forgotten(monkeypatch: pytest.MonkeyPatch, troubles: list[Exception]) -> None:
    monkeypatch.setattr(follower, "AWAY_SECONDS", 0.001)
    store = Tables()
    following = Follower(
        cast(Store, store),
        cast(Pages, None),
        cast(Dispatcher, Nobody()),
        cast(Recorder, None),
        42,
        Parking(0),
        lambda _: None,
        lambda _: False,
        lambda _: 0.0,
        dead_after=15.0,
        look_seconds=0.01,
    )
    store.troubles = list(troubles)
    store.during = [lambda: following.trouble(3, "failing")]
    async with asyncio.TaskGroup() as group:
        group.create_task(following.run())
        following.trouble(1, "failing")
        following.trouble(2, "saturated")

        def all_parked() -> bool:
            return {(why, id_) for why, ids in store.parked for id_ in ids} == {
                ("failing", 1),
                ("saturated", 2),
                ("failing", 3),
            }

        await until(all_parked, "each to be parked")
        following.stop()
