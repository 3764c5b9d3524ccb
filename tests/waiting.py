"""Waiting for a condition, never for a duration."""

import inspect
import time
from asyncio import sleep
from collections.abc import Awaitable, Callable
from typing import TypeVar

# Seconds after which what has not happened never will, also on a machine whose CPUs have other work: a test that waits
# so long for one thing has failed. It asserts nothing about speed, which belongs to the benchmark.
HANGS = 90.0

T = TypeVar("T")


async def until(
    condition: Callable[[], T | Awaitable[T]], what: str, timeout: float = HANGS, interval: float = 0.01
) -> T:
    """Wait until `condition` gives something true, and return that; fail with `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        found = condition()
        value = await found if inspect.isawaitable(found) else found
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout:g} s: {what} (last seen: {value!r})")
        await sleep(interval)
