"""`webhookd tail`: attempts as they are recorded, until Ctrl-C."""

import asyncio
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import Annotated, Final

import typer
from rich.text import Text

from webhookd.cli.listings import OfEndpoint, answer, attempt_document, chosen, event_id, numbered, response_lines
from webhookd.cli.options import AsJson, ConfigFile, dsn_for, on_stop_signals, ran
from webhookd.cli.tables import GAP, cell, counted, show, show_json, tell
from webhookd.cli.watch import waiting
from webhookd.errors import SchemaMismatch, StoreUnavailable
from webhookd.store.database import Database
from webhookd.store.listings import NOTHING, AttemptLine, Listings, Names, label_of
from webhookd.tasks import cancelled_by

SECONDS: Final = 0.5  # between two looks
RESTRAINT, PAUSE_MOST = 10.0, 30.0  # times what a look took, until the next; seconds
MOST: Final = 1_000  # attempts of a look
LATE: Final = 330.0  # seconds after which an attempt is recorded that began: the longest timeout is five minutes
REMEMBERED: Final = 20_000  # attempts that were shown

Key = tuple[datetime, int, int, int]


class Tail:
    """Asks again and again what has been recorded since; each attempt is found once.

    `left_out`: how many more there were in the last look. `is_elsewhere`: it met a server whose transactions have lower
    numbers, as one that was restored has, and went on from there.
    """

    def __init__(self, database: Database, endpoint: str | None, *, failed: bool, responses: bool) -> None:
        self._listings = Listings(database)
        self._endpoint = endpoint
        self._endpoint_id: int | None = None
        self._failed, self._responses = failed, responses
        self._since = NOTHING
        self._looked_at: float | None = None
        self._shown: dict[Key, None] = {}  # since erasing what an answer said writes its row anew
        self.names: Names = {}
        self.left_out = 0
        self.is_elsewhere = False

    async def look(self, most: int) -> list[AttemptLine]:
        """What is new, oldest first; the newest so many."""
        if not self.names:
            self.names = await self._listings.names()
            if self._endpoint is not None:
                self._endpoint_id = chosen(self.names, self._endpoint)
        now = time.monotonic()
        late = LATE if self._looked_at is None else LATE + now - self._looked_at
        found = await self._listings.recorded(
            self._since, self._endpoint_id, most, late, failed=self._failed, responses=self._responses
        )
        if any(row.endpoint_id not in self.names for row in found.rows):
            self.names = await self._listings.names()
        # From here on nothing can fail, or what was found would be lost.
        self.is_elsewhere = _next(found.upto) < _next(self._since)
        self._since, self._looked_at, self.left_out = found.upto, now, found.left_out
        rows = {(row.at, row.event.id, row.endpoint_id, row.attempt): row for row in found.rows}
        new = [row for key, row in rows.items() if key not in self._shown]
        self._shown |= dict.fromkeys(rows)
        for key in list(islice(self._shown, max(len(self._shown) - REMEMBERED, 0))):
            del self._shown[key]
        return new


def _next(snapshot: str) -> int:
    """The number of the first transaction that it could not see."""
    return int(snapshot.split(":")[1])


def tail(
    config: ConfigFile = None,
    endpoint: OfEndpoint = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only those that failed.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, max=MOST, help="Begin with so many of the last five minutes.")
    ] = 10,
    show_response: Annotated[
        bool, typer.Option("--show-response", help="Also the first bytes of failed answers.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show attempts as they are recorded, until Ctrl-C.

    With --json, a document a line. For example: webhookd tail --failed --endpoint orders
    """

    dsn = dsn_for(config)

    async def follow() -> None:
        stopped = asyncio.Event()
        on_stop_signals(stopped.set, stopped.set)
        async with Database(dsn or None, size=1) as database:
            found = Tail(database, endpoint, failed=failed, responses=show_response)
            await cancelled_by(stopped, _show_all(found, lines, with_response=show_response, as_json=as_json))

    ran(follow())


async def _show_all(found: Tail, first: int, *, with_response: bool, as_json: bool) -> None:
    rows = await found.look(first)
    found.left_out, away, pause = 0, None, SECONDS
    while True:
        for row in rows:
            if as_json:
                show_json(attempt_document(row, found.names, with_response), indent=False)
            else:
                show(*_shown(row, found.names))
            await asyncio.sleep(0)
        await asyncio.sleep(pause)
        began = time.monotonic()
        rows, away = await _more(found, away)
        pause = max(SECONDS, min((time.monotonic() - began) * RESTRAINT, PAUSE_MOST))


async def _more(found: Tail, away: datetime | None) -> tuple[list[AttemptLine], datetime | None]:
    """What is new, and since when the database has been away, if it is; what is missing is said on standard error."""
    try:
        rows = await found.look(MOST)
    except (StoreUnavailable, SchemaMismatch) as error:
        if isinstance(error, SchemaMismatch) and error.final:
            raise
        if away is None:
            away = datetime.now()
            tell(f"webhookd: {waiting(str(error), away)}", err=True)
        return [], away
    if away is not None:
        tell("webhookd: the database answers again", err=True)
    if found.is_elsewhere:
        tell("webhookd: the database is another, or was restored: what it has of before is left out", err=True)
    if found.left_out:
        tell(f"webhookd: {counted(found.left_out, 'older attempt')} left out, as there were too many", err=True)
    return rows, None


def _shown(row: AttemptLine, names: Names) -> Iterator[Text]:
    """A line, and the answer below it."""
    took = "" if row.ms is None else f"{row.ms} ms"
    yield Text(GAP).join(
        (
            cell(f"{row.at:%H:%M:%S}.{row.at.microsecond // 1000:03}Z", "dim"),
            _padded(answer(row.code, row.error, ok=row.ok), 3),
            cell(f"{took:>8}"),
            cell(label_of(names, row.endpoint_id), "bold", None),
            event_id(row),
            cell(row.event.type),
            cell(f"attempt {numbered(row)}", "dim" if row.attempt == 1 else "yellow"),
        )
    )
    if row.response is not None:
        yield from response_lines(row.response)


def _padded(text: Text, width: int) -> Text:
    return Text.assemble(text, " " * (width - text.cell_len))
