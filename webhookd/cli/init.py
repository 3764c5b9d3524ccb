"""`webhookd init`: a commented configuration to start from, with a secret that nobody else has."""

import os
import re
import shlex
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Final

import typer

from webhookd.cli.tables import say, tell
from webhookd.errors import WebhookdError
from webhookd.message.sealing import new_key
from webhookd.message.signing import new_secret
from webhookd.store import wheel
from webhookd.store.tokens import new_token

MAIN, ENDPOINT = "webhookd.toml", "endpoints.d/example.toml"
SERVICE: Final = Path("/etc/webhookd")
KEY, TOKENS = "sealing.key", "api.tokens"
TEMPLATES: Final = (MAIN, ENDPOINT)

_FRESH: Final = {
    "# Visibly fake": "# Fresh, and known to you alone",
    "# keys = []                        ": 'keys = [{ id = "first", file = "sealing.key" }] ',
    '# tokens_file = ""                 ': 'tokens_file = "api.tokens"         ',
}
_SECRET = re.compile(r'^secret = "whsec_[^"]*"', re.MULTILINE)


def init(
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="Where; it is made if need be.", show_default=True)
    ] = Path("config"),
) -> None:
    """Write a configuration to start from.

    That is a commented webhookd.toml, endpoints.d/example.toml with a fresh secret, and for the HTTP API a key and a
    token of an administrator. Nothing is overwritten.
    """
    texts = {directory / name: template(name) for name in TEMPLATES} | {
        directory / KEY: f"{new_key()}\n",
        directory / TOKENS: f"# a role and a token on each line\nadmin {new_token()}\n",
    }
    for file in texts:
        if os.path.lexists(file):
            raise WebhookdError(f"{file} is there already, so nothing was written: name another DIRECTORY")
    try:
        (directory / ENDPOINT).parent.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            _write(file, text, 0o644 if file.name == MAIN else 0o640)  # all but the main one hold a secret
            say(f"wrote {file}")
    except OSError as error:
        raise WebhookdError(f"{error.filename or directory} cannot be written: {error.strerror}") from None
    tell(
        f"\n{directory / ENDPOINT} has a fresh secret and an endpoint that is inactive until active = true. "
        f"{TOKENS} has a token of an administrator for the HTTP API, which [api] listen switches on, and {KEY} seals "
        "what is secret of endpoints that are made by it: keep a copy elsewhere."
    )
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
sudo chgrp -R webhookd /etc/webhookd
sudo -u postgres createuser webhookd && sudo -u postgres psql -c 'GRANT CREATE ON DATABASE app TO webhookd'
sudo -u webhookd webhookd migrate
sudo editor /etc/webhookd/endpoints.d/example.toml       # url, events, active = true
sudo -u webhookd webhookd check
sudo systemctl daemon-reload && sudo systemctl enable --now webhookd
sudo -u webhookd webhookd status"""


def template(name: str) -> str:
    """A file of config/, as it is packaged or beside the package, with a secret that is fresh instead of fake."""
    text = _SECRET.sub(f'secret = "{new_secret()}"', (_templates() / name).read_text("utf-8"))
    for before, after in _FRESH.items():
        text = text.replace(before, after)
    return text


def _templates() -> Traversable:
    packaged = files("webhookd") / "templates"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "config"  # in a source tree


def _write(file: Path, text: str, mode: int) -> None:
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as opened:
        os.fchmod(opened.fileno(), mode)  # whatever the umask: the daemon's group has to read it
        opened.write(text)
