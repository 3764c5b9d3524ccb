"""The `webhookd` command: a module per group of commands; an expected mistake is one message and an exit code."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from webhookd import __version__
from webhookd.cli import (
    check,
    database,
    demo,
    emit,
    endpoints,
    erase,
    explain,
    init,
    listen,
    listings,
    pause,
    reload,
    run,
    secret,
    status,
)
from webhookd.cli.options import Usage
from webhookd.cli.tables import say
from webhookd.errors import (
    ConfigError,
    EmbeddedUnavailable,
    OtherPlace,
    SchemaMismatch,
    StoreUnavailable,
    WebhookdError,
)

NO, USAGE, DATABASE_AWAY, CONFIGURATION = 1, 2, 69, 78  # the last two are EX_UNAVAILABLE and EX_CONFIG of sysexits.h

app = typer.Typer(
    help="Delivers the events of a Postgres outbox to every endpoint that subscribes to them.",
    epilog="Start with `webhookd demo`, or with `webhookd init`. To have your shell complete commands and options, run "
    "`webhookd --install-completion` once. Exit codes: 0 done, 1 the answer is no, 2 usage, 69 the database is away, "
    "78 the configuration has a mistake.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they would show local variables, secrets among them
    rich_markup_mode=None,
)
COMMANDS: Mapping[str, Callable[..., None]] = {
    "demo": demo.demo,
    "init": init.init,
    "check": check.check,
    "run": run.run,
    "migrate": database.migrate,
    "maintain": database.maintain,
    "erase": erase.erase,
    "emit": emit.emit,
    "explain": explain.explain,
    "listen": listen.listen,
    "status": status.status,
    "events": listings.events,
    "deliveries": listings.deliveries,
    "attempts": listings.attempts,
    "pause": pause.pause,
    "resume": pause.resume,
    "reload": reload.reload,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
app.add_typer(secret.secret, name="secret")
app.add_typer(endpoints.app, name="endpoints")


def _version(wanted: bool) -> None:
    if wanted:
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
        context.default_map = _defaults(context.command, {"config": str(config)})


def _defaults(command: Any, given: dict[str, str]) -> dict[str, Any]:
    """These for every command below."""
    below = getattr(command, "commands", None)  # a group has them; typer brings a click of its own, with no public type
    return given if below is None else {name: _defaults(each, given) for name, each in below.items()}


def main() -> None:
    """Run the command line and exit."""
    try:
        app()
    except WebhookdError as error:
        for sentence in error.mistakes if isinstance(error, ConfigError) else [str(error)]:
            say("webhookd: " + sentence.replace("\n", "\n  "), err=True)
        sys.exit(exit_code(error))


def exit_code(error: WebhookdError) -> int:
    """What a command that met this error ends with."""
    if isinstance(error, (ConfigError, OtherPlace)) or (isinstance(error, SchemaMismatch) and error.final):
        return CONFIGURATION
    if isinstance(error, (StoreUnavailable, SchemaMismatch, EmbeddedUnavailable)):
        return DATABASE_AWAY
    return USAGE if isinstance(error, Usage) else NO
