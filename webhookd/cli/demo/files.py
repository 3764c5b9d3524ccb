"""What the demo writes into its folder, and the events it makes up."""

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Final, NamedTuple

from webhookd.cli.receiver import Behaviour
from webhookd.config import loader
from webhookd.config.config import Config
from webhookd.errors import WebhookdError
from webhookd.message.sealing import new_key


class Scene(NamedTuple):
    """An endpoint of the demo: what it subscribes to, and how its receiver behaves."""

    description: str
    events: tuple[str, ...]
    behaviour: Behaviour
    more: str = ""  # TOML


SCENES: Final[Mapping[str, Scene]] = MappingProxyType(
    {
        "healthy": Scene("answers at once", ("*",), Behaviour()),
        "flaky": Scene(
            "fails 1 in 3",
            ("order.*",),
            Behaviour(failing=1 / 3),
            'retry = { first = "1s", factor = 1.5, max_interval = "5s" } # soon, so that you see it\n',
        ),
        "slow": Scene("takes 0.8 s", ("order.paid", "invoice.*"), Behaviour(delay=0.8), "max_in_flight = 20\n"),
    }
)
BEHAVIOURS: Final = MappingProxyType({f"/{name}": scene.behaviour for name, scene in SCENES.items()})

_MARK = "# Written by `webhookd demo` at each start."
_MAIN = """{mark} Copy it before you change it.
# While the demo runs: webhookd status -c {file}

[database]
dsn = {dsn}

[egress] # a real receiver is reached over https at a public address, and needs none of this
allow_http = true
allow_networks = ["127.0.0.0/8"]

[api] # at a port that is free; endpoints that are made by it may be on this machine, too
listen = "127.0.0.1:0"
allow_http = true
allow_networks = ["127.0.0.0/8"]

[encryption] # of what is secret of them
keys = [{{ id = "demo", file = "sealing.key" }}]

[log] # in webhookd.log beside this file
format = "console"
"""
_ENDPOINT = """
[endpoint.{name}]
description = {description}
url = {url}
events = {events}
secret = {secret}
{more}"""


def write(directory: Path, dsn: str, url: str, secret: str) -> Config:
    """Write the configuration of the demo and read it, with whatever else the user has put into endpoints.d.

    Raises WebhookdError rather than overwrite a file that is not the demo's.
    """
    main, endpoints = directory / "webhookd.toml", directory / "endpoints.d" / "demo.toml"
    tables = [
        _ENDPOINT.format(
            name=name,
            description=json.dumps(scene.description),
            url=json.dumps(f"{url}/{name}"),
            events=json.dumps(scene.events),
            secret=json.dumps(secret),
            more=scene.more,
        )
        for name, scene in SCENES.items()
    ]
    texts = {
        main: _MAIN.format(mark=_MARK, file=main.resolve(), dsn=json.dumps(dsn)),
        endpoints: f"{_MARK} Add endpoints of your own in a file beside it.\n" + "".join(tables),
    }
    try:
        endpoints.parent.mkdir(exist_ok=True)
        if not (key := directory / "sealing.key").exists():  # what it has sealed stays in the folder as well
            _write(key, f"{new_key()}\n")
        for file, text in texts.items():
            if file.exists() and not file.read_text(errors="replace").startswith(_MARK):
                raise WebhookdError(f"{file} is not of a demo: choose another --directory")
            _write(file, text)
    except OSError as error:
        raise WebhookdError(f"cannot write the configuration: {error}") from None
    return loader.load(main, {})


def _write(file: Path, text: str) -> None:
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as opened:
        os.fchmod(opened.fileno(), 0o600)  # the secret is for nobody else, also in a file of an older demo
        opened.write(text)


def samples(random: Random) -> Iterator[tuple[str, bytes]]:
    """(type, payload) of one event of a small shop after the other."""
    for number in itertools.count(random.randrange(10_000, 99_000)):
        order, cents = f"ord_{number}", random.randrange(500, 30_000)
        created = {
            "order": order,
            "customer": f"cus_{random.randrange(1, 200)}",
            "total": cents / 100,
            "currency": "EUR",
        }
        yield "order.created", json.dumps(created).encode()
        yield (
            "order.paid",
            json.dumps({"order": order, "total": cents / 100, "method": random.choice(_METHODS)}).encode(),
        )
        yield "invoice.issued", json.dumps({"invoice": f"inv_{number}", "order": order, "total": cents / 100}).encode()
        if random.random() < 0.5:
            yield "order.shipped", json.dumps({"order": order, "parcels": random.randrange(1, 4)}).encode()


_METHODS = ("card", "transfer", "invoice")
