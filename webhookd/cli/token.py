"""`webhookd token`: who may use the HTTP API."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from webhookd.cli.options import AsJson, ConfigFile, Usage, dsn_for, ran, who
from webhookd.cli.tables import Table, say, show, show_json
from webhookd.errors import WebhookdError
from webhookd.ids import new_id
from webhookd.policy.access import CAPABILITIES, ROLES
from webhookd.store import endpoints, tenants
from webhookd.store import tokens as store
from webhookd.store.database import Database
from webhookd.store.listings import Listings
from webhookd.store.tokens import New, Token
from webhookd.units import duration, quoted

token = typer.Typer(help="Say who may use the HTTP API.", no_args_is_help=True)
LONGEST = 100 * 366 * 86_400.0  # seconds, which is for ever


@token.command("new")
def new(
    role: Annotated[str, typer.Argument(metavar="ROLE", help=f"{', '.join(ROLES)}.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")],
    config: ConfigFile = None,
    tenant: Annotated[str | None, typer.Option(metavar="ID", help="See only this application: its uid or id.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="NAME", help="With the role poll: the endpoint that it polls.")
    ] = None,
    capability: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What a portal's may do; as often as you like.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help='How long it counts, such as "90d"; else until it is revoked.')
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, this once.

    For example: `webhookd token new admin backend`. It is on standard output, and what it is on standard error.
    """
    capabilities = tuple(capability or ())
    _check(role, name, tenant, capabilities, endpoint)
    text, id_ = store.new_token(), new_id("tok_")
    ran(_new(config, id_, text, New(role, name, who(), tenant, capabilities, _seconds(expires)), endpoint))
    if as_json:
        show_json({"id": id_, "token": text})
        return
    say(text)
    say(f"{id_}: {role}, {name}; it is shown this once. `webhookd token revoke {id_}` ends it", err=True)


def _check(role: str, name: str, tenant: str | None, capabilities: tuple[str, ...], endpoint: str | None) -> None:
    if role not in ROLES:
        raise Usage(f"ROLE: {quoted(role)} is none; write one of {', '.join(ROLES)}")
    if not name.strip() or len(name) > 256 or "\0" in name:
        raise Usage("NAME: write what it is for, in up to 256 characters")
    if unknown := next((each for each in capabilities if each not in CAPABILITIES), None):
        raise Usage(f"--capability: {quoted(unknown)} is none; write one of {', '.join(CAPABILITIES)}")
    if role == "portal" and tenant is None:
        raise Usage("--tenant is wanted with the role portal")
    if role == "poll" and (tenant is None or endpoint is None):
        raise Usage("--tenant and --endpoint are wanted with the role poll")
    if role != "poll" and endpoint is not None:
        raise Usage("--endpoint goes with the role poll")
    if role != "portal" and capabilities:
        raise Usage("--capability goes with the role portal")


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return min(duration(text), LONGEST)
    except ValueError as error:
        raise Usage(f"--expires: {error}") from None


async def _new(config: Path | None, id_: str, text: str, wanted: New, endpoint: str | None) -> None:
    async with Database(dsn_for(config) or None, size=1) as database:
        if wanted.tenant is not None:
            found = await tenants.find(database, wanted.tenant)
            if found is None:
                raise WebhookdError(f"there is no application {quoted(wanted.tenant)}: make it by the API first")
            wanted = wanted._replace(tenant=found.id)
            if endpoint is not None:
                its = await endpoints.find(database, found.key, endpoint)
                if its is None or not await Listings(database).polled([its.id]):
                    raise WebhookdError(f"the application has no endpoint {quoted(endpoint)} that is polled")
                wanted = wanted._replace(endpoint=its.id)
        await store.add(database, id_, text, wanted)


@token.command("list")
def list_(
    config: ConfigFile = None,
    ended: Annotated[bool, typer.Option("--all", help="Those that count no longer, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """List tokens, the newest first, without what they are."""
    found = ran(_all(config, ended))
    if as_json:
        return show_json({"tokens": [each._asdict() for each in found]})
    if not found:
        return show(Text("there is no token: `webhookd token new admin NAME` makes one"))
    heads = ("id", "role", "name", "tenant", "made by", "used (UTC)", "until (UTC)")
    return show(Table(heads, map(_row, found), ("made by", "tenant")))


async def _all(config: Path | None, ended: bool) -> list[Token]:
    async with Database(dsn_for(config) or None, size=1) as database:
        return await store.all_of(database, ended=ended)


def _row(each: Token) -> tuple[object, ...]:
    role = f"{each.role}: {', '.join(each.capabilities)}" if each.capabilities else each.role
    return each.id, role, each.name, each.tenant, each.by, each.used_at, each.revoked_at or each.expires_at


@token.command("revoke")
def revoke(
    id_: Annotated[str, typer.Argument(metavar="ID", help="As `webhookd token list` has it.")],
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Have a token count no longer, from a second from now."""
    if not ran(_revoke(config, id_)):
        raise WebhookdError(f"there is no token {quoted(id_)} that counts: `webhookd token list` has them")
    if as_json:
        show_json({"revoked": id_})
    else:
        say(f"{id_} counts no longer")


async def _revoke(config: Path | None, id_: str) -> bool:
    async with Database(dsn_for(config) or None, size=1) as database:
        return await store.revoke(database, id_, who())
