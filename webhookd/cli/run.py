"""`webhookd run`: the daemon in the foreground, as systemd wants it."""

import os

import structlog
import typer

from webhookd import loader
from webhookd.cli import logging
from webhookd.cli.options import ConfigFile, on_stop_signals, ran
from webhookd.config import Config
from webhookd.daemon import Daemon
from webhookd.errors import SchemaMismatch

log = structlog.get_logger("webhookd.run")


def run(config: ConfigFile = None) -> None:
    """Deliver events until SIGTERM or Ctrl-C."""
    loaded = loader.load(loader.find(config, os.environ), os.environ)
    logging.configure(loaded.log.level, loaded.log.format)
    try:
        ran(_deliver(loaded))
    except SchemaMismatch:
        raise  # no migration mends it: a configuration error, which systemd is told not to repeat
    except Exception:
        log.exception("died")
        raise typer.Exit(1) from None


async def _deliver(config: Config) -> None:
    daemon = Daemon(config, loader.dsn(config) or None, config.database.direct_dsn.get_secret_value() or None)
    on_stop_signals(daemon.stop, _leave)
    await daemon.run()


def _leave() -> None:
    # Not by cancelling: a database or a name server that hangs must not keep us. It is as harmless as a kill -9.
    log.warning("stopped_at_once")
    os._exit(1)
