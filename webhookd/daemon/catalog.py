"""The endpoints that there are: which are ours to send to, and who of all is owed what.

Made anew with a configuration, which takes a moment for thousands; what changes beside it is put in its place, so that
one of 10,000 costs as much as one.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple, Protocol

from webhookd.config.config import Config
from webhookd.config.endpoint import disable_after
from webhookd.message.formats import FORMATS
from webhookd.message.kept import Defaults, Kept, endpoint_of_kept, own_formats
from webhookd.message.sealing import Keyring, Unreadable
from webhookd.message.signing import SCHEMES
from webhookd.model import Condition, Endpoint, RetryPolicy, label
from webhookd.policy.matching import Matcher
from webhookd.policy.payload_filter import compiled
from webhookd.units import DAY


class Known(Protocol):
    """The endpoints that the database has."""

    @property
    def ids(self) -> Sequence[int]:
        """The numbers of ours, in their order."""

    @property
    def others(self) -> Sequence[Kept]:
        """Those of the API, and of other daemons' files."""

    @property
    def version(self) -> int:
        """As of which these are all."""


class Read(NamedTuple):
    """What the database has of an endpoint, what that is to us, and why it is closed if it is."""

    kept: Kept
    endpoint: Endpoint
    closed: str = ""


class Changes(NamedTuple):
    """What is to be sent to as it is now, and what is no longer, by number."""

    ours: Sequence[Endpoint]
    gone: Sequence[int]


def opens(config: Config) -> list[str]:
    """The names of what endpoints of the API may want of a daemon: its keys, and the formats of its files."""
    return [*Keyring(config.encryption.keys).ids, *own_formats(config.formats)]


class Catalog:
    """All endpoints, as one configuration has them and the database.

    `own` are those that we send to when they are active: of our files, and of the API, as far as we can open them. What
    others have is owed its events all the same. `closed` says of which of the API we cannot open, and why.
    """

    def __init__(self, config: Config, known: Known) -> None:
        ids = dict(zip(config.specs, known.ids, strict=True))
        delivery = config.delivery
        slots, ends = delivery.max_in_flight_per_endpoint, disable_after(delivery.disable_after)
        longest = config.retention.events - DAY
        self._defaults = Defaults(delivery.timeout, slots, config.retry, ends, longest, config.formats)
        self._keyring = Keyring(config.encryption.keys)
        self._files = frozenset(known.ids)
        self._strangers: set[int] = set()  # of others' files
        self.closed: dict[int, str] = {}
        files = [replace(endpoint, id=ids[endpoint.tenant, endpoint.name]) for endpoint in config.endpoints]
        self.own = {endpoint.id: endpoint for endpoint in files}
        self.matcher = Matcher(files, require_tenant=delivery.require_tenant)
        self.take(self.read(known.others))

    @property
    def has_strangers(self) -> bool:
        """True when there are endpoints of others' files, which may count as removed one day."""
        return bool(self._strangers)

    def read(self, changed: Iterable[Kept]) -> list[Read]:
        """What these are to us, which is most of the work, and changes nothing."""
        return [self._read(each) for each in changed]

    def take(self, changed: Iterable[Read]) -> Changes | None:
        """Have these as they are now. None when one of our files is gone, as others have taken us for dead."""
        ours, gone, lost = list[Endpoint](), list[int](), False
        for kept, endpoint, closed in changed:
            if kept.id in self._files:
                lost = lost or kept.is_gone
                continue
            self.closed.pop(kept.id, None)
            self._strangers.discard(kept.id)
            if kept.is_gone:
                self.matcher.drop(kept.id)
            else:
                self.matcher.put(endpoint)
                if closed:
                    self.closed[kept.id] = closed
                elif kept.source == "file":
                    self._strangers.add(kept.id)
                else:
                    self.own[kept.id] = endpoint
                    ours.append(endpoint)
                    continue
            if self.own.pop(kept.id, None) is not None:
                gone.append(kept.id)
        return None if lost else Changes(ours, gone)

    def _read(self, kept: Kept) -> Read:
        if kept.source == "api" and not kept.is_gone:
            try:
                made = endpoint_of_kept(kept, self._keyring, self._defaults)
                return Read(kept, replace(made, data_filter=_conditions(kept)) if "data_filter" in kept.spec else made)
            except Unreadable as why:
                return Read(kept, seen_from_outside(kept), f"{label(kept.tenant, kept.name)}: {why}")
        return Read(kept, seen_from_outside(kept))


def seen_from_outside(kept: Kept) -> Endpoint:
    """Enough of an endpoint to see what it is owed, nothing to send with."""
    spec = kept.spec
    return Endpoint(
        id=kept.id,
        tenant=kept.tenant,
        name=kept.name,
        url="",
        events=tuple(spec.get("events", ())),
        format=FORMATS["raw"],
        signature=SCHEMES["none"],
        secrets=(),
        retry=RetryPolicy(),
        timeout=0.0,
        max_in_flight=1,
        active=spec.get("active", True),
        filter={key: tuple(values) for key, values in spec.get("filter", {}).items()},
        data_filter=_conditions(kept),
        polled=spec.get("kind") == "poll",
    )


def _conditions(kept: Kept) -> tuple[Condition, ...]:
    with suppress(ValueError):  # of a newer version, while both run
        return compiled(kept.spec["data_filter"]) if "data_filter" in kept.spec else ()
    return ()
