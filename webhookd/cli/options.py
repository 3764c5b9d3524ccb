"""What several commands take, and what they make of it."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer
import uvloop

from webhookd import loader
from webhookd.errors import ConfigError, WebhookdError
from webhookd.shapes import Database

T = TypeVar("T")
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "-c",
        "--config",
        metavar="FILE",
        help="The main file; else $WEBHOOKD_CONFIG, /etc/webhookd/webhookd.toml or config/webhookd.toml.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Usage(WebhookdError):
    """An argument that makes no sense."""


def dsn_for(config: Path | None) -> str:
    """Where the database is: by the file named, $WEBHOOKD_DSN, or the usual files; "" for the PG* variables.

    Of the files only [database] of the main one counts: a mistake elsewhere must not take away the commands of an
    incident.
    """
    if config is None and (dsn := os.environ.get("WEBHOOKD_DSN")):
        return dsn
    try:
        file = loader.find(config, os.environ)
    except ConfigError as error:
        if os.environ.keys() & {"PGHOST", "PGDATABASE", "PGSERVICE"}:
            return ""
        raise ConfigError([f"{mistake}, or the database with WEBHOOKD_DSN" for mistake in error.mistakes]) from None
    return loader.dsn(loader.section(file, os.environ, Database))


def ran(main: Coroutine[Any, Any, T]) -> T:
    """What `main` returns, run on the loop we ship."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def on_stop_signals(stop: Callable[[], object], stop_at_once: Callable[[], object]) -> None:
    """Call `stop` at the first SIGTERM or SIGINT and `stop_at_once` at any further one."""
    loop = asyncio.get_running_loop()
    asked = False

    def signalled() -> None:
        nonlocal asked
        (stop_at_once if asked else stop)()
        asked = True

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, signalled)
