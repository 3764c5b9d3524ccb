"""What the shell completes, asked of the database while somebody types: soon, and without a word when it is away."""

import asyncio
from pathlib import Path

import typer

from webhookd.cli.options import dsn_for, ran
from webhookd.errors import WebhookdError

SECONDS = 2.0  # in which the database has to answer


def endpoint_names(context: typer.Context, incomplete: str) -> list[str]:
    """NAME or TENANT/NAME of the endpoints that begin so, but for those that a shell would have to quote."""
    given = context.params.get("config") or context.find_root().params.get("config")
    try:
        found = ran(_labels(dsn_for(None if given is None else Path(given))))
    except (WebhookdError, TimeoutError):
        return []
    return [each for each in sorted(found) if each.startswith(incomplete) and _is_one_word(each)]


async def _labels(dsn: str) -> list[str]:
    from webhookd.store.database import Database  # a command that completes nothing needs no driver
    from webhookd.store.listings import Listings, label_of

    async with asyncio.timeout(SECONDS), Database(dsn or None, size=1) as database:
        names = await Listings(database).names()
    return [label_of(names, number) for number in names]


def _is_one_word(text: str) -> bool:
    return all(character.isalnum() or character in "_.-/*" for character in text)
