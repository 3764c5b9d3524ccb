"""The demo's books: what the tables say of every delivery, held against what the receiver got."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from webhookd.cli.receiver import Received
from webhookd.model import Endpoint
from webhookd.policy.matching import Matcher
from webhookd.store.reports import Mark, Pulse, Reports


class Receipts:
    """What the receiver got on one path."""

    def __init__(self) -> None:
        self.accepted: set[str] = set()  # event_ids that were answered with 200
        self.duplicates = 0  # requests for an event that had been accepted before
        self.unverified = 0

    def add(self, received: Received) -> None:
        """Count a request."""
        event_id = received.headers.get("webhook-id", "")
        if received.problem:
            self.unverified += 1
        elif event_id in self.accepted:
            self.duplicates += 1
        elif received.status == 200:
            self.accepted.add(event_id)


@dataclass(slots=True)
class Line:
    """One endpoint's deliveries: each that is owed is in exactly one of the five states, or unaccounted for."""

    owed: int = 0
    delivered: int = 0
    retrying: int = 0
    exhausted: int = 0
    rejected: int = 0
    waiting: int = 0  # its batch is not done: the next start goes on with it
    failed_attempts: int = 0
    received: int = 0  # events that the receiver accepted
    duplicates: int = 0
    unverified: int = 0
    unaccounted: int = 0


@dataclass(slots=True)
class Summary:
    """Where every event is."""

    events: int = 0
    endpoints: dict[str, Line] = field(default_factory=dict)
    unaccounted: int = 0

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


async def summarize(
    reports: Reports,
    endpoints: Mapping[int, Endpoint],
    receipts: Mapping[str, Receipts],
    since: Mark,
    emitted: int,
    pulses: Mapping[int, Pulse],
) -> Summary:
    """The books since a moment.

    Unaccounted for are: an event that was emitted and is not in the outbox; a delivery that is owed and in no state, or
    in one without being owed; and one that counts as delivered and never reached the receiver, as far as it is ours.
    """
    matcher = Matcher(endpoints.values())
    lines = {id_: Line(failed_attempts=pulses[id_].failed if id_ in pulses else 0) for id_ in endpoints}
    ids: set[int] = set()
    received: Counter[int] = Counter()
    async for event, endpoint_id, state in reports.account(list(endpoints), since):
        ids.add(event.id)
        line, endpoint = lines[endpoint_id], endpoints[endpoint_id]
        got = receipts.get(endpoint.label)
        accepted = got is not None and event.event_id in got.accepted
        received[endpoint_id] += accepted
        owed = endpoint in matcher.endpoints_for(event)
        line.owed += owed
        if owed and state is not None:
            setattr(line, _COLUMN[state], getattr(line, _COLUMN[state]) + 1)
        lost = owed and state is None
        astray = not owed and state not in (None, "waiting")
        unseen = got is not None and state == "delivered" and not accepted
        line.unaccounted += lost or astray or unseen
    for id_, line in lines.items():
        line.received = received[id_]
        if got := receipts.get(endpoints[id_].label):
            line.duplicates, line.unverified = got.duplicates, got.unverified
    missing = max(0, emitted - len(ids))
    return Summary(
        len(ids),
        {endpoints[id_].label: line for id_, line in lines.items()},
        missing + sum(line.unaccounted for line in lines.values()),
    )


_COLUMN = {
    "delivered": "delivered",
    "retrying": "retrying",
    "held": "retrying",
    "exhausted": "exhausted",
    "rejected": "rejected",
    "waiting": "waiting",
}
