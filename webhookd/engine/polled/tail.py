"""The end of the log, as far as it is known who is owed something of it: who waits passes over all the rest."""

from bisect import bisect_left
from collections.abc import Set
from typing import Final

from webhookd.policy.polling import WHOLE, Place

MOST: Final = 50_000  # batches, which come within a minute at the very most
AT_ONCE: Final = 1_000  # that are forgotten together
AHEAD: Final = 1_000  # batches that are known while one before them is not


class Tail:
    """Batches without a gap, from `first` to `last`, and which polled endpoints are owed something of which."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew: others are owed something now, or something was not heard of."""
        self._nonces: list[int] = []
        self._first = 0
        self._owed: dict[int, list[int]] = {}  # batches by endpoint
        self._ahead: dict[int, tuple[int, Set[int]]] = {}

    @property
    def _last(self) -> int:
        return self._first + len(self._nonces) - 1

    def add(self, batch: int, nonce: int, owed: Set[int]) -> None:
        """These endpoints are owed something of the batch, and no others."""
        if not self._nonces:
            self._first = batch
        if batch < self._first or batch <= self._last:
            return
        self._ahead[batch] = nonce, owed
        while (found := self._ahead.pop(self._last + 1, None)) is not None:
            self._append(*found)
        if len(self._ahead) > AHEAD:
            self.forget()

    def _append(self, nonce: int, owed: Set[int]) -> None:
        self._nonces.append(nonce)
        for endpoint_id in owed:
            self._owed.setdefault(endpoint_id, []).append(self._last)
        if len(self._nonces) > MOST:
            del self._nonces[:AT_ONCE]
            self._first += AT_ONCE
            for endpoint_id, batches in list(self._owed.items()):
                del batches[: bisect_left(batches, self._first)]
                if not batches:
                    del self._owed[endpoint_id]

    def ends_with(self, place: Place) -> bool:
        """True when no later batch is known."""
        return bool(self._nonces) and place.batch == self._last

    def passed(self, place: Place, endpoint_id: int) -> Place:
        """The last place before what this endpoint is owed from there on, as far as that is known."""
        start = place.next_batch
        if not self._nonces or not self._first <= start <= self._last:
            return place
        batches = self._owed.get(endpoint_id, [])
        at = bisect_left(batches, start)
        end = batches[at] - 1 if at < len(batches) else self._last
        return place if end < start else Place(end, WHOLE, self._nonces[end - self._first])
