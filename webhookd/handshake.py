"""What TLS may cost: a receiver chooses what this side has to compute, and the loop stands still meanwhile.

    first message of the server ──▶ a finite-field group? refused before anything is computed
    each flight of a handshake  ──▶ its bytes and its CPU time are counted; too much of either ends it
    each read after it          ──▶ so are bytes that are no answer: tickets, key updates, padding
    what it cost                ──▶ its host rests before it may have another handshake

All of it ends a connection with an ssl.SSLError, which is a failed attempt. docs/performance.md has what is left.
"""

import ssl
import struct
import time
from typing import Any, Final

MOST_BYTES: Final = 32 * 1024  # of a handshake, and of what is no answer; long chains with many names have some 20 KiB
FREE_SECONDS: Final = 0.005  # of CPU time; a usual handshake costs a fifth of it
REST_MOST: Final = 300.0
OVERDRAWN: Final = 5.0  # seconds of rest that a host may owe; a handshake of 50 ms owes as much
BYTE_SECONDS: Final = 1e-6  # a key update that wants an answer is 27 bytes, and costs 26 µs
_FORGET_AT: Final = 4096  # hosts

_RECORD: Final = struct.Struct(">BHH")  # RFC 8446 5.1: type, version, length
_HANDSHAKE: Final = 22
_BEFORE_HELLO: Final = (20, 21, _HANDSHAKE)  # a change of ciphers, an alert
_RECORD_MOST: Final = 16 * 1024 + 2048
_RECORD_COSTS: Final = {"TLSv1.3": 22}  # bytes that a record has beside what is in it
_RECORD_COSTS_MOST: Final = 100

_HELLO: Final = 2
# RFC 8446 4.1.3: the SHA-256 of "HelloRetryRequest" in the place of the server's random bytes.
_RETRY: Final = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
_KEY_SHARE: Final = 51
_FINITE_FIELDS: Final = range(0x100, 0x200)  # RFC 7919


def rest(seconds: float) -> float:
    """For how long a host rests after so much CPU time: ten times as much of it is a thousand times as long a rest."""
    return float(min(seconds * (seconds / FREE_SECONDS) ** 2, REST_MOST))


class Costs:
    """What hosts have cost, and when they have paid. All moments are of the monotonic clock."""

    def __init__(self) -> None:
        self._paid_at: dict[str, float] = {}

    def charge(self, host: str, before: float, after: float, now: float) -> None:
        """A connection to this host has cost `after` seconds of CPU time, and had cost `before` when last charged."""
        if len(self._paid_at) >= _FORGET_AT:
            self._paid_at = {host: moment for host, moment in self._paid_at.items() if moment > now}
        self._paid_at[host] = max(self._paid_at.get(host, 0.0), now) + rest(after) - rest(before)

    def is_overdrawn(self, host: str, now: float) -> bool:
        """True when this host has to rest before it may cost more."""
        return self._paid_at.get(host, 0.0) - now > OVERDRAWN


class Client(ssl.SSLContext):
    """A context of clients whose connections are bounded. What they cost is counted for each of its hosts."""

    def __init__(self, *_: Any) -> None:
        self.sslobject_class = Bounded
        self.costs = Costs()

    def wrap_bio(self, incoming: ssl.MemoryBIO, *arguments: Any, **named: Any) -> "Bounded":
        """A connection that reads from `incoming`."""
        made = super().wrap_bio(incoming, *arguments, **named)
        assert isinstance(made, Bounded)  # noqa: S101 - says so to mypy
        made.attach(incoming, self.costs)
        return made


