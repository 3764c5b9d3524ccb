"""`webhookd audit`: who has done what, newest first."""

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.text import Text

from webhookd.cli.listings import CENTURY, Limit, Since
from webhookd.cli.options import AsJson, ConfigFile, Usage, dsn_for, ran
from webhookd.cli.tables import Table, cell, show, show_json
from webhookd.store import documents
from webhookd.store.audit import Deed, Wanted, audited
from webhookd.store.database import Database
from webhookd.units import duration


def audit(
    config: ConfigFile = None,
    action: Annotated[str | None, typer.Option(metavar="ACTION", help='Only this, such as "pause".')] = None,
    subject: Annotated[
        str | None, typer.Option("--of", metavar="SUBJECT", help="Only to this endpoint, event or tenant.")
    ] = None,
    since: Since = None,
    limit: Limit = 50,
    before: Annotated[
        int | None, typer.Option(min=1, max=2**63 - 1, metavar="NUMBER", help="Go on after a page.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say who has done what, the newest first.

    What changes what is sent leaves a row, in the same transaction: pauses and their ends, what was sent again, erased,
    taken over or let go. It is kept for 90 days. For example: `webhookd audit --of orders --since 7d`.
    """
    try:
        seconds = None if since is None else min(duration(since), CENTURY)
    except ValueError as error:
        raise Usage(f"--since: {error}") from None
    found = ran(_ask(config, Wanted(limit + 1, before, action, subject, seconds)))
    page = found[:limit]
    more = page[-1].id if len(found) > limit else None
    if as_json:
        return show_json({"audit": [documents.deed(deed) for deed in page], "more": more})
    if not page:
        return show(Text("nothing found"))
    rows = ((deed.at, deed.who, deed.role, deed.action, cell(deed.subject, most=None), _change(deed)) for deed in page)
    show(Table(("at (UTC)", "who", "role", "action", "of", "change"), rows, ("role", "change")))
    if more is not None:
        show(Text(f"more: --before {more}", "dim"))
    return None


async def _ask(config: Path | None, wanted: Wanted) -> list[Deed]:
    async with Database(dsn_for(config) or None, size=1) as database:
        return await audited(database, wanted)


def _change(deed: Deed) -> str:
    """What was, and what is."""
    before, after = (
        ", ".join(f"{key} {_plain(value)}" for key, value in _json(side).items()) if side else ""
        for side in (deed.before, deed.after)
    )
    return f"{before} → {after}".strip() if before else after


def _plain(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _json(side: bytes) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(side)
    return found
