"""`webhookd secret new`: what requests are signed with."""

from typing import Annotated

import orjson
import typer

from webhookd.cli.options import AsJson
from webhookd.signing import new_keypair, new_secret

secret = typer.Typer(help="Make the secrets that requests are signed with.", no_args_is_help=True)


@secret.callback()
def _group() -> None:
    # Without it typer would take a group of one command for the command.
    return None


@secret.command("new")
def new(
    ed25519: Annotated[
        bool, typer.Option("--ed25519", help="A key pair: receivers can verify with it, but not sign.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print a fresh secret on standard output, and where it goes on standard error."""
    if not ed25519:
        text = new_secret()
        typer.echo(_json(secret=text) if as_json else text)
        typer.echo(
            f'for webhookd, in the [endpoint.NAME] table: secret = "{text[:6]}…", or secret_file = "a file with it"\n'
            "for the receiver: the same secret, by a channel that others do not read",
            err=True,
        )
        return
    private, public = new_keypair()
    typer.echo(_json(private=private, public=public) if as_json else f"{private}\n{public}")
    typer.echo(
        'for webhookd alone, in the [endpoint.NAME] table: secret = "whsk_…", or secret_file = "a file with it"\n'
        "for receivers, who may publish it: whpk_…",
        err=True,
    )


def _json(**values: str) -> str:
    return orjson.dumps(values, option=orjson.OPT_INDENT_2).decode()
