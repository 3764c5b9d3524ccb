"""The payloads in memory: shared by the deliveries that need them, and never more bytes than the budget."""

from collections.abc import Collection, Sequence

from webhookd.model import Condition, Event
from webhookd.policy.payload_filter import Found, look_up, passes, weight

BUDGET = 32 * 1024 * 1024  # bytes
KEPT = 1024  # bytes more than a payload has, of what was found in it


class Payload:
    """The payload text of one event, metadata that is not kept with it, and how many deliveries need them now."""

    __slots__ = ("content", "found", "metadata", "users")

    def __init__(self, content: bytes, metadata: bytes | None = None) -> None:
        self.content = content
        self.metadata = metadata
        self.users = 0
        self.found: Found | None = {}  # what paths lead to that were looked for; None when it cannot be looked into

    def passes(self, conditions: Sequence[Condition], paths: Collection[str]) -> bool:
        """True when the conditions hold of it. It is parsed for all these paths at once: others ask for them, too."""
        found = self.found
        if found is not None and any(condition.path not in found for condition in conditions):
            found = look_up(self.content, {*paths, *found, *(condition.path for condition in conditions)})
            if found is None or weight(found) <= len(self.content) + KEPT:  # or it would outgrow the budget
                self.found = found
        return passes(conditions, found)


class Payloads:
    """What is in memory, and what a further fetch may add.

    Large payloads, above a sixteenth of the budget, share one half of it, so that small ones never wait for them. One
    large payload always passes, however small the budget, or it would wait for ever.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._large = budget // 16
        self._held: dict[int, Payload] = {}
        self._bytes = 0
        self._large_bytes = 0

    def use(self, event: Event) -> Payload | None:
        """The payload for one more delivery, or None when it is not in memory."""
        payload = self._held.get(event.id)
        if payload is None and event.payload is not None and not event.unread and self.reserve(event):
            payload = self._held[event.id] = Payload(event.payload)
        if payload is not None:
            payload.users += 1
        return payload

    def reserve(self, event: Event) -> bool:
        """True when its payload may be fetched; its bytes count from now on."""
        size = event.size + event.unread
        if size > self._large:
            if self._large_bytes and (
                self._large_bytes + size > self._budget // 2 or self._bytes + size > self._budget
            ):
                return False
            self._large_bytes += size
        elif self._bytes + size > self._budget:
            return False
        self._bytes += size
        return True

    def keep(self, event: Event, content: bytes, metadata: bytes | None = None) -> None:
        """The payload that was reserved is here, and in use until whoever has brought it drops it."""
        self._held[event.id] = payload = Payload(content, metadata)
        payload.users = 1

    def drop(self, event: Event) -> bool:
        """One delivery less needs it; True when its bytes are free again."""
        payload = self._held[event.id]
        payload.users -= 1
        if payload.users > 0:
            return False
        del self._held[event.id]
        self.release(event)
        return True

    def release(self, event: Event) -> None:
        """What was reserved did not come."""
        size = event.size + event.unread
        self._bytes -= size
        if size > self._large:
            self._large_bytes -= size
