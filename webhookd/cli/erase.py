"""`webhookd erase`: what events say is gone, for those who ask to be forgotten."""

from typing import Annotated

import typer

from webhookd.cli.options import AsJson, ConfigFile, Usage, dsn_for, ran, who
from webhookd.cli.tables import counted, show_json, tell
from webhookd.errors import WebhookdError
from webhookd.store.database import Database
from webhookd.store.erasure import Erased, pieces
from webhookd.units import quoted


def erase(
    config: ConfigFile = None,
    tenant: Annotated[
        str | None, typer.Option(help='Whose events; "" for those without a tenant.', show_default=False)
    ] = None,
    event: Annotated[str | None, typer.Option(metavar="EVENT_ID", help="One event.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase what the events of a tenant say, or one event.

    That is payloads, metadata, answers and what is owed; that attempts were made stays. As the owner of the schema. It
    may be done again, and while daemons run. Exit code 1 when there is no such event.
    """
    if (tenant is None) == (event is None):
        raise Usage("name what to erase: --tenant TENANT, or --event EVENT_ID")
    found = ran(_erase(dsn_for(config), tenant, event, dry_run))
    if event is not None and not found.events:
        raise WebhookdError(
            f"the outbox has no event {quoted(event)}: it was erased before, was never committed, or is past retention"
        )
    if as_json:
        show_json({"erased": not dry_run, **found._asdict()})
        return
    events, answers = counted(found.events, "event"), counted(found.responses, "answer")
    owed = counted(found.deliveries, "delivery", "deliveries")
    tell(f"{'would erase' if dry_run else 'erased'} {events}, {owed} of the backlog and {answers}")


async def _erase(dsn: str, tenant: str | None, event: str | None, dry_run: bool) -> Erased:
    total = Erased()
    async with Database(dsn or None, size=1) as database:
        async for piece in pieces(database, who(), tenant=tenant, event_id=event, dry_run=dry_run):
            total = total + piece
    return total
