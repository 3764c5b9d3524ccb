"""The `webhookd` command: a module per group of commands; an expected mistake is one message and an exit code.

Each module is imported when its command is asked for: most commands need little of what the daemon needs.
"""

import io
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, TextIO, cast

import typer
from typer.core import TyperGroup

from webhookd import __version__
from webhookd.cli.options import Usage
from webhookd.errors import (
    ConfigError,
    DsnUnusable,
    EmbeddedUnavailable,
    OtherPlace,
    SchemaMismatch,
    StoreUnavailable,
    WebhookdError,
)

NO, USAGE, DATABASE_AWAY, CONFIGURATION = 1, 2, 69, 78  # the last two are EX_UNAVAILABLE and EX_CONFIG of sysexits.h

COMMANDS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "demo": ("demo.demo", "demo"),
        "init": ("init", "init"),
        "check": ("check", "check"),
        "run": ("run", "run"),
        "migrate": ("database", "migrate"),
        "grants": ("database", "grants"),
        "maintain": ("database", "maintain"),
        "erase": ("erase", "erase"),
        "emit": ("emit", "emit"),
        "explain": ("explain", "explain"),
        "listen": ("listen.listen", "listen"),
        "status": ("status", "status"),
        "events": ("listings", "events"),
        "deliveries": ("listings", "deliveries"),
        "attempts": ("listings", "attempts"),
        "tail": ("tail", "tail"),
        "poll": ("poll", "poll"),
        "audit": ("audit", "audit"),
        "resend": ("shots", "resend"),
        "test": ("shots", "send_example"),
        "discard": ("discard", "discard"),
        "replay": ("replays", "replay"),
        "replays": ("replays", "app"),
        "pause": ("pause", "pause"),
        "resume": ("pause", "resume"),
        "enable": ("pause", "enable"),
        "reload": ("reload", "reload"),
        "secret": ("secret", "secret"),
        "token": ("token", "token"),
        "endpoints": ("endpoints", "app"),
        "systemd": ("systemd", "systemd"),
    }
)  # name -> where it is


class _Imported(Mapping[str, Any]):
    """Name -> command; typer brings a click of its own, with no public type of one."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            module, attribute = COMMANDS[name]
            self._made[name] = _made(name, getattr(import_module(f"webhookd.cli.{module}"), attribute))
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def _made(name: str, found: Any) -> Any:
    around = typer.Typer(add_completion=False, rich_markup_mode=None)
    around.callback()(lambda: None)  # so that it is a group though there is only one command in it
    if isinstance(found, typer.Typer):
        around.add_typer(found, name=name)
    else:
        around.command(name)(found)
    return cast(Any, typer.main.get_command(around)).commands[name]


class _Commands(TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = cast(Any, _Imported())

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = _in_our_words(error)
            raise


def _in_our_words(error: typer.BadParameter) -> str:
    """What is wrong with the value of an option, which typer leaves to pydantic to say."""
    from pydantic import ValidationError

    if not isinstance(error.__cause__, ValidationError):
        return error.message
    from webhookd.config.mistakes import sentence_of

    return sentence_of(error.__cause__.errors()[0])


app = typer.Typer(
    cls=_Commands,
    help="Delivers the events of a Postgres outbox to every endpoint that subscribes to them.",
    epilog="Start with `webhookd demo`, or with `webhookd init`. To have your shell complete commands and options, run "
    "`webhookd --install-completion` once. Exit codes: 0 done, 1 the answer is no, 2 usage, 69 the database is away, "
    "78 the configuration has a mistake.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they would show local variables, secrets among them
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        from webhookd.cli.tables import say

        say(f"webhookd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("-c", "--config", metavar="FILE", help="The main file; also after a command.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if config is not None:
        context.default_map = cast(Any, _defaults(context.command, {"config": str(config)}))


def _defaults(command: Any, given: Mapping[str, str]) -> Mapping[str, Any]:
    below = getattr(command, "commands", None)  # a group has them
    return given if below is None else _Defaults(below, given)


class _Defaults(Mapping[str, Any]):
    """These for every command below, of which none is imported for it."""

    def __init__(self, below: Mapping[str, Any], given: Mapping[str, str]) -> None:
        self._below = below
        self._given = given

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        return _defaults(self._below[name], self._given)

    def __iter__(self) -> Iterator[str]:
        return iter(self._below)

    def __len__(self) -> int:
        return len(self._below)


def unclipped(stream: TextIO) -> TextIO:
    """The same stream, of which nothing is lost when a terminal or a pipe takes a part of what is written at once.

    With PYTHONUNBUFFERED, which images of containers like to set, Python forgets the rest.
    """
    if not isinstance(stream, io.TextIOWrapper) or not isinstance(stream.buffer, io.RawIOBase):
        return stream
    encoding, errors, raw = stream.encoding, stream.errors, stream.detach()
    return io.TextIOWrapper(
        io.BufferedWriter(cast(io.RawIOBase, raw)), encoding, errors, line_buffering=True, write_through=True
    )


def main() -> None:
    """Run the command line and exit."""
    sys.stdout, sys.stderr = unclipped(sys.stdout), unclipped(sys.stderr)
    try:
        app()
    except WebhookdError as error:
        from webhookd.cli.tables import tell

        for sentence in error.mistakes if isinstance(error, ConfigError) else [str(error)]:
            tell("webhookd: " + sentence.replace("\n", "\n  "), err=True)
        sys.exit(exit_code(error))


def exit_code(error: WebhookdError) -> int:
    """What a command that met this error ends with."""
    if isinstance(error, (ConfigError, DsnUnusable, OtherPlace)) or (isinstance(error, SchemaMismatch) and error.final):
        return CONFIGURATION
    if isinstance(error, (StoreUnavailable, SchemaMismatch, EmbeddedUnavailable)):
        return DATABASE_AWAY
    return USAGE if isinstance(error, Usage) else NO
