"""`webhookd systemd install`: the unit, the account and the folders of the service, as systemd wants them."""

import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from difflib import unified_diff
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
REMEDY: Final = (
    f"make a virtualenv elsewhere, such as `/usr/bin/python3 -m venv {SHIPPED}`, and call the webhookd in it"
)
SEARCHED: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # as root has it
_PLAIN: Final = re.compile(r"[A-Za-z0-9._/+-]+")
NEXT: Final = (
    "systemd-sysusers webhookd.conf",
    "systemd-tmpfiles --create webhookd.conf",
    "systemctl daemon-reload",
    "systemctl enable --now webhookd",
)
BOOTED: Final = Path("/run/systemd/system")  # is there where systemd runs: sd_booted(3)

systemd = typer.Typer(help="Install the service.", no_args_is_help=True)


@systemd.command("install")
def install(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what it would write and what is to be run; write none.")
    ] = False,
) -> None:
    """Write the unit, and the files that make its account and folders.

    They go below /etc, for the command that you call this with. Files that are as they should be are left alone; what
    you changed with `systemctl edit webhookd` stays. It runs no command: it says which are to be run then.
    """
    texts = {place: unit_file(name) for name, place in PLACES.items()}
    hindrances = list(_hindrances())
    if not dry_run:
        if hindrances:
            raise WebhookdError(f"{hindrances[0]}: {REMEDY}")
        if os.geteuid() != 0:
            raise WebhookdError("only root may write below /etc: call it with sudo, or look at it with --dry-run")
        for place, text in texts.items():
            say(f"{'wrote' if written(Path(place), text) else 'unchanged'} {place}")
        say("\n".join(_next()))
        return
    for place, text in texts.items():
        say("\n".join(_shown(Path(place), text)))
    say("\n".join(_next()))
    if hindrances:
        raise WebhookdError("\n".join(("install would refuse that:", *hindrances, REMEDY)))


def _hindrances() -> Iterator[str]:
    """Which places of this Python the unit cannot have, and why."""
    prefix, base, scripts = _places()
    found = [f"{place} {why}" for place in dict.fromkeys((prefix, base)) if (why := _hindrance(place))]
    if not found and (why := _hindrance(scripts)):
        found = [f"{scripts} {why}"]
    yield from found


def _next() -> Iterator[str]:
    """What is to be run then, and what of it is not here to be run."""
    *first, last = NEXT
    yield "\nNext:"
    yield from (f"  {command}" for command in first)
    yield "and, once `webhookd check` finds no mistake:"
    yield f"  {last}"
    programs = dict.fromkeys(command.split()[0] for command in NEXT)
    if missing := [program for program in programs if shutil.which(program, path=SEARCHED) is None]:
        yield f"not found on this machine: {', '.join(missing)}"
    elif not BOOTED.is_dir():
        yield "systemd does not run on this machine, as in most containers, so systemctl will do nothing here"


def _shown(file: Path, text: str) -> Iterator[str]:
    """What becomes of the file: all of a new one, and of another what changes."""
    try:
        before = file.read_text("utf-8", "replace") if file.exists() else None
    except OSError as error:
        yield f"# {file}: cannot be read, so it may change: {error.strerror}"
        before = None
    if before is None:
        yield f"# {file}: new"
        yield text
    elif before == text and not file.is_symlink():
        yield f"# {file}: unchanged"
    else:
        yield f"# {file}: changed"
        yield from unified_diff(before.splitlines(), text.splitlines(), str(file), "as it would be", lineterm="")


def _places() -> tuple[str, str, str]:
    """The virtualenv that runs this, the Python that it is of, and where its commands are."""
    return sys.prefix, os.path.realpath(sys.base_prefix), sysconfig.get_path("scripts")


def unit_file(name: str) -> str:
    """A file of systemd/, as it is packaged or beside the package, for the Python that runs this."""
    text = (_folder() / name).read_text("utf-8")
    prefix, base, scripts = _places()
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
