"""`webhookd discard`: what nobody wants any longer is not sent."""

import asyncio
import sys
import time
from datetime import datetime
from typing import Annotated, Final

import typer

from webhookd.cli.listings import OfEndpoint, chosen, type_regex
from webhookd.cli.options import AsJson, ConfigFile, Usage, dsn_for, past, ran, who
from webhookd.cli.tables import counted, show_json, tell
from webhookd.errors import WebhookdError
from webhookd.policy.matching import ANY_TENANT
from webhookd.store.database import Database
from webhookd.store.discards import Count, DiscardStore, Wanted
from webhookd.store.listings import Listings

LOOK_SECONDS: Final = 0.5
TELL_SECONDS: Final = 2.0  # between two lines of progress
LOOKED_FOR_SECONDS: Final = 600.0


def discard(
    type_: Annotated[
        str | None, typer.Option("--type", metavar="PATTERN", help='Such as "order.created" or "order.*".')
    ] = None,
    tenant: Annotated[str | None, typer.Option(help='Of this tenant; "" is one, too.', show_default=False)] = None,
    endpoint: OfEndpoint = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help='Inserted since then: "2h" ago, or a time with its offset.')
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="And no later than that; else than now.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, and do not count.")] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Send nothing more of certain events that there are.

    What waits, is to be tried again, is scheduled, or stands before a cursor ends `rejected: discarded`, within two
    seconds; the rows of a large backlog take longer. Events count by the beginning of their transaction, and those of
    later ones are not touched.
    `webhookd replay --state discarded` takes it back. For example: `webhookd discard --type order.created --since 2h`.
    """
    if not (yes or dry_run) and (as_json or not sys.stdin.isatty()):
        raise Usage("nobody can be asked here: give --yes, or --dry-run")
    span = _span(type_, tenant, endpoint, since, until)
    dsn = dsn_for(config)
    wanted = ran(_wanted(dsn, type_, tenant, endpoint, *span))
    if dry_run or not yes:
        count = ran(_count(dsn, wanted))
        if dry_run:
            return show_json(count._asdict()) if as_json else tell(f"would cover {_words(count)}")
        tell(f"This covers {_words(count)}. What was delivered stays so, and what is under way ends as it does.")
        if not typer.confirm("Go on?"):
            raise WebhookdError("nothing was done")
    number, ended, is_over = ran(_discard(dsn, wanted, quiet=as_json))
    if as_json:
        return show_json({"discard": number, "ended": ended, "done": is_over})
    rows = counted(ended, "delivery", "deliveries")
    if is_over:
        return tell(f"discarded; {rows} of the backlog ended, and what waits elsewhere is not sent")
    return tell(f"discarded; {rows} of the backlog ended so far, and daemons go on with that")


def _span(
    type_: str | None, tenant: str | None, endpoint: str | None, since: str | None, until: str | None
) -> tuple[datetime | None, datetime | None]:
    """The span, once all that is said makes sense."""
    if [type_, tenant, endpoint, since].count(None) == 4:
        raise Usage("say what: --type, --tenant, --endpoint or --since, or several")
    if type_ is not None:
        type_regex(type_)
    if tenant == ANY_TENANT:
        raise Usage("--tenant: events have a tenant, and it is not '*'; leave it out for all of them")
    first, last = (
        None if text is None else past(option, text) for option, text in (("--since", since), ("--until", until))
    )
    if first is not None and last is not None and last <= first:
        raise Usage("--until is not after --since")
    return first, last


async def _wanted(
    dsn: str,
    type_: str | None,
    tenant: str | None,
    endpoint: str | None,
    since: datetime | None,
    until: datetime | None,
) -> Wanted:
    number = None
    if endpoint is not None:
        async with Database(dsn or None, size=1) as database:
            number = chosen(await Listings(database).names(), endpoint)
    return Wanted(type_, tenant, number, since, until)


async def _count(dsn: str, wanted: Wanted) -> Count:
    async with Database(dsn or None, size=1) as database:
        return await DiscardStore(database).count(wanted)


async def _discard(dsn: str, wanted: Wanted, *, quiet: bool) -> tuple[int, int, bool]:
    """Its number, how many rows it has ended, and whether those are all. We do what daemons would, if none does."""
    async with Database(dsn or None, size=1) as database:
        store = DiscardStore(database)
        number = await store.discard(wanted, who())
        began = told = time.monotonic()
        while True:
            more = await store.step(number)
            ended, is_over = await store.progress(number)
            now = time.monotonic()
            if is_over or now > began + LOOKED_FOR_SECONDS:
                return number, ended, is_over
            if not quiet and now >= told + TELL_SECONDS:
                told = now
                tell(f"{counted(ended, 'delivery', 'deliveries')} of the backlog ended so far", err=True)
            if not more:
                await asyncio.sleep(LOOK_SECONDS)


def _words(count: Count) -> str:
    parked = f"{count.parked}{'+' if count.parked_more else ''} before cursors"
    owed = counted(count.owed, "delivery", "deliveries")
    return f"{counted(count.events, 'event')}: {count.waiting} not handed out yet, {owed} of the backlog, {parked}"
