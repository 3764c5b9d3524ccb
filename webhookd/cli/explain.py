"""`webhookd explain`: who gets an event, who does not and why; what became of it; and what may be called."""

import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import orjson
import typer

from webhookd.cli.emit import json_text, supposed
from webhookd.cli.options import AsJson, ConfigFile, Dev, Usage, dsn_for, environment, loaded, ran
from webhookd.cli.tables import counted, inert, say, show_json, span, tell
from webhookd.config import loader
from webhookd.config.config import Config, egress_of, section
from webhookd.config.mistakes import WITH_DEV, egress_mistake
from webhookd.config.schema import EgressTable
from webhookd.egress.guard import DEV_NETWORKS, address_mistake
from webhookd.errors import ConfigError, WebhookdError
from webhookd.model import Egress, Event
from webhookd.policy.matching import WHY_NOT, Subscriber, why_not
from webhookd.store import documents
from webhookd.store.database import Database
from webhookd.store.discards import DiscardStore
from webhookd.store.documents import UNKNOWN, Explained
from webhookd.store.listings import ASIDE
from webhookd.store.replays import Replays
from webhookd.store.reports import Fate, Reports
from webhookd.store.shots import Resent, resent

SHOWN = 20  # endpoints that do not get it; --json has all


def explain(
    event_id: Annotated[str | None, typer.Argument(metavar="EVENT_ID", help="An event of the outbox.")] = None,
    type_: Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Or any event of this type.")] = None,
    tenant: Annotated[str, typer.Option(help="With --type: whose event it would be.")] = "",
    metadata: Annotated[str | None, typer.Option(metavar="JSON", help="With --type: its labels.")] = None,
    payload: Annotated[str | None, typer.Option(metavar="JSON", help="With --type: what it says.")] = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help="Or whether an endpoint may have this URL.")] = None,
    config: ConfigFile = None,
    dev: Dev = False,
    as_json: AsJson = False,
) -> None:
    """Say who gets an event, and why not others.

    Of an EVENT_ID it also tells what became of it; with --url it says whether an endpoint may have that URL, and why,
    for which [egress] is all it reads of the files.
    Ends with 0 when somebody gets it or the URL may be called, else with 1.
    """
    if [event_id, type_, url].count(None) != 2:
        raise Usage("name one thing to explain: EVENT_ID, --type TYPE or --url URL")
    if type_ is None and (tenant or metadata is not None or payload is not None):
        raise Usage("--tenant, --metadata and --payload go with --type: an EVENT_ID has its own")
    document: Any
    if url is not None:
        document, lines, good = _url(url, _egress(config, dev))
    else:
        _, files = loaded(config, dev, may_be_empty=event_id is not None)  # tenants may have made some
        if event_id is not None:
            found = _of_outbox(event_id, config, files)
        else:
            labels, content = _given("--metadata", metadata), _given("--payload", payload)
            made = _made_by_api(config) if files.api.listen else ()
            found = [_matched(supposed(type_ or "", tenant, labels, content), (), [*files.endpoints, *made])]
        document = [documents.explained(each) for each in found] if event_id else documents.explained(found[0])
        lines = [line for each in found for line in _lines(each)]
        good = any(reason is None for each in found if not each.unreadable for _, reason in each.reasons)
    if as_json:
        show_json(document)
    else:
        tell("\n".join(lines))
    raise typer.Exit(0 if good else 1)


def _given(option: str, text: str | None) -> bytes | None:
    return None if text is None else json_text(option, text.encode(errors="surrogateescape"))


def _made_by_api(config: Path | None) -> Sequence[Subscriber]:
    """What tenants have made; the files are enough for the rest, so a database that is away only leaves these out."""

    async def ask() -> Sequence[Subscriber]:
        async with Database(dsn_for(config) or None, size=1) as database:
            return await Reports(database).made_by_api()

    try:
        return ran(ask())
    except WebhookdError as error:
        say(f"endpoints that the API has made are left out: {error}", err=True)
        return ()


def _of_outbox(event_id: str, config: Path | None, files: Config) -> list[Explained]:
    sees, made, found = ran(_ask(dsn_for(config), event_id, files.endpoints))
    if files.empty and not made and not files.api.listen:
        raise ConfigError([files.empty])
    if not found:
        raise WebhookdError(f"the outbox has no event {event_id!r}: it was never committed, or is past retention")
    return [_matched(event, fates, [*files.endpoints, *made], sees)._replace(**done) for event, fates, done in found]


async def _ask(
    dsn: str, event_id: str, among: Sequence[Subscriber]
) -> tuple[bool, Sequence[Subscriber], list[tuple[Event, list[Fate], dict[str, Any]]]]:
    """Whether we may see metadata, what tenants have made, and of each event what became of it and who did what."""
    async with Database(dsn or None, size=1) as database:
        reports, found = Reports(database), []
        made = await reports.made_by_api()
        for event, fates in await reports.fates(event_id):
            event = await reports.with_payload(event, [*among, *made])
            done = {
                "resent": await resent(database, event.id),
                "replayed": await Replays(database).of(event.id),
                "discarded": await DiscardStore(database).of(event.id),
            }
            found.append((event, fates, done))
        return await reports.sees_metadata(), made, found


def _matched(event: Event, fates: Sequence[Fate], among: Iterable[Subscriber], sees: bool = True) -> Explained:
    """Which of these get the event, of whose metadata nothing is known unless we `see` it."""
    reasons = [(endpoint, why_not(endpoint, event)) for endpoint in among]
    if not sees:
        reasons = [(each, UNKNOWN if why and why.startswith("filter:") else why) for each, why in reasons]
    return Explained(event, fates, reasons)


