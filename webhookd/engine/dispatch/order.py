"""What an endpoint that keeps an order may be sent: of each key the first, and the others behind it.

    offered ──▶ the line of its key ──▶ first in it ──payload──▶ ready
                 └── something of its key is in the backlog: then it is held there as well

A key is all that comes one after the other: an ordering key, or everything where one order is for all.
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence

from webhookd.engine.dispatch.payloads import Payload
from webhookd.model import Delivery, Window

OF_A_KEY = 20  # deliveries of a key in memory behind the first: beyond that others would wait for its sake
BEHIND_MOST = 100  # the same of all keys


class Order:
    """The lines of one endpoint. Results have numbers: what is written of a key is known when its last one is.

    A payload is fetched for the first of a line, and when that has it, for the second: so what has one never waits for
    what waits for the room of one.
    """

    def __init__(self, by_key: bool, flying: Collection[Delivery] = ()) -> None:
        self.by_key = by_key
        self.epoch = 0  # of the cursor with which we know what we know
        self.is_known = False  # which keys have something in the backlog
        self.level_at: tuple[int, int] | None = None  # where in the log that stands which others held last, before us
        self.is_level = False  # the log has been read up to there, so that nothing is before what is held
        self._loose: set[Delivery] = set()  # those without a key
        self._lines: dict[str, deque[Delivery]] = {}
        self._keyed = 0
        self._fed: dict[Delivery, Payload] = {}  # at hand, and not first
        self._asked: set[Delivery] = set()  # whose payload is on its way, or has come
        self._blocked: set[str] = set()  # keys of which the backlog has something, or will have
        self._ended: set[str] = set()  # of these, those whose first is through
        self._numbers: dict[str, int] = {}  # of the last result of a key
        self._heads: dict[str, int] = {}  # the same of what was its first
        for delivery in flying:
            if (key := delivery.key) is None:
                self._loose.add(delivery)
            else:
                self._lines.setdefault(key, deque()).append(delivery)
                self._asked.add(delivery)
                self._keyed += 1

    @property
    def size(self) -> int:
        """Deliveries in memory."""
        return self._keyed + len(self._loose)

    @property
    def fed(self) -> Mapping[Delivery, Payload]:
        """Deliveries with a payload that wait for the one before them."""
        return self._fed

    @property
    def behind(self) -> int:
        """Deliveries that are not the first of their key."""
        return self._keyed - len(self._lines)

    @property
    def reads_on(self) -> bool:
        """True when something of the log could be sent, or is to be known before anything else is."""
        return self.is_known and (self.by_key or not self._blocked or not self.is_level)

    @property
    def has_rows(self) -> bool:
        """True when the backlog has something of it, as far as is known."""
        return bool(self._blocked)

    @property
    def has_ended(self) -> bool:
        """True when something of the backlog may go on."""
        return bool(self._ended)

    # In and out of memory.

    def admits(self, delivery: Delivery) -> bool:
        """Put it into its line; False when it is to be held, since something of its key is in the backlog."""
        key = delivery.key
        if key is None:
            self._loose.add(delivery)
            return True
        line = self._lines.get(key)
        if delivery.batch is not None:
            if (
                self._is_full(line)
                or key in self._blocked
                or not self.is_known
                or not isinstance(delivery.batch, Window)
            ):
                self._blocked.add(key)
                return False
        elif delivery.lent and line is None and key not in self._ended:
            return False  # one before it was stopped
        else:
            self._blocked.add(key)
            self._ended.discard(key)
        if line is None:
            line = self._lines[key] = deque()
        if delivery.batch is None and not delivery.lent and line:
            line.insert(1, delivery)  # a row that is due comes before what was read later
        else:
            line.append(delivery)
        self._keyed += 1
        return True

    def _is_full(self, line: Collection[Delivery] | None) -> bool:
        return self.by_key and line is not None and (len(line) > OF_A_KEY or self.behind >= BEHIND_MOST)

    def has(self, delivery: Delivery) -> bool:
        """True when it has a place, as what it is now."""
        if (key := delivery.key) is None:
            return delivery in self._loose
        return delivery in self._lines.get(key, ())

    def is_blocked(self, delivery: Delivery) -> bool:
        """True when the backlog has something of its key."""
        return delivery.key in self._blocked

    def wants(self, delivery: Delivery) -> bool:
        """True when its payload is to be fetched, now that it has a place."""
        return (key := delivery.key) is None or self._ask(self._lines[key], 0) is delivery

    def _ask(self, line: Sequence[Delivery], place: int) -> Delivery | None:
        if len(line) <= place or line[place] in self._asked:
            return None
        self._asked.add(line[place])
        return line[place]

    def has_fed(self, delivery: Delivery, payload: Payload) -> tuple[bool, Delivery | None]:
        """The payload of the first or second of a line is at hand. True when it is ready; and whose is wanted next."""
        if (key := delivery.key) is None:
            return True, None
        line = self._lines[key]
        if line[0] is delivery:
            return True, self._ask(line, 1)
        self._fed[delivery] = payload
        return False, None

    def over(self, delivery: Delivery) -> tuple[tuple[Delivery, Payload] | None, Delivery | None]:
        """It is through: what is ready now, and whose payload is wanted."""
        key = delivery.key
        if not self._leave(delivery) or key is None:
            return None, None
        line = self._lines.get(key)
        if line is None:
            if key in self._blocked:
                self._ended.add(key)
            return None, None
        payload = self._fed.pop(line[0], None)
        if payload is None:
            return None, self._ask(line, 0)
        return (line[0], payload), self._ask(line, 1)

    def waiting(self, flying: Collection[Delivery]) -> list[Delivery]:
        """All that has a key and is not in flight."""
        return [each for line in self._lines.values() for each in line if each not in flying]

    def stop(self, delivery: Delivery, flying: Collection[Delivery]) -> list[tuple[Delivery, Payload | None]]:
        """It has a row, or will have one: all behind it, with their payloads where these are at hand, leave memory."""
        key, line = delivery.key, [*self._lines.get(delivery.key or "", ())]
        if not self._leave(delivery) or key is None:
            return []
        self._blocked.add(key)
        return self._take(key, [*flying, *line[: line.index(delivery)]])

    def take_all(self, flying: Collection[Delivery]) -> Iterator[tuple[Delivery, Payload | None, bool]]:
        """All that is not in flight leaves memory; True for what was the first of its key."""
        for key in list(self._lines):
            is_first = self._lines[key][0] not in flying
            for delivery, payload in self._take(key, flying):
                self._blocked.add(key)
                yield delivery, payload, is_first
                is_first = False

    def _take(self, key: str, flying: Collection[Delivery]) -> list[tuple[Delivery, Payload | None]]:
        line = self._lines.get(key, deque())
        kept = deque(each for each in line if each in flying)
        taken = [(each, self._fed.pop(each, None)) for each in line if each not in flying]
        self._asked.difference_update(each for each, _ in taken)
        self._keyed -= len(taken)
        if kept:
            self._lines[key] = kept
        else:
            self._lines.pop(key, None)
        return taken

    def _leave(self, delivery: Delivery) -> bool:
        if delivery in self._loose:
            self._loose.discard(delivery)
            return True
        if not self.has(delivery) or (key := delivery.key) is None:
            return False
        line = self._lines[key]
        line.remove(delivery)
        self._fed.pop(delivery, None)
        self._asked.discard(delivery)
        self._keyed -= 1
        if not line:
            del self._lines[key]
        return True

    # What the backlog has.

    def block(self, key: str) -> None:
        """The backlog will have something of this key."""
        self._blocked.add(key)

    def note(self, delivery: Delivery, number: int, *, was_first: bool) -> None:
        """What became of it is the result of this number."""
        if (key := delivery.key) is not None:
            self._numbers[key] = number
            if was_first:
                self._heads[key] = number

    def wanted(self, written: int, most: int) -> list[str]:
        """Keys of which the backlog may have the next, where all results up to `written` are in the database."""
        found = []
        for key in self._ended:
            if key not in self._lines and self._heads.get(key, 0) <= written:
                found.append(key)
                if len(found) == most:
                    break
        return found

    def is_free(self, key: str) -> bool:
        """True when nothing of this key is in memory."""
        return key not in self._lines

    def _unwritten(self, written: int) -> Collection[str]:
        self._numbers = {key: number for key, number in self._numbers.items() if number > written}
        self._heads = {key: number for key, number in self._heads.items() if number > written}
        return self._numbers.keys()

    def has_none(self, key: str, written: int) -> None:
        """The backlog had nothing of this key when results were written up to that number."""
        if key not in self._lines and self._numbers.get(key, 0) <= written:
            self._blocked.discard(key)
            self._ended.discard(key)

    def has_head(self, key: str, written: int) -> None:
        """The backlog had something of this key that goes before what is held, when so many results were written."""
        if key not in self._lines and self._numbers.get(key, 0) <= written:
            self._ended.discard(key)

    def know(self, keys: Collection[str], written: int) -> None:
        """The backlog had something of these keys, and of no others, when results were written up to that number."""
        self.is_known = True
        found = set(keys)
        for key in self._unwritten(written):  # of before: what became of it the backlog did not have yet
            self._blocked.add(key)
            if key not in self._lines:
                self._ended.add(key)
        for key in self._blocked - found - self._ended:
            self.has_none(key, written)
        self._blocked |= found

    def headless(self, keys: Collection[str], written: int) -> list[str]:
        """Those of these keys, whose rows have no head, of which we have nothing in hand: they may get one."""
        busy = self._unwritten(written)
        return [key for key in keys if not (key in self._lines or key in busy or key in self._ended)]

    def forget(self, epoch: int) -> None:
        """Another may have changed what the backlog has."""
        self.epoch = epoch
        self.is_known = self.is_level = False
        self.level_at = None
        self._blocked.clear()
        self._ended.clear()
