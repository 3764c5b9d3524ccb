"""`webhookd run`: the daemon in the foreground, as systemd wants it."""

import asyncio
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from logging import shutdown
from pathlib import Path
from typing import Annotated, Final

import structlog
import typer

from webhookd.cli import logging
from webhookd.cli.embedded import postgres
from webhookd.cli.options import DEV, STOP_SIGNALS, ConfigFile, Dev, folder, on_stop_signals, ran, spelled
from webhookd.cli.tables import say, tell
from webhookd.config import loader
from webhookd.config.config import Config
from webhookd.daemon.daemon import Daemon
from webhookd.daemon.notify import Notifier
from webhookd.errors import ConfigError, DsnUnusable, OtherPlace, SchemaMismatch
from webhookd.store.dial import ignored, target
from webhookd.store.migrations import migrate

log = structlog.get_logger("webhookd.run")


DATABASE: Final = ("WEBHOOKD_DSN", "WEBHOOKD_DATABASE__DSN", "WEBHOOKD_DATABASE__DSN_FILE")
SYSTEMD: Final = ("INVOCATION_ID", "NOTIFY_SOCKET")
OPEN_FILES: Final = 65_536  # as the unit for systemd has it


def run(
    config: ConfigFile = None,
    dev: Dev = False,
    embedded: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep a Postgres of its own in DIR, migrate it, and run on it.")
    ] = None,
) -> None:
    """Deliver events until SIGTERM or Ctrl-C."""
    if embedded is not None:
        folder("--embedded", embedded)
    if dev:
        _allow_all()
    if embedded is None:
        _run(config, dev)
    else:
        _load(loader.find(config, os.environ))  # a mistake is told before Postgres is started
        with _postgres(embedded):
            _run(config, dev)


def _allow_all() -> None:
    if under := [name for name in SYSTEMD if name in os.environ]:
        raise ConfigError(
            [
                f"run --dev is not for services, and systemd has started this one ({under[0]} is set): allow what you "
                f"need under [egress]; if this is a terminal, unset {' and '.join(under)} first"
            ]
        )
    os.environ.update(DEV)  # not only for the first load: a reload must find it, too
    tell(
        "webhookd: --dev ALLOWS HTTP AND PRIVATE NETWORKS to every endpoint, whatever [egress] says; "
        "for a first try on your own machine only; check, reload, explain and emit take --dev, too",
        err=True,
    )


@contextmanager
def _postgres(directory: Path) -> Iterator[None]:
    """A migrated Postgres of our own for the block, and for every load in it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the loop takes over: it must not be left behind
    try:
        with postgres(directory, tell=lambda why: tell(f"webhookd: {why}", err=True)) as dsn:
            try:
                ran(migrate(dsn))
                for name in DATABASE:
                    os.environ.pop(name, None)
                os.environ.update(WEBHOOKD_DSN=dsn, WEBHOOKD_DATABASE__DIRECT_DSN=dsn)
                tell(f"PostgreSQL runs in {directory}; its DSN, to be quoted in a shell:")
                say(dsn)
                yield
            finally:
                for number in STOP_SIGNALS:
                    signal.signal(number, signal.SIG_IGN)  # what is left takes moments
    except KeyboardInterrupt:
        raise typer.Exit(1) from None


def _run(config: Path | None, dev: bool) -> None:
    file = loader.find(config, os.environ)
    loaded = _load(file)
    logging.configure(loaded.log.level, loaded.log.format)
    log.info("starting", file=str(file))
    _raise_open_files()
    try:
        ran(_deliver(file, loaded, spelled("reload", "--accept-removals", config=config, dev=dev)))
    except (ConfigError, DsnUnusable, SchemaMismatch, OtherPlace):
        raise  # a new start does not mend it: a configuration error, which systemd is told not to repeat
    except Exception:
        log.exception("died")
        raise typer.Exit(1) from None


def _load(file: Path) -> Config:
    return loader.load(file, os.environ, may_be_empty=True)  # the database knows whether one would be missed


def _raise_open_files() -> None:
    """Attempts and idle connections are files; the limit that shells start with is from the days of select."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _deliver(file: Path, config: Config, accept: str) -> None:
    watched = config.daemon.watch
    if watched is None:
        watched = "NOTIFY_SOCKET" not in os.environ

    def where() -> str:
        return loader.dsn(config.database, file)

    direct = loader.direct_dsn(config.database, file) or None
    for dsn in (None if config.database.dsn_file else where, direct):
        if dsn is not None:
            target(dsn)  # a mistake that no waiting mends, as it would in a file that is written anew
    daemon = Daemon(
        config,
        where,
        direct,
        load=lambda: _load(file),
        watch=loader.directories(file, os.environ) if watched else (),
        accept=accept,
        notifier=Notifier.from_environ(os.environ),
        log_lines_dropped=logging.lines_dropped,
    )
    on_stop_signals(daemon.stop, _leave)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, daemon.reload)
    for sentence in ignored(where):
        log.warning("dsn_parameter_ignored", reason=sentence)
    await daemon.run()


def _leave() -> None:
    # Not by cancelling: a database or a name server that hangs must not keep us. It is as harmless as a kill -9.
    log.warning("stopped_at_once")
    shutdown()  # the log, which waits for a second at most
    os._exit(1)
