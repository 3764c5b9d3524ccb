"""What several commands take, and what they make of it."""

import asyncio
import os
import pwd
import shlex
import signal
import socket
from collections.abc import Callable, Coroutine, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from webhookd.egress.guard import DEV_NETWORKS
from webhookd.errors import ConfigError, WebhookdError
from webhookd.units import duration, quoted

if TYPE_CHECKING:
    from webhookd.config.config import Config

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
Dev = Annotated[
    bool, typer.Option("--dev", help="Allow http and private networks, for a first try; never in production.")
]
DEV: Final = MappingProxyType(
    {
        "WEBHOOKD_EGRESS__ALLOW_HTTP": "true",
        "WEBHOOKD_EGRESS__ALLOW_NETWORKS": ",".join(map(str, DEV_NETWORKS)),
    }
)
DEAD_AFTER: Final = 15.0  # seconds without a heartbeat
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Usage(WebhookdError):
    """An argument that makes no sense."""


def dsn_for(config: Path | None) -> str:
    """Where the database is: by the file named, $WEBHOOKD_DSN, or the usual files; "" for the PG* variables.

    Of the files only [database] of the main one counts: a mistake elsewhere must not take away the commands of an
    incident.
    """
    if config is None and "WEBHOOKD_DSN" in os.environ:
        if not (dsn := os.environ["WEBHOOKD_DSN"].strip()):
            raise ConfigError(["WEBHOOKD_DSN: is empty; write postgresql://… into it, or unset it"])
        return dsn
    from webhookd.config import loader
    from webhookd.config.schema import Database
    from webhookd.store import wheel  # what the whole configuration needs takes a while to import

    try:
        file = loader.find(config, os.environ)
    except ConfigError as error:
        if os.environ.keys() & {"PGHOST", "PGDATABASE", "PGSERVICE"}:
            return ""
        own = "; `webhookd run --embedded DIR` has a database of its own, and prints its DSN" if wheel.folder() else ""
        raise ConfigError(
            [f"{mistake}, or the database with WEBHOOKD_DSN{own}" for mistake in error.mistakes]
        ) from None
    return loader.dsn(loader.section(file, os.environ, Database), file)


def environment(dev: bool) -> Mapping[str, str]:
    """What stands over the files; --dev is a part of it, so that the same files are another configuration with it."""
    return {**os.environ, **DEV} if dev else os.environ


def loaded(
    config: Path | None, dev: bool, exposed: list[Path] | None = None, *, may_be_empty: bool = False
) -> tuple[Path, "Config"]:
    """The main file, and the configuration that it begins, which may have no endpoint if that is said.

    `exposed` gets the files with secrets that every user of this machine can read.
    """
    from webhookd.config import loader

    file = loader.find(config, os.environ)
    return file, loader.load(file, environment(dev), exposed=exposed, may_be_empty=may_be_empty)


def other_hash(file: Path, dev: bool) -> str:
    """The hash of the same files with --dev if they were read without, and the reverse; "" if they are wrong so."""
    from webhookd.config import loader

    try:
        return loader.load(file, environment(not dev)).config_hash
    except ConfigError:
        return ""


def other_way(dev: bool) -> str:
    """The end of a sentence about a daemon that has this other hash."""
    return "without --dev: leave it out here, too" if dev else "with --dev: give it here, too"


def spelled(*words: str, config: Path | None, dev: bool) -> str:
    """A command for a shell that reads the same files in the same way."""
    named = () if config is None else ("-c", str(config))
    return shlex.join(["webhookd", *words, *named, *(["--dev"] if dev else [])])


def past(option: str, text: str) -> datetime:
    """The moment, as a duration before now or as a time with its offset; not one that is to come."""
    now = datetime.now(UTC)
    moment = None
    with suppress(ValueError, OverflowError):
        moment = now - timedelta(seconds=duration(text))
    if moment is None:
        with suppress(ValueError):
            moment = datetime.fromisoformat(text)
    if moment is None or moment.tzinfo is None:
        raise Usage(f'{option}: {quoted(text)} is neither like "12h" nor like "2030-01-31T08:00:00Z"')
    if moment > now:
        raise Usage(f"{option}: {quoted(text)} is to come")
    return moment


def folder(option: str, path: Path) -> None:
    """Raise Usage where something else than a folder stands in its place, or in that of one above it."""
    found = next((each for each in (path, *path.absolute().parents) if os.path.lexists(each)), path)
    if os.path.lexists(found) and not found.is_dir():
        raise Usage(f"{option}: {found} is no folder: name one, which is made if it is not there")


def who() -> str:
    """Who runs this, for `webhookd audit`: the account, or who became it with sudo, and the host."""
    user = os.environ.get("SUDO_USER", "")
    if not user:
        try:
            user = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:  # a container's
            user = f"#{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def ran(main: Coroutine[Any, Any, T]) -> T:
    """What `main` returns, run on the loop we ship."""
    with closing(main):  # it never begins when Ctrl-C comes before the loop
        import uvloop

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
