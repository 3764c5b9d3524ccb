"""The same question once a second: drawn anew on a terminal, a line each elsewhere, until Ctrl-C."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from webhookd.cli.options import on_stop_signals
from webhookd.cli.tables import inert, say
from webhookd.errors import StoreUnavailable
from webhookd.store.database import Database
from webhookd.tasks import unless

T = TypeVar("T")
View = Callable[[T | StoreUnavailable], None]
SECONDS = 1.0


async def watch(dsn: str, ask: Callable[[Database], Awaitable[T]], view: View[T]) -> None:
    """Show each answer, or why there is none, until a signal comes; without a first answer it is an error."""
    stopped = asyncio.Event()
    on_stop_signals(stopped.set, stopped.set)
    async with Database(dsn or None, size=1) as database:
        await unless(stopped, _repeat(database, ask, view))


async def _repeat(database: Database, ask: Callable[[Database], Awaitable[T]], view: View[T]) -> None:
    view(await ask(database))
    while True:
        await asyncio.sleep(SECONDS)
        try:
            found: T | StoreUnavailable = await ask(database)
        except StoreUnavailable as error:
            found = error
        view(found)


@contextmanager
def drawn(draw: Callable[[T], RenderableType]) -> Iterator[View[T]]:
    """A picture that each answer replaces; the terminal is as before when the block ends."""
    with Live(console=Console(highlight=False), auto_refresh=False) as live:

        def view(found: T | StoreUnavailable) -> None:
            shown = Text(inert(str(found)), "red") if isinstance(found, StoreUnavailable) else draw(found)
            live.update(shown, refresh=True)

        yield view


@contextmanager
def printed(line: Callable[[T], str]) -> Iterator[View[T]]:
    """A line of text for each answer; trouble goes to standard error."""
    yield (
        lambda found: say(f"webhookd: {found}", err=True) if isinstance(found, StoreUnavailable) else say(line(found))
    )
