"""`webhookd secret`: what requests are signed with, and what seals that in the database."""

import os
import stat
from pathlib import Path
from typing import Annotated

import typer

from webhookd.cli.options import AsJson, ConfigFile, Usage, environment, ran
from webhookd.cli.tables import counted, document, say, show_json
from webhookd.config import loader
from webhookd.message.sealing import Keyring, new_key
from webhookd.message.signing import new_keypair, new_secret
from webhookd.store.database import Database
from webhookd.store.secrets import Lost, Secrets

secret = typer.Typer(help="Make secrets, and seal those in the database.", no_args_is_help=True)


@secret.command("new")
def new(
    ed25519: Annotated[
        bool, typer.Option("--ed25519", help="A key pair: receivers can verify with it, but not sign.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Put it into a new file that others cannot read; print none of it."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a fresh secret.

    It is on standard output, and where it goes is on standard error.
    """
    if out and as_json:
        raise Usage("--out writes the secret alone, as secret_file wants it: leave out --json")
    if not ed25519:
        text = new_secret()
        if out:
            _write(out, text)
            say(f'wrote {out}; in the [endpoint.NAME] table: secret_file = "{out.name}"')
            return
        say(document({"secret": text}) if as_json else text)
        say(
            f'for webhookd, in the [endpoint.NAME] table: secret = "{text[:6]}…", or secret_file = "a file with it"\n'
            "for the receiver: the same secret, by a channel that others do not read",
            err=True,
        )
        return
    private, public = new_keypair()
    if out:
        _write(out, private)
        say(f'wrote {out}; in the [endpoint.NAME] table: secret_file = "{out.name}"\nfor receivers: {public}')
        return
    say(document({"private": private, "public": public}) if as_json else f"{private}\n{public}")
    say(
        'for webhookd alone, in the [endpoint.NAME] table: secret = "whsk_…", or secret_file = "a file with it"\n'
        "for receivers, who may publish it: whpk_…",
        err=True,
    )


def _write(file: Path, text: str) -> None:
    """A new file for us alone; one of root also for the group that may enter its folder, which is the service's."""
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as opened:
            folder = os.stat(file.parent)
            if os.geteuid() == 0 and folder.st_gid and folder.st_mode & stat.S_IXGRP:
                os.fchown(opened.fileno(), -1, folder.st_gid)
                os.fchmod(opened.fileno(), 0o640)
            opened.write(f"{text}\n")
    except FileExistsError:
        raise Usage(f"--out: {file} is there already, and secrets are not written over: name another file") from None
    except OSError as error:
        raise Usage(f"--out: {file} cannot be written: {error.strerror}") from None


@secret.command("key")
def key(as_json: AsJson = False) -> None:
    """Print a fresh key that seals secrets in the database.

    It is on standard output, and where it goes is on standard error.
    """
    text = new_key()
    say(document({"key": text}) if as_json else text)
    say(
        'put it into a file or a systemd credential, and first into keys of [encryption]: { id = "NAME", file = "…" }\n'
        "keep the old key behind it until `webhookd secret rekey` has sealed everything anew",
        err=True,
    )


@secret.command("rekey")
def rekey(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Seal all secrets in the database with another key.

    That is the first one of [encryption] keys. Exit code 1 when a secret cannot be opened.
    """
    file = loader.find(config, os.environ)
    loaded = loader.load(file, environment(True), may_be_empty=True)  # what may be called is nothing to it
    keyring = Keyring(loaded.encryption.keys)
    if not keyring.first:
        raise Usage("[encryption] has no keys; make one with `webhookd secret key`")
    done, lost = ran(_rekey(loader.dsn(loaded.database, file), keyring))
    if as_json:
        show_json({"key": keyring.first, "sealed": done, "lost": [each._asdict() for each in lost]})
    else:
        say(f"{counted(done, 'secret')} sealed anew, with the key {keyring.first}")
        for each in lost:
            say(f"a secret of {each.endpoint} cannot be opened: {each.why}", err=True)
    raise typer.Exit(1 if lost else 0)


async def _rekey(dsn: str, keyring: Keyring) -> tuple[int, list[Lost]]:
    async with Database(dsn or None, size=1) as database:
        return await Secrets(database, keyring).rekey()
