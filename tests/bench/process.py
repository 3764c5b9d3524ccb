"""The daemon as a process that a benchmark can watch: `python -m tests.bench.process CONFIG`; SIGTERM stops it.

With `--careless` it judges no address, believes every answer, and learns nothing of what endpoints can take.
"""

import argparse
import asyncio
import signal
from pathlib import Path

import uvloop
from aiohttp.client_proto import ResponseHandler

from webhookd.cli import logging
from webhookd.config import loader
from webhookd.daemon.daemon import Daemon
from webhookd.egress import connector, protocol, resolver, sender
from webhookd.egress.guard import address_mistake
from webhookd.policy import limiter


async def main(path: Path) -> None:
    """Run until SIGTERM, as `webhookd run` does."""
    config = loader.load(path, {}, may_be_empty=True)
    daemon = Daemon(config, loader.dsn(config.database, path), on_ready=lambda _: print("ready", flush=True))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, daemon.stop)
    await daemon.run()


def be_careless() -> None:
    """Leave out what guards and limits."""
    careless = (
        (connector, address_mistake.__name__, lambda *_: None),
        (resolver, address_mistake.__name__, lambda *_: None),
        (protocol.Protocol, protocol.Protocol.has_unread.__name__, lambda _: False),
        (protocol.Protocol, "data_received", ResponseHandler.data_received),
        (sender, protocol.is_final.__name__, lambda _: True),
        (limiter.Width, limiter.Width.learn.__name__, lambda *_: None),
    )
    for where, name, instead in careless:
        assert hasattr(where, name)
        setattr(where, name, instead)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--careless", action="store_true")
    arguments = parser.parse_args()
    if arguments.careless:
        be_careless()
    logging.configure("info", "console")  # as the service does: a line for each success would be measured, too
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(arguments.config))
