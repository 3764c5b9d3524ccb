"""Secrets of endpoints that are in the database, sealed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from webhookd.message.sealing import Keyring, Sealed, Unreadable
from webhookd.store import endpoints
from webhookd.store.database import Database
from webhookd.store.migrations import check_schema
from webhookd.store.statements import QUERIES

PAGE = 500


@dataclass(frozen=True, slots=True)
class Kept:
    """A secret, and the moment from which it signs nothing."""

    secret: str = field(repr=False)
    until: datetime | None


class Lost(NamedTuple):
    """A sealed secret that no key of ours opens, and why."""

    endpoint: str
    why: str


class Secrets:
    """Seals what it writes, and opens what it reads."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._database = database
        self._keyring = keyring

    async def add(self, endpoint_id: int, secret: str, others_until: datetime | None) -> None:
        """Give an endpoint another secret; those that it has sign until then, or as long as they would have.

        LookupError when there is no such endpoint.
        """
        sealed = self._keyring.seal(endpoint_id, secret)
        if not await self._database.fetch(QUERIES["add_secret"], endpoint_id, *sealed, others_until):
            raise LookupError(endpoint_id)

    async def of(self, endpoint_id: int) -> list[Kept]:
        """Its secrets that still sign, the newest first. Unreadable when one cannot be opened."""
        rows = await self._database.fetch(QUERIES["secrets_of"], endpoint_id)
        return [Kept(self._keyring.open(endpoint_id, Sealed(*sealed)), until) for *sealed, until in rows]

    async def rekey(self) -> tuple[int, list[Lost]]:
        """Seal with our first key what another has sealed; how many, and which cannot be opened.

        It may be done again, and while others write.
        """
        of_secrets = await self._rekey("sealed", "seal_again", (0, 0), lambda _: "secret")
        of_values = await self._rekey("sealed_values_from", "seal_value_again", (0, ""), str)
        return of_secrets[0] + of_values[0], [*of_secrets[1], *of_values[1]]

    async def _rekey(
        self, rows_of: str, again: str, after: tuple[int, object], name_of: Callable[[object], str]
    ) -> tuple[int, list[Lost]]:
        done, lost = 0, list[Lost]()
        while True:
            async with self._database.transaction() as connection:
                await check_schema(connection)
                await endpoints.lock(connection)
                rows = await connection.fetch(QUERIES[rows_of], *after, PAGE)
                changed = set[int]()
                for endpoint_id, which, key_id, content, label in rows:
                    try:
                        text = self._keyring.open(endpoint_id, Sealed(key_id, content), name_of(which))
                    except Unreadable as why:
                        lost.append(Lost(label, str(why)))
                        continue
                    if key_id != self._keyring.first:
                        sealed = self._keyring.seal(endpoint_id, text, name_of(which))
                        await connection.execute(QUERIES[again], endpoint_id, which, *sealed)
                        changed.add(endpoint_id)
                        done += 1
                if changed:
                    await endpoints.changed(connection, *changed)
            if not rows:
                return done, lost
            after = rows[-1][0], rows[-1][1]
