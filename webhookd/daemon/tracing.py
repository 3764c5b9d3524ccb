"""Spans for each attempt, where the configuration says where to; without, nothing of OpenTelemetry is loaded."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import import_module

from webhookd.engine.dispatch.lanes import Sender
from webhookd.errors import ConfigError


@asynccontextmanager
async def traced(endpoint: str) -> AsyncIterator[Callable[[Sender], Sender]]:
    """What our sender becomes while the block runs, so that it tells the collector there of each attempt.

    ConfigError when OpenTelemetry cannot be set up as its variables say.
    """
    if not endpoint:
        yield lambda sender: sender
        return
    try:  # in a thread, as it takes a good part of a second
        spans = await asyncio.to_thread(lambda: import_module("webhookd.egress.traced").Spans(endpoint))
    except Exception as error:
        raise ConfigError([f"[traces] endpoint: OpenTelemetry cannot be set up: {error}"]) from error
    try:
        yield spans.traced
    finally:
        await spans.close()
