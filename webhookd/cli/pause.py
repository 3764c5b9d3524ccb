"""`webhookd pause`, `resume` and `enable`: an operator's word about endpoints, which no reload overrides."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import orjson
import typer

from webhookd.cli.completion import endpoint_names
from webhookd.cli.listings import chosen, sent_to
from webhookd.cli.options import AsJson, ConfigFile, Usage, dsn_for, ran, who
from webhookd.cli.tables import counted, inert, show_json, tell
from webhookd.engine.dispatch.queues import host_of
from webhookd.errors import WebhookdError
from webhookd.store.database import Database
from webhookd.store.listings import EndpointLine, Listings
from webhookd.store.parking import ParkingStore

SHOWN = 20  # names that are printed; --json has all

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME]...", help="NAME or TENANT/NAME, several if you like.", autocompletion=endpoint_names
    ),
]
OfTenant = Annotated[
    str | None, typer.Option("--tenant", help='All of this tenant; "" is one, too.', show_default=False)
]
OfHost = Annotated[
    str | None,
    typer.Option("--host", metavar="HOST", help='All at this host, such as "hooks.example.com".', show_default=False),
]
All = Annotated[bool, typer.Option("--all", help="All there are.")]
Change = Callable[[ParkingStore, Sequence[int], str], Awaitable[Sequence[int]]]


def pause(
    names: Names = None,
    tenant: OfTenant = None,
    host: OfHost = None,
    everything: All = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Send nothing to endpoints until they are resumed.

    What arrives is kept. Within a second no daemon starts another request to them. The three days stand still, and
    nothing is lost as long as [retention] events keeps it.
    """
    _change(names, tenant, host, everything, config, as_json, ParkingStore.pause, "paused", "paused already")


def resume(
    names: Names = None,
    tenant: OfTenant = None,
    host: OfHost = None,
    everything: All = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Go on sending to endpoints that were paused.

    What arrived meanwhile is sent, as fast as the endpoint takes it. One that is disabled stays so: `webhookd enable`.
    """
    _change(names, tenant, host, everything, config, as_json, ParkingStore.resume, "resumed", "not paused")


def enable(
    names: Names = None,
    tenant: OfTenant = None,
    host: OfHost = None,
    everything: All = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Send again to endpoints that were disabled.

    They are owed what comes from now on; what they missed, `webhookd replay --state missed` sends. One that is paused
    stays so. For example: `webhookd enable orders`.
    """
    _change(names, tenant, host, everything, config, as_json, ParkingStore.enable, "enabled", "not disabled")


def _change(
    names: Sequence[str] | None,
    tenant: str | None,
    host: str | None,
    everything: bool,
    config: Path | None,
    as_json: bool,
    change: Change,
    done: str,
    before: str,
) -> None:
    if [bool(names), tenant is not None, host is not None, everything].count(True) != 1:
        raise Usage("say which endpoints: NAME..., --tenant TENANT, --host HOST or --all")
    rows, unchanged = ran(_changed(dsn_for(config), names or (), tenant, host, change))
    changed, others = [row.label for row in rows], [row.label for row in unchanged]
    if as_json:
        return show_json({done: changed, "unchanged": others})
    tell(f"{done} {_some(changed)}" if changed else f"nothing to do: {_some(others)} {_are(others)} {before}")
    if changed and others:
        tell(f"{_some(others)} {_are(others)} {before}")
    disabled = [row.label for row in unchanged if done == "resumed" and row.disabled_at is not None]
    if disabled:
        tell(f"{_some(disabled)} {_are(disabled)} disabled: `webhookd enable` ends that")
    probed = [row.label for row in unchanged if row.fails and row.paused_at is None and row.removed_at is None]
    if probed:  # who resumes such a one wants to see it tried
        fail = "fails, and is" if len(probed) == 1 else "fail, and are"
        tell(f"{_some(probed)} {fail} probed without that: `webhookd endpoints show NAME` says when")
    return None


async def _changed(
    dsn: str, names: Sequence[str], tenant: str | None, host: str | None, change: Change
) -> tuple[list[EndpointLine], list[EndpointLine]]:
    """Those that changed, and those that did not need to."""
    async with Database(dsn or None, size=1) as database:
        listings = Listings(database)
        if names:
            known = await listings.names()
            numbers = {chosen(known, name) for name in names}
        rows = [row for row in await listings.endpoints() if row.removed_at is None or (names and row.id in numbers)]
        if names:
            rows = [row for row in rows if row.id in numbers]
        elif tenant is not None:
            rows = [row for row in rows if row.tenant == tenant]
        elif host is not None:
            rows = [row for row in rows if _is_at(row, host)]
        sent = await sent_to(database, {row.id: (row.tenant, row.name) for row in rows}, [row.id for row in rows])
        rows = [row for row in rows if row.id in sent]
        if not rows:
            raise WebhookdError("there is no such endpoint: `webhookd endpoints list` shows all")
        changed = set(await change(ParkingStore(database), [row.id for row in rows], who()))
    return [row for row in rows if row.id in changed], [row for row in rows if row.id not in changed]


def _is_at(row: EndpointLine, host: str) -> bool:
    """True when the endpoint is at this host, which may be given with its port."""
    url = _spec(row).get("url", "")
    return host.lower() in (host_of(url), urlsplit(url).hostname)


def _spec(row: EndpointLine) -> dict[str, Any]:
    spec: dict[str, Any] = orjson.loads(row.spec)
    return spec


def _are(labels: Sequence[str]) -> str:
    return "is" if len(labels) == 1 else "are"


def _some(labels: Sequence[str]) -> str:
    shown = ", ".join(map(inert, labels[:SHOWN]))
    more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    return f"{counted(len(labels), 'endpoint')} ({shown}{more})" if len(labels) > 1 else shown
