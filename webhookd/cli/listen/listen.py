"""`webhookd listen`: a receiver on this machine, to see what webhookd sends and to develop against."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from errno import EADDRINUSE
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from webhookd.cli.listen.forward import client, passing
from webhookd.cli.listen.view import Seen, described, lines
from webhookd.cli.options import Usage, on_stop_signals, ran
from webhookd.cli.receiver import Behaviour, Received, local_receiver
from webhookd.cli.tables import document, say, show_json, tell
from webhookd.egress.guard import url_mistake
from webhookd.errors import WebhookdError
from webhookd.message.signing import new_secret, parse_verifier
from webhookd.units import duration


def listen(
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 is any free one.")] = 0,
    secret: Annotated[
        str | None, typer.Option(metavar="SECRET", help="What requests are signed with; else a fresh one.")
    ] = None,
    secret_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The same from a file, where no process list shows it.")
    ] = None,
    fail: Annotated[
        str | None, typer.Option(metavar="SHARE", help='Let this share fail, "0.3" or "30%"; 500 unless --status.')
    ] = None,
    status: Annotated[
        int | None, typer.Option(min=200, max=599, metavar="CODE", help="Answer with it; with --fail, when failing.")
    ] = None,
    delay: Annotated[str, typer.Option(metavar="TIME", help='Before each answer, such as "2s".')] = "0s",
    hang: Annotated[bool, typer.Option("--hang", help="Never answer.")] = False,
    forward_to: Annotated[
        str | None, typer.Option(metavar="URL", help="Pass on what is verified, and answer what is answered there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each request.")] = False,
) -> None:
    """Receive webhooks here, and show each.

    Until Ctrl-C it verifies and prints each request, and answers 200, or 401 to one that is not signed well; it can
    fail, be slow, hang, or pass requests on. At the start it prints the lines that make webhookd send here.
    """
    if secret is not None and secret_file is not None:
        raise Usage("--secret and --secret-file: give only one of them")
    text = _of_file(secret_file) if secret_file else new_secret() if secret is None else secret
    try:
        key = parse_verifier(text)
    except ValueError as error:
        raise Usage(f"{'--secret-file' if secret_file else '--secret'}: {error}") from None
    if forward_to is not None and (mistake := url_mistake(forward_to, allow_http=True)):
        raise Usage(f"--forward-to: {mistake}")
    chance = Random().random  # noqa: S311 - moods of a receiver
    share = _share(fail) if fail is not None else 0.0 if status is None else 1.0
    behaviour = Behaviour(share, _seconds(delay), hang, status or 500)

    async def serve() -> None:
        stopped = asyncio.Event()
        on_stop_signals(stopped.set, lambda: os._exit(1))
        show = _printer(stopped, as_json=as_json)
        async with client() as session:
            forward = None if forward_to is None else passing(session, forward_to)
            try:
                async with local_receiver(
                    (key,), show, random=chance, port=port, otherwise=behaviour, forward=forward
                ) as url:
                    say("\n".join(introduction(url, text, secret_file)), err=as_json)
                    await stopped.wait()
            except OSError as error:
                raise WebhookdError(_no_port(port, error)) from None

    ran(serve())


def _no_port(port: int, error: OSError) -> str:
    why = "is taken by another process" if error.errno == EADDRINUSE else "cannot be opened"
    if error.errno not in (None, EADDRINUSE):
        why += f" ({os.strerror(error.errno)})"
    return f"port {port} of 127.0.0.1 {why}: choose another with --port, or any free one with --port 0"


def introduction(url: str, secret: str, secret_file: Path | None) -> Iterator[str]:
    """Where it listens, and what to paste so that webhookd sends there."""
    if secret.startswith("whpk_"):
        given = 'secret_file = "listen.secret" # put the whsk_ key into it that this whpk_ key belongs to'
    else:
        given = f"secret_file = {_toml(str(secret_file.resolve()))}" if secret_file else f"secret = {_toml(secret)}"
    yield f"listening on {url}/ until Ctrl-C"
    yield ""
    yield "# into a file of endpoints.d, such as endpoints.d/listen.toml"
    yield "[endpoint.listen]"
    yield f"url = {_toml(f'{url}/')}"
    yield 'events = ["*"]'
    yield given
    yield ""
    yield "# into webhookd.toml, for a receiver on this machine;"
    yield "# `webhookd run --dev` needs no such lines"
    yield "[egress]"
    yield "allow_http = true"
    yield 'allow_networks = ["127.0.0.0/8"]'
    yield ""


def _toml(text: str) -> str:
    return document(text)


def _of_file(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except OSError as error:
        raise Usage(f"--secret-file: {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Usage(f"--secret-file: {file} is not UTF-8") from None


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise Usage('--fail: write a share such as "0.3" or "30%"')
    return share


def _seconds(text: str) -> float:
    try:
        return duration(text)
    except ValueError as error:
        raise Usage(f"--delay: {error}") from None


def _printer(stopped: asyncio.Event, *, as_json: bool) -> Callable[[Received], None]:
    """Shows each request; stops in order when whoever read our lines has gone."""

    def show(received: Received) -> None:
        seen = Seen(datetime.now(UTC), received)
        try:
            if as_json:
                show_json(described(seen), indent=False)
            else:
                headline, *body = lines(seen)
                tell(headline)
                say("\n".join(body))
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            stopped.set()

    return show
