"""What is shown of attempts and of deliveries, and which of them are asked for."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, BeforeValidator

from webhookd.store.attempts import Delivery, Destination, Place, Tried
from webhookd.web.endpoints.shapes import EndpointOut
from webhookd.web.marks import Marks
from webhookd.web.messages.shapes import Channel, MessageOut, Tag, labelled
from webhookd.web.operation import EPOCH
from webhookd.web.shapes import Listed, Many, Page, Query, Shape, Word

ATTEMPT: Final = 2  # kinds of marks: of an id, of an iterator, and of an iterator over events
ATTEMPTS: Final = 3
DELIVERIES: Final = 4
PREFIX: Final = "atmpt_"
MICROSECOND, DAY = timedelta(microseconds=1), timedelta(days=1)
_SIZES: Final = (7, 6, 4, 2)  # bytes of the parts of a place, behind one of nothing

# Theirs is a number; ours is a word that says more.
STATUS: Final[Mapping[str, int]] = {
    "delivered": 0, "waiting": 1, "held": 1, "parked": 1, "exhausted": 2, "rejected": 2, "missed": 2, "retrying": 3,
    "discarded": 4,
}  # fmt: skip
TEXT: Final = ("success", "pending", "fail", "sending", "canceled")

Status = Annotated[Literal[0, 1, 2, 3, 4], BeforeValidator(lambda value: int(value) if str(value).isdigit() else value)]
Class = Annotated[
    Literal[0, 100, 200, 300, 400, 500], BeforeValidator(lambda value: int(value) if str(value).isdigit() else value)
]


class Filter(Query):
    """Which of them."""

    event_types: Many | None = None
    """Of events of these types only."""
    channel: Channel | None = None
    """Of events with this channel."""
    tag: Tag | None = None
    """Of events with this tag."""
    after: AwareDatetime | None = None
    """Not before this moment."""
    before: AwareDatetime | None = None
    """Before this moment."""
    status: Status | None = None
    """0 delivered, 1 waiting, 2 failed, 3 to be tried again; 4 discarded."""
    expanded_statuses: bool = False
    """Tell what was discarded as 4, and not as 2."""


class AttemptListing(Listed, Filter):
    """Which attempts, and what is shown of them."""

    status_code_class: Class | None = None
    """That were answered with 400 to 499, say; 0 for no answer."""
    endpoint_id: Word | None = None
    """Of a message: to this endpoint."""
    with_content: bool = True
    """With what was answered."""


class DeliveryListing(Listed, Filter):
    """Which messages of an endpoint, and what is shown of them."""

    with_content: bool = True
    """With their payloads; else an empty object is in the place of each."""


class DestinationListing(Listed):
    """Which endpoints of a message."""

    expanded_statuses: bool = False
    """Tell what was discarded as 4, and not as 2."""


class AttemptOut(Shape):
    """One request of a delivery."""

    id: str
    msg_id: str
    endpoint_id: str
    url: str
    response: str
    response_status_code: int
    response_duration_ms: int
    status: int
    status_text: str
    trigger_type: int
    timestamp: datetime
    trigger: str | None
    error: str | None
    attempt: int


class AttemptPage(Page[AttemptOut]):
    """A page of attempts."""


class DeliveryOut(MessageOut):
    """A message, and what became of it at an endpoint."""

    status: int
    status_text: str
    next_attempt: datetime | None
    state: str
    reason: str | None


class DeliveryPage(Page[DeliveryOut]):
    """A page of messages of an endpoint."""


class DestinationOut(EndpointOut):
    """An endpoint, and what became of a message there."""

    status: int
    status_text: str
    next_attempt: datetime | None
    state: str
    reason: str | None


class DestinationPage(Page[DestinationOut]):
    """A page of endpoints of a message."""


def states_of(query: Filter) -> list[str] | None:
    """Our words for the status that is asked for; None for any."""
    if query.status is None:
        return None
    both = query.status == STATUS["exhausted"] and not query.expanded_statuses
    return [word for word, status in STATUS.items() if status == query.status or (both and word == "discarded")]


def marked(marks: Marks, kind: int, place: Place) -> str:
    """A place as a text."""
    numbers = (place.at - EPOCH) // MICROSECOND, *place[1:]
    return marks.wide(
        kind, b"\0" + b"".join(number.to_bytes(size) for number, size in zip(numbers, _SIZES, strict=True))
    )


def place_of(marks: Marks, kind: int, mark: str) -> Place | None:
    """The place again; None for a text that is none, nearly always."""
    content = marks.content(kind, mark)
    if content is None or content[0]:
        return None
    parts, start = list[int](), 1
    for size in _SIZES:
        parts.append(int.from_bytes(content[start : start + size]))
        start += size
    try:
        at = EPOCH + parts[0] * MICROSECOND
    except OverflowError:
        return None
    is_one = at < datetime.now(UTC) + DAY and parts[2] < 1 << 31 and parts[3] < 1 << 15
    return Place(at, *parts[1:]) if is_one else None


def shown(marks: Marks, tried: Tried) -> AttemptOut:
    """As its tenant sees it."""
    status = 0 if tried.ok else 2
    return AttemptOut(
        id=PREFIX + marked(marks, ATTEMPT, tried.place),
        msg_id=tried.event_id,
        endpoint_id=tried.endpoint,
        url=tried.url,
        response=(tried.response or b"").decode(errors="replace"),
        response_status_code=tried.code or 0,
        response_duration_ms=tried.ms or 0,
        status=status,
        status_text=TEXT[status],
        trigger_type=0 if tried.trigger is None else 1,
        timestamp=tried.place.at,
        trigger=tried.trigger,
        error=tried.error,
        attempt=tried.place.number,
    )


def became(each: Delivery | Destination, *, expanded: bool) -> dict[str, Any]:
    """What became of a delivery, in both words."""
    status = STATUS[each.state]
    if status == STATUS["discarded"] and not expanded:
        status = STATUS["rejected"]
    return {
        "status": status,
        "status_text": TEXT[status],
        "next_attempt": each.due,
        "state": each.state,
        "reason": each.reason,
    }


def delivery(each: Delivery, payload: Any, *, expanded: bool) -> DeliveryOut:
    """As its tenant sees it."""
    channels, tags = labelled(each.metadata)
    return DeliveryOut(
        id=each.event_id, event_id=each.alias, event_type=each.type, payload=payload, channels=channels, tags=tags,
        timestamp=each.created_at, deliver_at=each.deliver_after, **became(each, expanded=expanded),
    )  # fmt: skip
