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

from webhookd.cli.tables import say, tell
from webhookd.errors import WebhookdError
from webhookd.message.signing import new_secret
from webhookd.store import wheel

MAIN, ENDPOINT = "webhookd.toml", "endpoints.d/example.toml"
SERVICE: Final = Path("/etc/webhookd")
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
    tell(f"\n{directory / ENDPOINT} has a fresh secret and an endpoint that is inactive until active = true.")
    say(f"Next, as in README:\n\n{_production() if directory.absolute() == SERVICE else _first_walk(directory)}")


def _first_walk(directory: Path) -> str:
    """What README has under "Your first endpoint", for this directory; comments say in which terminal."""
    secret, endpoint = directory / "endpoints.d/listen.secret", directory / "endpoints.d/listen.toml"
    main, postgres = directory / MAIN, directory / "postgres"
    secret_, endpoint_, main_, postgres_ = (shlex.quote(str(each)) for each in (secret, endpoint, main, postgres))
    install = "" if wheel.folder() else f"\n# which comes, in the checkout of webhookd, with: {wheel.INSTALL}"
    return f"""# a receiver, in this terminal
webhookd secret new --out {secret_}
cat > {endpoint_} <<'END'
[endpoint.listen]
url = "http://127.0.0.1:9000/"
events = ["*"]
secret_file = "listen.secret"
END
webhookd listen --port 9000 --secret-file {secret_}

# the daemon, in a second terminal, with a Postgres of its own{install}
webhookd run --dev --embedded {postgres_} -c {main_}

# an event, in a third terminal, with the DSN that the daemon has printed
export WEBHOOKD_CONFIG={main_} WEBHOOKD_DSN='postgresql://…'
webhookd emit order.created '{{"order": 42}}'
webhookd status --watch

# after Ctrl-C in the third
webhookd explain --dev --type order.created
webhookd check --dev
webhookd reload --dev"""


def _production() -> str:
    """What README has under "Production" after this command."""
    return r"""# with a database `app` on this host, and what `webhookd systemd install` wrote
sudo sed -i 's|^# dsn = .*|dsn = "postgresql:///app"|' /etc/webhookd/webhookd.toml
sudo systemd-tmpfiles --create webhookd.conf
sudo chgrp -R webhookd /etc/webhookd/webhookd.toml /etc/webhookd/endpoints.d
sudo -u postgres createuser webhookd && sudo -u postgres psql -c 'GRANT CREATE ON DATABASE app TO webhookd'
sudo -u webhookd webhookd migrate
sudo editor /etc/webhookd/endpoints.d/example.toml       # url, events, active = true
sudo -u webhookd webhookd check
sudo systemctl daemon-reload && sudo systemctl enable --now webhookd
sudo -u webhookd webhookd status"""


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
