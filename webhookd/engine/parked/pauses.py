"""Says in the log whom an operator has paused and resumed, when we learn of it."""

from collections.abc import Callable, Collection, Iterable
from typing import Final

import structlog

from webhookd.model import Endpoint

NAMED: Final = 10  # endpoints in a line

log = structlog.get_logger("webhookd.follower")


class Pauses:
    """Knows who is paused of the endpoints that we can send to: `endpoint(number)` is one of these, or None."""

    def __init__(self, endpoint: Callable[[int], Endpoint | None]) -> None:
        self._endpoint = endpoint
        self._paused: set[int] = set()

    def now(self, paused: Collection[int]) -> None:
        """These are paused, of all there are; what is new of it is told."""
        ours = {id_ for id_ in paused if self._endpoint(id_) is not None}
        before, self._paused = self._paused, ours
        if begun := self._ours(ours - before):
            log.info("endpoints_paused", count=len(begun), names=begun[:NAMED])
        if ended := self._ours(before.difference(paused)):
            log.info("endpoints_resumed", count=len(ended), names=ended[:NAMED])

    def _ours(self, ids: Iterable[int]) -> list[str]:
        """Their names; who has left our files meanwhile has neither been paused nor resumed."""
        return [endpoint.label for endpoint in map(self._endpoint, sorted(ids)) if endpoint is not None]
