"""Endpoints as the API makes, changes and ends them, beside those of files."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from webhookd.message.kept import Kept
from webhookd.message.sealing import Sealed
from webhookd.store.statements import QUERIES
from webhookd.store.tenants import Asking, Wanted

PAGE: Final = 500  # endpoints that are read at a time: thousands of rows would stall the loop
FEW: Final = 20  # that are taken apart on the loop


class Made(NamedTuple):
    """A row of `webhookd.endpoint`; `spec` and `metadata` are JSON."""

    id: int
    name: str
    uid: str | None
    source: str  # file | api
    spec: bytes
    metadata: bytes
    created_at: datetime
    updated_at: datetime
    disabled_at: datetime | None
    paused_at: datetime | None
    url_key: str | None  # with which its URL is sealed, where it has a query
    url_sealed: bytes | None


async def lock(asking: Asking) -> None:
    """Be the only one who changes endpoints, until the transaction ends."""
    await asking.fetch(QUERIES["sync_lock"])


async def find(asking: Asking, tenant: str, id_or_uid: str) -> Made | None:
    """The tenant's own with this id or uid, or of a file with this name."""
    rows = await asking.fetch(QUERIES["endpoint"], tenant, id_or_uid)
    return Made._make(rows[0]) if rows else None


async def page(asking: Asking, tenant: str, wanted: Wanted) -> list[Made]:
    """Those of a tenant by their names, one more than are asked for where there are more."""
    query = QUERIES["endpoints_falling" if wanted.descending else "endpoints_rising"]
    return [Made._make(row) for row in await asking.fetch(query, tenant, wanted.after, wanted.limit + 1)]


async def count(asking: Asking, tenant: str) -> int:
    """How many the tenant has made."""
    return int((await asking.fetch(QUERIES["endpoints_made"], tenant))[0][0])


async def add(asking: Asking, tenant: str, name: str, uid: str | None, spec: bytes, metadata: bytes) -> Made | None:
    """Make one, after `lock`; None when another has the uid."""
    rows = await asking.fetch(QUERIES["endpoint_add"], tenant, name, uid, spec, metadata)
    return Made._make(rows[0]) if rows else None


async def change(asking: Asking, id_: int, uid: str | None, spec: bytes, metadata: bytes) -> Made | None:
    """Have it be like this, after `lock`."""
    rows = await asking.fetch(QUERIES["endpoint_change"], id_, uid, spec, metadata)
    return Made._make(rows[0]) if rows else None


async def end(asking: Asking, id_: int) -> None:
    """End it, what it is owed, and its secrets; after `lock`."""
    await asking.fetch(QUERIES["endpoint_end"], id_)


async def end_all(asking: Asking, tenant: str) -> list[int]:
    """End all that a tenant has made; after `lock`."""
    ids = [row[0] for row in await asking.fetch(QUERIES["endpoints_of_tenant"], tenant)]
    for id_ in ids:
        await end(asking, id_)
    return ids


async def enable(asking: Asking, id_: int, who: str) -> None:
    """End a disable; before `lock`."""
    await asking.fetch(QUERIES["enable"], [id_], who)


async def changed(asking: Asking, *ids: int) -> None:
    """Let all daemons look at these: from here on who reads an event that is committed later knows of this."""
    await asking.fetch(QUERIES["endpoint_changed"], ids)


async def seal(asking: Asking, id_: int, values: Iterable[tuple[str, Sealed]], keep: Sequence[str] = ()) -> None:
    """Have these be all that is sealed of it, beside secrets and those names that are to be kept."""
    rows = list(values)
    await asking.fetch(
        QUERIES["seal_values"],
        id_,
        [name for name, _ in rows],
        [sealed.key_id for _, sealed in rows],
        [sealed.content for _, sealed in rows],
        list(keep),
    )


async def sealed(asking: Asking, ids: Sequence[int]) -> dict[int, dict[str, Sealed]]:
    """What is sealed of these."""
    found: dict[int, dict[str, Sealed]] = {}
    for id_, name, key_id, content in await asking.fetch(QUERIES["sealed_values"], list(ids)):
        found.setdefault(id_, {})[name] = Sealed(key_id, content)
    return found


async def secrets(asking: Asking, id_: int) -> list[tuple[Sealed, Any]]:
    """What it signs with, the newest first, and until when."""
    rows = await asking.fetch(QUERIES["secrets_of"], id_)
    return [(Sealed(key_id, content), until) for key_id, content, until in rows]


async def sign(asking: Asking, id_: int, first: Sealed) -> None:
    """Sign with this one."""
    await asking.fetch(QUERIES["add_secret"], id_, *first, None)


async def rotate(asking: Asking, id_: int, new: Sealed, seconds: float) -> None:
    """Sign with this one, and for so many seconds with those before."""
    await asking.fetch(QUERIES["rotate_secret"], id_, *new, seconds)


async def page_of_changes(
    asking: Asking, since: tuple[int, int], own: Sequence[int] | None = None, *, most: int | None = None
) -> tuple[int, list[Kept], tuple[int, int] | None]:
    """What has changed behind this version and number, so many at most: which version that is, and where to go on.

    With `own`, all that are there but for those.
    """
    most = PAGE if most is None else most
    rows = await asking.fetch(QUERIES["changed_endpoints"], *since, own, most)
    found = [row for row in rows if row[1] is not None]
    kept = await asyncio.to_thread(_kept, found) if len(found) > FEW else _kept(found)
    return rows[0][0], kept, (found[-1][6], found[-1][1]) if len(found) == most else None


async def kept(asking: Asking, id_: int) -> Kept | None:
    """The endpoint of this number, without what is sealed of it."""
    rows = await asking.fetch(QUERIES["endpoint_by_number"], id_)
    if not rows:
        return None
    tenant, name, source, spec = rows[0]
    return Kept(id_, tenant, name, source, False, json.loads(spec), (), {})


def _kept(rows: Iterable[Any]) -> list[Kept]:
    found = []
    for _, id_, tenant, name, source, is_gone, _, spec, signing, secrets_, untils, names, value_keys, contents in rows:
        signed = [(Sealed(key, content), until) for key, content, until in zip(signing, secrets_, untils, strict=True)]
        values = {each: Sealed(key, text) for each, key, text in zip(names, value_keys, contents, strict=True)}
        found.append(Kept(id_, tenant, name, source, is_gone, json.loads(spec), signed, values))
    return found
