"""Tenants, as the HTTP API makes, changes and ends them. All take a connection in a transaction, or a database."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from webhookd.ids import new_id
from webhookd.store.statements import QUERIES


class Asking(Protocol):
    """A connection in a transaction, or a database, each of whose statements is one."""

    async def fetch(self, query: str, *arguments: Any) -> Sequence[Any]: ...


class Tenant(NamedTuple):
    """A row of `webhookd.tenant`; `metadata` is JSON."""

    id: str
    key: str
    uid: str | None
    name: str
    metadata: bytes
    rate: int | None
    created_at: datetime
    updated_at: datetime
    since: datetime | None  # what is older is not its own; None for all


class Wanted(NamedTuple):
    """Which page: rows on it, the id that it begins behind, and whether ids fall."""

    limit: int
    after: str | None = None
    descending: bool = False


async def find(asking: Asking, id_or_uid: str) -> Tenant | None:
    """The living tenant with this id or uid."""
    return _one(await asking.fetch(QUERIES["tenant"], id_or_uid))


async def lock(asking: Asking, id_: str) -> Tenant | None:
    """The living one with this id, as nobody else changes it until the transaction ends."""
    return _one(await asking.fetch(QUERIES["tenant_locked"], id_))


async def page(asking: Asking, wanted: Wanted) -> list[Tenant]:
    """Living tenants, one more than are asked for where there are more."""
    query = QUERIES["tenants_falling" if wanted.descending else "tenants_rising"]
    return [Tenant._make(row) for row in await asking.fetch(query, wanted.after, wanted.limit + 1)]


async def is_taken(asking: Asking, uid: str, by_other_than: str | None = None) -> bool:
    """True when a living tenant, but for the one with that id, has this uid or this key."""
    return bool(await asking.fetch(QUERIES["tenant_taken"], uid, by_other_than))


async def add(asking: Asking, id_: str, uid: str | None, name: str, metadata: bytes, rate: int | None) -> Tenant | None:
    """Make one; its key is its uid, or else its id. None when another has taken the uid at this very moment."""
    return _one(await asking.fetch(QUERIES["tenant_add"], id_, uid, name, metadata, rate))


async def of_files(asking: Asking, keys: Iterable[str]) -> None:
    """Have one for each of these keys, which files name."""
    missing = [row[0] for row in await asking.fetch(QUERIES["tenants_missing"], sorted(keys))]
    if missing:
        await asking.fetch(QUERIES["tenants_of_files"], [new_id("app_") for _ in missing], missing)


async def change(
    asking: Asking, id_: str, uid: str | None, name: str, metadata: bytes, rate: int | None
) -> Tenant | None:
    """Have it be like this; None when it is gone."""
    return _one(await asking.fetch(QUERIES["tenant_change"], id_, uid, name, metadata, rate))


async def end(asking: Asking, id_: str) -> None:
    """End it, and its tokens."""
    await asking.fetch(QUERIES["tenant_end"], id_)


def _one(rows: Sequence[Any]) -> Tenant | None:
    return Tenant._make(rows[0]) if rows else None
