"""Events that come by the HTTP API: each is one INSERT into the outbox, with what its caller calls it beside it."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from webhookd.store import requests
from webhookd.store.statements import QUERIES
from webhookd.store.tenants import Asking


class NewMessage(NamedTuple):
    """An event as its caller gives it; payload and metadata are JSON, as they came."""

    event_id: str
    type: str
    payload: bytes
    metadata: bytes | None = None
    ordering_key: str | None = None
    deliver_after: datetime | None = None
    alias: str | None = None


class Message(NamedTuple):
    """An event of a tenant; its payload only where that was asked for."""

    event_id: str
    type: str
    created_at: datetime
    metadata: bytes | None
    deliver_after: datetime | None
    alias: str | None
    payload: bytes | None


class Which(NamedTuple):
    """Which of a tenant's events: not before a moment, before another, of these types, with this channel and tag."""

    since: datetime | None = None
    until: datetime | None = None
    types: Sequence[str] | None = None
    channel: str | None = None
    tag: str | None = None


async def key(asking: Asking) -> bytes:
    """With which numbers are enciphered that people see, 16 bytes."""
    found: bytes = (await asking.fetch(QUERIES["cipher"]))[0][0]
    return found


async def page(
    asking: Asking,
    tenant: str,
    which: Which,
    limit: int,
    after: int | None,
    *,
    back: bool = False,
    with_payload: bool = False,
) -> tuple[list[tuple[int, Message]], int | None]:
    """A page of a tenant's events with their numbers, the newest first, or the oldest with `back`, behind a number.

    What is behind which number comes next; None when nothing does. It may be that nothing fits of what was looked at,
    5,000 at most; and where payloads are large, fewer come than there is room for.
    """
    rows = await asking.fetch(QUERIES["messages"], tenant, *which, limit, after, back, with_payload)
    found = [(row[1], Message._make(row[2:])) for row in rows if row[1] is not None]
    return found, rows[0][0]


async def expunge(asking: Asking, tenant: str, since: datetime | None, id_or_alias: str) -> bool:
    """Forget what an event says and is owed; False when there is none. Its attempts stay, without the answers."""
    return bool((await asking.fetch(QUERIES["message_expunge"], tenant, id_or_alias, since))[0][0])


async def add_at_once(
    asking: Asking, application: str, of: str | None, key: bytes | None, body: bytes, new: NewMessage
) -> datetime | None:
    """When it was inserted for this application, if it is there, and that of this id; in one statement.

    It is noted for the request that has this key, and None when nothing was done: in a transaction it says why not.
    """
    number = None if key is None else requests.number(key)
    rows = await asking.fetch(QUERIES["message_at_once"], application, of, key, body, number, *new)
    added: datetime | None = rows[0][0]
    return added


async def add(asking: Asking, tenant: str, new: NewMessage, since: datetime | None) -> datetime | None:
    """When it was inserted; None when the tenant has another event of that alias, and then nothing is.

    What was called so before `since` was another's, who had the tenant's key.
    """
    if new.alias is None:
        rows = await asking.fetch(QUERIES["message_add"], tenant, *new[:-1])
    else:
        rows = await asking.fetch(QUERIES["message_add_named"], tenant, *new, since)
    return rows[0][0] if rows else None


async def find(
    asking: Asking, tenant: str, since: datetime | None, id_or_alias: str, *, with_payload: bool
) -> Message | None:
    """The tenant's newest event with this id or alias, unless it is older than `since`."""
    rows = await asking.fetch(QUERIES["message"], tenant, id_or_alias, since, with_payload)
    return Message._make(rows[0]) if rows else None
