"""The same question once a second: drawn anew on a terminal, a line each elsewhere, until Ctrl-C."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TypeVar

from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from webhookd.cli.options import on_stop_signals
from webhookd.cli.tables import Fitted, inert, live_console, say, tell
from webhookd.errors import SchemaMismatch, StoreUnavailable, WebhookdError
from webhookd.store.database import Database
from webhookd.tasks import cancelled_by

T = TypeVar("T")
View = Callable[[T | WebhookdError], None]
SECONDS = 1.0
AWAY = "The database does not answer"  # what follows in such an error are the words of whoever found it out


async def watch(dsn: str, ask: Callable[[Database], Awaitable[T]], view: View[T]) -> None:
    """Show each answer, or why there is none, until a signal comes; without a first answer it is an error."""
    stopped = asyncio.Event()
    on_stop_signals(stopped.set, stopped.set)
    async with Database(dsn or None, size=1) as database:
        await cancelled_by(stopped, _repeat(database, ask, view))


async def _repeat(database: Database, ask: Callable[[Database], Awaitable[T]], view: View[T]) -> None:
    view(await ask(database))
    since: datetime | None = None
    while True:
        await asyncio.sleep(SECONDS)
        try:
            found: T | WebhookdError = await ask(database)
            since = None
        except (StoreUnavailable, SchemaMismatch) as error:
            if isinstance(error, SchemaMismatch) and error.final:
                raise
            since = since or datetime.now()
            found = StoreUnavailable(waiting(str(error), since))
        view(found)


def waiting(trouble: str, since: datetime) -> str:
    """What is so while there is no answer, in a sentence."""
    what = AWAY if trouble.startswith(AWAY) else trouble.rstrip(".")
    return f"{what}, since {since:%H:%M:%S}; asking again each second, until Ctrl-C."


@contextmanager
def drawn(draw: Callable[[T], RenderableType]) -> Iterator[View[T]]:
    """A picture that each answer replaces; the terminal is as before when the block ends."""
    with Live(console=live_console(), auto_refresh=False) as live:

        def view(found: T | WebhookdError) -> None:
            shown = Fitted([Text(inert(str(found)), "red")]) if isinstance(found, WebhookdError) else draw(found)
            live.update(shown, refresh=True)

        yield view


@contextmanager
def printed(line: Callable[[T], str]) -> Iterator[View[T]]:
    """A line of text for each answer; trouble goes to standard error."""
    yield (lambda found: tell(f"webhookd: {found}", err=True) if isinstance(found, WebhookdError) else say(line(found)))
