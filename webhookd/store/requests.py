"""What was answered to requests that may come again, for 12 hours: see docs/api.md, "The same request twice"."""

from typing import NamedTuple

from webhookd.store.statements import QUERIES
from webhookd.store.tenants import Asking


class Answered(NamedTuple):
    """The hash of the body that it had, the status of the answer, and the id of what was made."""

    body: bytes
    status: int
    made: str | None


def number(key: bytes) -> int:
    """Which lock is that of a request."""
    return int.from_bytes(key[:8], signed=True)


async def begin(asking: Asking, who: str, key: bytes | None) -> bool:
    """Say who this transaction is of. False when another one of this very request is under way."""
    return bool((await asking.fetch(QUERIES["request_begin"], who, None if key is None else number(key)))[0][0])


async def answered(asking: Asking, key: bytes) -> Answered | None:
    """What was answered, if it has been; after `begin`, so that it stays so until the transaction ends."""
    rows = await asking.fetch(QUERIES["request_answered"], key)
    return Answered._make(rows[0]) if rows else None


async def keep(asking: Asking, key: bytes, answer: Answered) -> None:
    """This is what is answered."""
    await asking.fetch(QUERIES["request_keep"], key, *answer)
