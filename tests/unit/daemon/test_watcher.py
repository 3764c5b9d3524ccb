"""When a change is told, and of which directories; tests/integration has real files."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from webhookd.daemon import watcher

CHANGED, TIMEOUT = {(1, "a.toml")}, set[Any]()


class Scene:
    """What each call of `awatch` tells, one step after the other."""

    def __init__(self, stopped: asyncio.Event, *watches: list[Callable[[], set[Any]]]) -> None:
        self.watches = list(watches)
        self.watched: list[tuple[Path, ...]] = []
        self._stopped = stopped

    async def awatch(self, *directories: Path, **_: Any) -> AsyncIterator[set[Any]]:
        self.watched.append(directories)
        for step in self.watches.pop(0):
            yield step()
        self._stopped.set()


async def test_a_directory_that_is_missing_is_no_change_until_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing, stopped, told = tmp_path / "endpoints.d", asyncio.Event(), list[str]()

    def comes() -> set[Any]:
        missing.mkdir()
        assert told == ["change"]
        return TIMEOUT

    def goes() -> set[Any]:
        missing.rmdir()
        return CHANGED

    scene = Scene(
        stopped, [lambda: TIMEOUT, lambda: CHANGED, lambda: TIMEOUT, comes], [lambda: CHANGED, goes], [lambda: TIMEOUT]
    )
    monkeypatch.setattr(watcher, "awatch", scene.awatch)
    await watcher.watch([tmp_path, missing], lambda: told.append("change"), stopped)
    assert scene.watched == [(tmp_path,), (tmp_path, missing), (tmp_path,)]
    assert len(told) == 1 + 1 + 2 + 1, "a change, it comes, two changes, it has gone"
