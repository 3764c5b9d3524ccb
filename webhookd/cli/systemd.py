"""`webhookd systemd install`: the unit, the account and the folders of the service, as systemd wants them."""

import os
import re
import sys
import sysconfig
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Final

import typer

from webhookd.cli.tables import say
from webhookd.errors import WebhookdError

PLACES: Final[Mapping[str, str]] = {
    "webhookd.service": "/etc/systemd/system/webhookd.service",
    "sysusers.d/webhookd.conf": "/etc/sysusers.d/webhookd.conf",
    "tmpfiles.d/webhookd.conf": "/etc/tmpfiles.d/webhookd.conf",
}
SHIPPED: Final = "/opt/webhookd"  # where the unit that we ship expects the virtualenv
HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - by ProtectHome and PrivateTmp
_PLAIN: Final = re.compile(r"[A-Za-z0-9._/+-]+")
NEXT: Final = """
Next:
  systemd-sysusers webhookd.conf
  systemd-tmpfiles --create webhookd.conf
  systemctl daemon-reload
and, once `webhookd check` finds no mistake:
  systemctl enable --now webhookd"""

systemd = typer.Typer(help="Install the service.", no_args_is_help=True)


@systemd.command("install")
def install(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the files and where they go; write none.")] = False,
) -> None:
    """Write the unit, and the files that make its account and folders.

    They go below /etc, for the command that you call this with. Files that are as they should be are left alone; what
    you changed with `systemctl edit webhookd` stays.
    """
    texts = {place: unit_file(name) for name, place in PLACES.items()}
    if dry_run:
        for place, text in texts.items():
            say(f"# {place}\n{text}")
        return
    if os.geteuid() != 0:
        raise WebhookdError("only root may write below /etc: call it with sudo, or look at it with --dry-run")
    for place, text in texts.items():
        say(f"{'wrote' if written(Path(place), text) else 'unchanged'} {place}")
    say(NEXT)


def unit_file(name: str) -> str:
    """A file of systemd/, as it is packaged or beside the package, for the Python that runs this."""
    text = (_folder() / name).read_text("utf-8")
    prefix, base, scripts = sys.prefix, os.path.realpath(sys.base_prefix), sysconfig.get_path("scripts")
    for place in (prefix, base, scripts):
        if why := _hindrance(place):
            raise WebhookdError(
                f"{place} {why}: make a virtualenv elsewhere, such as `/usr/bin/python3 -m venv {SHIPPED}`, and call "
                "the webhookd in it"
            )
    executable = dict.fromkeys(place for place in (prefix, base) if place != "/usr")  # its folders are there anyhow
    return text.replace(f"={SHIPPED}/bin/webhookd ", f"={scripts}/webhookd ").replace(
        f"={SHIPPED} /usr/bin", f"={' '.join((*executable, '/usr/local') if prefix == '/usr' else executable)} /usr/bin"
    )


def _hindrance(place: str) -> str | None:
    """Why the unit cannot have this path."""
    if not _PLAIN.fullmatch(place):
        return "has characters that mean something in a unit"
    if any(Path(place).is_relative_to(hidden) for hidden in HIDDEN):
        return "cannot be seen by the service, from which the unit hides homes and temporary folders"
    return None


def written(file: Path, text: str) -> bool:
    """Write the file for everyone to read, unless it is so already; True when it had to be."""
    try:
        if file.is_file() and not file.is_symlink() and file.read_text("utf-8") == text:
            return False
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{file.name}.new")
        new.write_text(text, "utf-8")
        new.chmod(0o644)
        new.replace(file)
    except OSError as error:
        raise WebhookdError(f"{error.filename or file} cannot be written: {error.strerror}") from None
    return True


def _folder() -> Traversable:
    packaged = files("webhookd") / "systemd"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "systemd"  # in a source tree
