"""Applications that commit events in all the ways that make a log hard to read."""

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta
from typing import TypeAlias

import asyncpg

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
INSERT = (
    "INSERT INTO webhookd.outbox (event_id, payload, type, deliver_after)"
    " SELECT id, payload, $3, now() + $4 FROM unnest($1::text[], $2::json[]) e (id, payload)"
)


class Writers:
    """Connections that commit, roll back, use savepoints and stay open; `committed` is what they know happened."""

    def __init__(
        self,
        dsn: str,
        seed: int,
        *,
        first: int = 0,
        writers: int = 4,
        pause: float = 0.25,
        huge: int = 60,
        long: float = 2.0,
    ) -> None:
        """Writers are numbered from `first`; those of other numbers write other events."""
        self.committed: dict[str, str] = {}  # event id -> payload text
        self._dsn = dsn
        self._seed = seed
        self._numbers = range(first, first + writers)
        self._pause = pause
        self._huge = huge
        self._long = long
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Begin no further transaction."""
        self._stopped.set()

    async def run(self) -> None:
        """Write until stopped."""
        async with asyncio.TaskGroup() as group:
            for number in self._numbers:
                group.create_task(self._write(number))

    async def _write(self, number: int) -> None:
        dice = random.Random(f"{self._seed}-{number}")
        made = 0

        def events(count: int) -> dict[str, str]:
            nonlocal made
            made += count
            return {f"w{number}-{n}": payload(number, n) for n in range(made - count, made)}

        connection = await asyncpg.connect(self._dsn)
        try:
            while not self._stopped.is_set():
                self.committed |= await self._transaction(connection, dice, events)
                await asyncio.sleep(dice.expovariate(1 / self._pause))
        finally:
            await connection.close()

    async def _transaction(
        self, connection: Connection, dice: random.Random, events: Callable[[int], dict[str, str]]
    ) -> dict[str, str]:
        """One transaction, and what it committed."""
        kind = dice.random()
        kept = events(dice.randint(1, 5))
        transaction = connection.transaction()
        await transaction.start()
        await insert(connection, kept)
        if kind < 0.15:  # a part is rolled back, and more follows
            savepoint = connection.transaction()
            await savepoint.start()
            await insert(connection, events(dice.randint(1, 5)))
            await savepoint.rollback()
            async with connection.transaction():
                kept |= await insert(connection, events(dice.randint(1, 5)))
        elif kind < 0.27:
            await transaction.rollback()
            return {}
        elif kind < 0.35:  # its events have small ids and come late
            await asyncio.sleep(dice.uniform(self._long / 4, self._long))
            kept |= await insert(connection, events(2))
        elif kind < 0.45:
            kept |= await insert(connection, events(dice.randint(self._huge // 3, self._huge)))
        await transaction.commit()
        return kept


async def insert(
    connection: Connection, events: dict[str, str], type_: str = "test.event", after: timedelta | None = None
) -> dict[str, str]:
    """Insert them in the connection's transaction."""
    await connection.execute(INSERT, list(events), list(events.values()), type_, after)
    return events


def events_of(first: int, count: int, prefix: str = "e") -> dict[str, str]:
    """Events by id, with their payloads."""
    return {f"{prefix}{n:04}": payload(0, n) for n in range(first, first + count)}


def payload(writer: int, number: int) -> str:
    """JSON text that no parser gives back unchanged."""
    numbers = f'"n": {number}.10,  "writer":{writer}, "big": 123456789012345678901234567890'
    return f'{{{numbers}, "PLANTED": 1, "n": "\\u00e9\\ud83d"}}'
