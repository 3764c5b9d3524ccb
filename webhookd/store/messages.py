"""Events that come by the HTTP API: each is one INSERT into the outbox, with what its caller calls it beside it."""

from datetime import datetime
from typing import NamedTuple

from webhookd.store.statements import QUERIES
from webhookd.store.tenants import Asking


class NewMessage(NamedTuple):
    """An event as its caller gives it; payload and metadata are JSON, as they came."""

    event_id: str
    type: str
    payload: bytes
    tenant: str
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


async def add(asking: Asking, new: NewMessage, since: datetime | None) -> datetime | None:
    """When it was inserted; None when the tenant has another event of that alias, and then nothing is.

    What was called so before `since` was another's, who had the tenant's key.
    """
    if new.alias is None:
        rows = await asking.fetch(QUERIES["message_add"], *new[:-1])
    else:
        rows = await asking.fetch(QUERIES["message_add_named"], *new, since)
    return rows[0][0] if rows else None


async def find(
    asking: Asking, tenant: str, since: datetime | None, id_or_alias: str, *, with_payload: bool
) -> Message | None:
    """The tenant's newest event with this id or alias, unless it is older than `since`."""
    rows = await asking.fetch(QUERIES["message"], tenant, id_or_alias, since, with_payload)
    return Message._make(rows[0]) if rows else None
