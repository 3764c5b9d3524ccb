"""The daemon as a process that a benchmark can watch: `python -m tests.bench.process CONFIG`; SIGTERM stops it."""

import asyncio
import signal
import sys
from pathlib import Path

import structlog
import uvloop

from webhookd import loader
from webhookd.daemon import Daemon


async def main(path: Path) -> None:
    """Run until SIGTERM, as `webhookd run` does."""
    config = loader.load(path, {})
    daemon = Daemon(config, loader.dsn(config), on_ready=lambda _: print("ready", flush=True))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, daemon.stop)
    await daemon.run()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(Path(sys.argv[1])))