class Bounded(ssl.SSLObject):
    """One connection. What asyncio and uvloop call of it is `do_handshake` and `read`."""

    def attach(self, incoming: ssl.MemoryBIO, costs: Costs) -> None:
        """Begin, with nothing counted."""
        self._incoming = incoming
        self._costs = costs
        self._host = self.server_hostname or ""
        self._held: bytes | None = b""  # from the server, until its first message has been judged
        self._heard = 0  # bytes of the handshake, and of what was no answer after it
        self._unsettled = 0  # bytes since the last piece of an answer
        self._seconds = 0.0
        self._record_costs = _RECORD_COSTS_MOST

    def do_handshake(self) -> None:
        if self._incoming.pending:  # uvloop loses the socket of one that ends before it has begun
            if self._costs.is_overdrawn(self._host, time.monotonic()):
                raise ssl.SSLError("handshakes with this host have cost too much")
            self._hear(self._incoming.pending)
            if self._held is not None:
                self._judge(self._held + self._incoming.read())
        began = time.thread_time()
        try:
            super().do_handshake()
        finally:
            self._charge(time.thread_time() - began)
        if self._costs.is_overdrawn(self._host, time.monotonic()):
            raise ssl.SSLError("this handshake has cost too much")
        self._record_costs = _RECORD_COSTS.get(self.version() or "", _RECORD_COSTS_MOST)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        there = self._incoming.pending
        try:
            answer: Any = super().read(len, buffer)  # bytes, or how many there are in `buffer`
        except ssl.SSLWantReadError:
            self._unsettled += there - self._incoming.pending
            if self._unsettled > MOST_BYTES:
                self._surplus(self._unsettled)
            raise
        size = answer if isinstance(answer, int) else answer.__len__()
        surplus = self._unsettled + there - self._incoming.pending - size - self._record_costs
        self._unsettled = 0
        if surplus > 0:
            self._surplus(surplus - self.pending())  # what has been decrypted and not been asked for yet
        return answer

    def _judge(self, held: bytes) -> None:
        """Pass on what the server said, but its first message only when it is whole, and asks for nothing costly."""
        passed, is_whole = judged(held)
        self._incoming.write(held[:passed])
        self._held = None if is_whole else held[passed:]

    def _surplus(self, count: int) -> None:
        if count > 0:
            self._charge(count * BYTE_SECONDS)
            self._hear(count)

    def _charge(self, seconds: float) -> None:
        before, self._seconds = self._seconds, self._seconds + seconds
        self._costs.charge(self._host, before, self._seconds, time.monotonic())

    def _hear(self, count: int) -> None:
        self._heard += count
        if self._heard > MOST_BYTES:
            raise ssl.SSLError("the receiver says too much that is no answer")


def judged(said: bytes) -> tuple[int, bool]:
    """How many bytes of what a server said first may be passed on, and whether its first message is among them.

    That message has to be whole within its record, as every server sends it, or it could not be judged. Raises
    ssl.SSLError when it is not, and when it asks for a finite-field group: TLS 1.3 offers them, since Python before
    3.15 cannot leave them out, and ffdhe8192 costs 190 ms. What is no TLS at all is passed on: OpenSSL says so.
    """
    at = 0
    while len(said) - at >= _RECORD.size:
        kind, version, length = _RECORD.unpack_from(said, at)
        if kind not in _BEFORE_HELLO or version >> 8 != 3 or length > _RECORD_MOST:
            return len(said), True
        start, end = at + _RECORD.size, at + _RECORD.size + length
        if end > len(said):
            break
        if kind == _HANDSHAKE:
            _judge_hello(said[start:end])
            return len(said), True
        at = end
    return at, False


def _judge_hello(message: bytes) -> None:
    if len(message) < 4 or len(message) < 4 + int.from_bytes(message[1:4]):
        raise ssl.SSLError("the first message of the server is in pieces")
    if message[0] != _HELLO or message[6:38] != _RETRY:
        return
    # Behind the session, the cipher, the compression, and the length of the extensions.
    at = 39 + int.from_bytes(message[38:39]) + 2 + 1 + 2
    while at + 4 <= len(message):
        kind, length = int.from_bytes(message[at : at + 2]), int.from_bytes(message[at + 2 : at + 4])
        if kind == _KEY_SHARE and int.from_bytes(message[at + 4 : at + 6]) in _FINITE_FIELDS:
            raise ssl.SSLError("the server wants a finite-field group")
        at += 4 + length
