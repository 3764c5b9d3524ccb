"""`webhookd init`: a commented configuration to start from, with a secret that nobody else has."""

import os
import re
import shlex
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Final

import typer

from webhookd import loader
from webhookd.cli.tables import say
from webhookd.errors import ConfigError, WebhookdError
from webhookd.signing import new_secret

MAIN, ENDPOINT = "webhookd.toml", "endpoints.d/example.toml"
MODES: Final[Mapping[str, int]] = {MAIN: 0o644, ENDPOINT: 0o640}  # the second holds the secret

_SECRET = re.compile(r'^secret = "whsec_[^"]*"', re.MULTILINE)


def init(
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="Where; it is made if need be.", show_default=True)
    ] = Path("config"),
) -> None:
    """Write a configuration to start from.

    That is a commented webhookd.toml, and endpoints.d/example.toml with a fresh secret. Nothing is overwritten.
    """
    texts = {directory / name: template(name) for name in MODES}
    for file in texts:
        if os.path.lexists(file):
            raise WebhookdError(f"{file} is there already, so nothing was written: name another DIRECTORY")
    try:
        (directory / ENDPOINT).parent.mkdir(parents=True, exist_ok=True)
        for file, mode in zip(texts, MODES.values(), strict=True):
            _write(file, texts[file], mode)
            say(f"wrote {file}")
    except OSError as error:
        raise WebhookdError(f"{error.filename or directory} cannot be written: {error.strerror}") from None
    named = _named(directory / MAIN)
    say(
        f"\n{directory / ENDPOINT} has a fresh secret and an endpoint that is inactive until active = true.\n"
        "Next:\n"
        "  export WEBHOOKD_DSN=postgresql:///app && webhookd migrate\n"
        f"  webhookd check --dev{named}\n"
        f"  webhookd run --dev{named}"
    )


def template(name: str) -> str:
    """A file of config/, as it is packaged or beside the package, with a secret that is fresh instead of fake."""
    return _SECRET.sub(f'secret = "{new_secret()}"', (_templates() / name).read_text("utf-8")).replace(
        "# Visibly fake", "# Fresh, and known to you alone"
    )


def _templates() -> Traversable:
    packaged = files("webhookd") / "templates"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "config"  # in a source tree


def _write(file: Path, text: str, mode: int) -> None:
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as opened:
        os.fchmod(opened.fileno(), mode)  # whatever the umask: the daemon's group has to read it
        opened.write(text)


def _named(main: Path) -> str:
    """The option that the next commands need to find the file, if they need one."""
    try:
        if os.path.samefile(loader.find(None, os.environ), main):
            return ""
    except (ConfigError, OSError):
        pass
    return f" -c {shlex.quote(str(main))}"
