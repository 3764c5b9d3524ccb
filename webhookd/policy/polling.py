"""How far a poller has come in the log, and whether the log still is the one that it came from."""

from typing import Final, NamedTuple

WHOLE: Final = 65_535  # of a batch, which has 500 events at most
NONCES: Final = 1 << 48  # of a nonce, as much as an iterator has room for
_LAYOUT: Final = (8, 2, 6, 4)  # bytes of an iterator: batch, pos, nonce, endpoint


class Place(NamedTuple):
    """It has all before this batch, and so many of its events; WHOLE for all of them."""

    batch: int
    pos: int
    nonce: int  # of that batch, of which only the last 48 bits count

    @property
    def next_batch(self) -> int:
        """Where to go on."""
        return self.batch + (self.pos == WHOLE)

    def skips(self, batch: int) -> int:
        """How many events of this batch it has."""
        return self.pos if batch == self.batch else 0


class There(NamedTuple):
    """A batch that is in the log."""

    id: int
    nonce: int
    cut_at: float  # on the database's clock


def is_same(place: Place, there: There | None) -> bool:
    """True when the batch of the place is still the one that it was: after a failover its id may be another's."""
    return there is not None and there.id == place.batch and there.nonce % NONCES == place.nonce % NONCES


def packed(place: Place, endpoint_id: int) -> bytes:
    """The place of a poller of this endpoint, in 20 bytes."""
    parts = place.batch, place.pos, place.nonce % NONCES, endpoint_id
    return b"".join(part.to_bytes(size) for part, size in zip(parts, _LAYOUT, strict=True))


def unpacked(content: bytes) -> tuple[Place, int]:
    """The same again, and the endpoint: anything at all where it is not of our making."""
    found, at = [], 0
    for size in _LAYOUT:
        found.append(int.from_bytes(content[at : at + size]))
        at += size
    batch, pos, nonce, endpoint_id = found
    return Place(batch, pos, nonce), endpoint_id