def _lines(found: Explained) -> Iterator[str]:
    event = found.event
    of = f" of tenant {event.tenant!r}" if event.tenant else ""
    if event.id:
        yield f"event {event.event_id}: {event.type!r}{of}, inserted {event.created_at:%Y-%m-%d %H:%M:%S %Z}"
        yield ""
        yield "what became of it"
        for fate in found.fates:
            yield f"  {inert(_fate(fate))}"
        for each in found.resent:
            yield f"  {inert(_resent(each))}"
        for replay in found.replayed:
            yield f"  {inert(f'{replay.endpoint}: in replay {replay.id}, begun {_when(replay.at)} by {replay.by}')}"
        for said in found.discarded:
            whom = said.endpoint or "all"
            yield f"  {inert(f'{whom}: discarded {_when(said.at)} by {said.by}')}"
        yield ""
    else:
        yield f"an event {event.type!r}{of}, by the files as they are now"
        yield ""
    if found.unreadable:
        yield "no endpoint gets it, since it could not be read; insert what it says anew"
        return
    getting = [endpoint for endpoint, why in found.reasons if why is None]
    # What was looked at last is nearest to a match, and so most likely what the user wonders about.
    others = sorted(
        ((endpoint, why) for endpoint, why in found.reasons if why is not None),
        key=lambda pair: -WHY_NOT.index(pair[1].partition(":")[0]),
    )
    of_files = " by the files as they are now" if event.id else ""
    yield f"{counted(len(getting), 'endpoint gets', 'endpoints get') if getting else 'no endpoint gets'} it{of_files}"
    for endpoint in getting[:SHOWN]:
        yield f"  {endpoint.label}"
    yield from _more(getting)
    yield ""
    yield f"{counted(len(others), 'endpoint does', 'endpoints do')} not"
    width = max((len(endpoint.label) for endpoint, _ in others[:SHOWN]), default=0)
    for endpoint, why in others[:SHOWN]:
        yield f"  {endpoint.label:<{width}}  {why}"
    yield from _more(others)


def _more(shown: Sequence[object]) -> Iterator[str]:
    if len(shown) > SHOWN:
        yield f"  … and {len(shown) - SHOWN} more; --json lists all"


def _fate(fate: Fate) -> str:
    if fate.endpoint is None:
        due = f", due in {span(fate.due_in)}" if fate.due_in is not None and fate.due_in > 0 else ""
        return {
            "waiting": f"waiting: no daemon has taken it yet{due}",
            "sending": "sending: a daemon has it in hand",
            "unmatched": "unmatched: when it was handled, no endpoint was owed it",
            "unreadable": f"unreadable: {fate.error}",
        }.get(fate.state, fate.state)
    if fate.state == "polled":
        return f"{fate.endpoint}: polled, so that who asks for it has it"
    if fate.state in ASIDE:
        return f"{fate.endpoint}: {fate.state} ({fate.error})"
    last = f", last {fate.code or fate.error}" if fate.code or fate.error else ""
    due = "" if fate.due_in is None else f", next try {'now' if fate.due_in <= 0 else f'in {span(fate.due_in)}'}"
    return f"{fate.endpoint}: {fate.state} after {counted(fate.attempts, 'attempt')}{last}{due}"


def _resent(each: Resent) -> str:
    said = "under way" if each.ok is None else f"answered {each.code}" if each.code else each.error
    return f"{each.endpoint}: resent {_when(each.at)} by {each.by}, {said}"


def _when(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"


def _egress(config: Path | None, dev: bool) -> Egress:
    """What the configuration allows; without one, what is allowed by default, or by --dev."""
    try:
        file = loader.find(config, os.environ)
    except ConfigError:
        return egress_of(section(EgressTable, {}, environment(dev), lambda path, origin: "", ""))
    return egress_of(loader.section(file, environment(dev), EgressTable))  # a mistake elsewhere is no matter here


def _url(url: str, egress: Egress) -> tuple[dict[str, Any], list[str], bool]:
    """What the guard thinks of a URL, and of each address of its host."""
    mistake = egress_mistake(url, egress)
    if mistake:
        return {"allowed": False, "why_not": mistake, "addresses": []}, [f"refused: {mistake}"], False
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme.lower() == "https" else 80)
    if egress.proxy:
        way = (
            f"through the proxy {egress.proxy.host}:{egress.proxy.port}, which looks {host} up and judges its addresses"
        )
        return {"allowed": True, "why_not": None, "proxy": way, "addresses": []}, [f"allowed: {way}"], True
    try:
        answer = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = f"{host} cannot be resolved now ({error}), so attempts would fail with dns_error and be retried"
        return {"allowed": False, "why_not": why, "addresses": []}, [f"refused: {why}"], False
    addresses = dict.fromkeys(str(each[4][0]) for each in answer)
    verdicts = {each: address_mistake(each, port, egress.allow_networks) for each in addresses}
    refused = [each for each, why in verdicts.items() if why]
    lines = [f"  {each}: {why or 'may be called'}" for each, why in verdicts.items()]
    document = {
        "allowed": not refused,
        "why_not": "one refused address refuses the whole name" if refused else None,
        "addresses": [{"address": each, "allowed": not why, "why_not": why} for each, why in verdicts.items()],
    }
    if not refused:
        return document, [f"allowed: {host} is", *lines], True
    networks = [*map(str, egress.allow_networks), *(f"{each}/{128 if ':' in each else 32}" for each in refused)]
    with_dev = "" if any(address_mistake(each, port, DEV_NETWORKS) for each in refused) else f"{WITH_DEV}, or "
    return (
        document,
        [
            f"refused: {host} has an address that may not be called, and one refuses them all",
            *lines,
            f"if that is meant, {with_dev}allow it with",
            "[egress]",
            f"allow_networks = {orjson.dumps(networks).decode()}",
        ],
        False,
    )
