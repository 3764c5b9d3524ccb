"""Tokens of the HTTP API, of which only a hash is kept."""

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from webhookd.ids import base62
from webhookd.store.statements import QUERIES
from webhookd.store.tenants import Asking

PREFIX: Final = "whtk_"  # by which scanners know one that has got away
_BYTES, _SIGNS = 32, 43


class Token(NamedTuple):
    """A row of `webhookd.token`; `tenant` is the uid or id of its tenant."""

    id: str
    role: str
    tenant: str | None
    capabilities: tuple[str, ...]
    name: str
    by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None


class New(NamedTuple):
    """What a token is to be; `expires_in` is in seconds, None for ever."""

    role: str
    name: str
    by: str
    tenant: str | None = None  # its id
    capabilities: Sequence[str] = ()
    expires_in: float | None = None
    feature_flags: Sequence[str] = ()
    endpoint: int | None = None  # the only one that it may poll


class Known(NamedTuple):
    """Who has a token that counts; `tenant` is an id."""

    id: str
    role: str
    tenant: str | None
    capabilities: tuple[str, ...]
    name: str
    feature_flags: tuple[str, ...] = ()
    endpoint: int | None = None


def new_token() -> str:
    """A fresh one."""
    return PREFIX + base62(secrets.token_bytes(_BYTES), _SIGNS)


def hash_of(token: str) -> bytes:
    """What is kept of it."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


async def known(asking: Asking, token: str) -> Known | None:
    """Whose this is, if it counts; that it was used is noted once a minute."""
    rows = await asking.fetch(QUERIES["token_known"], hash_of(token))
    if not rows:
        return None
    id_, role, tenant, capabilities, name, flags, endpoint = rows[0]
    return Known(id_, role, tenant, tuple(capabilities), name, tuple(flags), endpoint)


async def add(asking: Asking, id_: str, token: str, new: New) -> None:
    """Have it count."""
    await asking.fetch(
        QUERIES["token_add"], id_, hash_of(token), new.role, new.tenant, list(new.capabilities), new.name, new.by,
        new.expires_in, list(new.feature_flags), new.endpoint,
    )  # fmt: skip


async def all_of(asking: Asking, *, ended: bool = False) -> list[Token]:
    """Those that count, the newest first, and with `ended` the others; 1,000 at most."""
    return [_token(row) for row in await asking.fetch(QUERIES["tokens"], ended)]


async def of_endpoint(asking: Asking, endpoint: int) -> Token | None:
    """The newest of those that count and poll this endpoint."""
    rows = await asking.fetch(QUERIES["token_of_endpoint"], endpoint)
    return _token(rows[0]) if rows else None


async def expire_of_endpoint(asking: Asking, endpoint: int, seconds: float, but: str) -> None:
    """Have those that poll this endpoint, but for one, count for so long at most."""
    await asking.fetch(QUERIES["tokens_expire_of_endpoint"], endpoint, seconds, but)


async def revoke(asking: Asking, id_: str, who: str) -> bool:
    """Have it count no longer; False when there is none that does."""
    return bool(await asking.fetch(QUERIES["token_revoke"], id_, who))


async def expire_all(asking: Asking, tenant: str, seconds: float, who: str) -> None:
    """Have those that let somebody into the portal of this tenant, by its id, count for so long at most."""
    await asking.fetch(QUERIES["tokens_expire"], tenant, seconds, who)


def _token(row: Any) -> Token:
    made = Token._make(row)
    return made._replace(capabilities=tuple(made.capabilities))
