"""The cursors that are ours: those of parked endpoints that we send to, and those that leave us."""

from collections.abc import Iterable, Iterator, Mapping, Set

from webhookd.engine.dispatch.feeds import Feed, FeedState
from webhookd.policy.parking import Cursor, Parked

Key = tuple[int, int]  # of a cursor: its endpoint, and its first batch


class Cursors:
    """Cursors by endpoint and first batch. One that leaves stays known until all is settled that it has handed out."""

    def __init__(self) -> None:
        self._ours: dict[Key, Cursor] = {}
        self._leaving: dict[Key, Cursor] = {}
        self.fed: dict[int, FeedState] = {}  # the endpoints that are not live, whoever sends to them

    def __iter__(self) -> Iterator[Cursor]:
        return iter(list(self._ours.values()))

    def feed(self, fed: Mapping[int, FeedState]) -> None:
        """From where these endpoints get what they are owed; of the others nothing changes."""
        for endpoint_id, now_fed in fed.items():
            if now_fed.feed is Feed.MEMORY:
                self.fed.pop(endpoint_id, None)
            else:
                self.fed[endpoint_id] = now_fed

    def get(self, key: Key) -> Cursor | None:
        """The cursor, if it is ours."""
        return self._ours.get(key)

    def has(self, cursor: Cursor) -> bool:
        """True when it is ours still."""
        return self._ours.get((cursor.endpoint_id, cursor.from_batch)) is cursor

    def follow(self, row: Parked) -> None:
        """Have a cursor for this row, or go on with it. One that comes back to us has none until it is settled."""
        key = row.endpoint_id, row.from_batch
        cursor = self._ours.get(key)
        if cursor is not None and cursor.epoch == row.epoch:
            cursor.follow(row)
            return
        if cursor is not None:
            self._leave(key)
        if key not in self._leaving:
            self._ours[key] = Cursor(row)
        # Else what we had handed out would be handed out again.

    def keep(self, keys: Set[Key]) -> None:
        """Have none but these."""
        for key in self._ours.keys() - keys:
            self._leave(key)

    def _leave(self, key: Key) -> None:
        cursor = self._ours.pop(key)
        if not cursor.is_settled:
            self._leaving[key] = cursor

    def settle(self) -> bool:
        """Forget those that are settled, of the leaving; True when there were any."""
        settled = [key for key, cursor in self._leaving.items() if cursor.is_settled]
        for key in settled:
            del self._leaving[key]
        return bool(settled)

    @property
    def leaving(self) -> set[int]:
        """The endpoints of those that leave."""
        return {endpoint_id for endpoint_id, _ in self._leaving}


def first(cursors: Iterable[Cursor], newest: int) -> dict[int, Cursor]:
    """By endpoint, which of its cursors reads next, if any of them has more; `newest` is the last batch of the log."""
    found: dict[int, Cursor] = {}
    for cursor in cursors:
        if cursor.has_more(newest):
            other = found.setdefault(cursor.endpoint_id, cursor)
            if cursor.batch < other.batch:
                found[cursor.endpoint_id] = cursor
    return found
