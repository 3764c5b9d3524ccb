"""What an operator asks and says: how things stand, who has done what, why an event went where; and pauses."""

from typing import Annotated, Final

from pydantic import ConfigDict, Field

from webhookd.engine.janitor import BEAT_SECONDS, DEAD_AFTER_BEATS
from webhookd.policy.matching import why_not
from webhookd.store import documents, messages, tokens
from webhookd.store.audit import Wanted, audited
from webhookd.store.discards import DiscardStore
from webhookd.store.documents import Explained
from webhookd.store.parking import ParkingStore
from webhookd.store.replays import Replays
from webhookd.store.reports import Reports, Status
from webhookd.store.shots import resent
from webhookd.tasks import in_slices
from webhookd.web import lists
from webhookd.web.attempts.reading import called
from webhookd.web.endpoints import finding
from webhookd.web.marks import Marks
from webhookd.web.operation import Answer, Call
from webhookd.web.problem import not_found
from webhookd.web.shapes import Given, Listed, Page, Shape, Text, Word

DEAD_AFTER: Final = BEAT_SECONDS * DEAD_AFTER_BEATS
EXPIRY_MOST: Final = 259_200  # seconds
DEEDS: Final = 8  # a kind of marks


class Document(Shape):
    """What `webhookd` prints with --json."""

    model_config = ConfigDict(extra="allow")


class Explanations(Shape):
    """One for each event of that id; there is nearly always one."""

    data: list[Document]


class DeedOut(Document):
    """What somebody has done."""

    id: int


class DeedPage(Page[DeedOut]):
    """A page of it."""


class Deeds(Listed):
    """Which of it, the newest first."""

    action: Word | None = None
    """Only this, such as pause."""
    of: Annotated[Text, Field(max_length=512)] | None = None
    """To this endpoint, event or tenant."""


class ExpiryIn(Given):
    """When they end."""

    expiry: Annotated[int, Field(ge=0, le=EXPIRY_MOST)] | None = None
    """In so many seconds; at once without it."""
    session_ids: list[Text] | None = None
    """Taken and not used: all of them end."""


async def status(call: Call) -> Answer:
    """How things stand, as `webhookd status --json` has it."""
    found = await Reports(call.connection).status(DEAD_AFTER)
    return Answer(200, Document(**documents.status(found, _problems(found))))


async def audit(call: Call) -> Answer:
    """Who has done what."""
    query: Deeds = call.query
    at = lists.place(query)
    marks = Marks(await messages.key(call.connection))
    before = None if at.after is None else marks.number(DEEDS, at.after)
    if at.back or (at.after is not None and before is None):
        raise lists.bad_iterator()
    found = await audited(call.connection, Wanted(query.limit + 1, before, query.action, query.of))
    rows, more = lists.page(found, query.limit, at)
    iterator, _, done = lists.iterators([marks.mark(DEEDS, each.id) for each in rows], more, at)
    data = [DeedOut(**documents.deed(each)) for each in rows]
    return Answer(200, DeedPage(data=data, iterator=iterator, prev_iterator=None, done=done))


async def explain(call: Call) -> Answer:
    """Who gets a message and who does not, why, and what became of it."""
    database, reports = call.connection, Reports(call.connection)
    found = []
    name = (await called(call))[0].event_id
    among = await reports.of_tenant(call.of.key)
    for event, fates in await reports.fates(name):
        if event.tenant != call.of.key:
            continue
        event = await reports.with_payload(event, among)
        found.append(
            Explained(
                event,
                fates,
                [(each, why_not(each, event)) async for each in in_slices(among, 1)],
                await resent(database, event.id),
                await Replays(database).of(event.id),
                await DiscardStore(database).of(event.id),
            )
        )
    if not found:
        raise not_found("message")
    return Answer(200, Explanations(data=[Document(**documents.explained(each)) for each in found]))


async def pause(call: Call) -> Answer:
    """Send nothing to an endpoint until it is resumed."""
    found = await finding.seen(call)
    finding.expect_sent_to(found)
    await ParkingStore(call.connection).pause([found.id], call.caller.name)
    return Answer(204, None, found.name)


async def resume(call: Call) -> Answer:
    """Go on sending to an endpoint that was paused."""
    found = await finding.seen(call)
    await ParkingStore(call.connection).resume([found.id], call.caller.name)
    return Answer(204, None, found.name)


async def expire_all(call: Call) -> Answer:
    """End all that let somebody into the portal of an application."""
    given: ExpiryIn = call.body
    await tokens.expire_all(call.connection, call.of.id, given.expiry or 0, call.caller.name)
    return Answer(204)


def _problems(found: Status) -> list[str]:
    """What daemons say that keeps them from their work."""
    said = [f"daemon {each.id}: {each.problem}" for each in found.daemons if each.problem is not None]
    kept = [
        f"daemon {each.id} keeps an older configuration: {each.config_problem}"
        for each in found.daemons
        if each.config_problem is not None
    ]
    silent = [f"daemon {each.id} has not been heard for {each.seconds:.0f} s: {each.problem}" for each in found.silent]
    differ = ["daemons run different configurations"] if documents.differ(found) else []
    return [*differ, *said, *kept, *silent]
