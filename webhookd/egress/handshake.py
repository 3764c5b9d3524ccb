"""What TLS may cost: a receiver chooses what this side has to compute, and the loop stands still meanwhile.

    first message of the server ──▶ a finite-field group? refused before anything is computed
    each flight of a handshake  ──▶ computed in a thread; its bytes and CPU time are counted, too much of them ends it
    each read after it          ──▶ so are bytes that are no answer: tickets, key updates, padding
    what it cost                ──▶ its host rests before it may have another handshake, and comes after the others

All of it ends a connection with an ssl.SSLError, which is a failed attempt. docs/performance.md has what is left.
"""

import ssl
import struct
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, Protocol

MOST_BYTES: Final = 32 * 1024  # of a handshake, and of what is no answer; long chains with many names have some 20 KiB
FREE_SECONDS: Final = 0.005  # of CPU time; a usual handshake costs a fifth of it
REST_MOST: Final = 300.0
OVERDRAWN: Final = 5.0  # seconds of rest that a host may owe; a handshake of 50 ms owes as much
BYTE_SECONDS: Final = 1e-6  # a key update that wants an answer is 27 bytes, and costs 26 µs
_FORGET_AT: Final = 4096  # hosts

_RECORD: Final = struct.Struct(">BHH")  # RFC 8446 5.1: type, version, length
_ALERT, _HANDSHAKE = 21, 22
_BEFORE_HELLO: Final = (20, _ALERT, _HANDSHAKE)  # a change of ciphers comes first, too
_RECORD_MOST: Final = 16 * 1024 + 2048
_RECORD_COSTS: Final = {"TLSv1.3": 22}  # bytes that a record has beside what is in it
_RECORD_COSTS_MOST: Final = 100

_TOO_MUCH: Final = "the receiver says too much that is no answer"
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

    def owed(self, host: str, now: float) -> float:
        """Seconds of rest that this host owes; not more than 0 when it owes none."""
        return self._paid_at.get(host, 0.0) - now

    def is_overdrawn(self, host: str, now: float) -> bool:
        """True when this host has to rest before it may cost more."""
        return self.owed(host, now) > OVERDRAWN


class Compute(Protocol):
    """Runs work in a thread, that of the smallest `rank` first, and then `over` on the loop."""

    def __call__(self, rank: float, work: Callable[[], None], over: Callable[[], None]) -> None: ...


class Offload:
    """How the handshake of a connection is computed in a thread, and who goes on with it when it was."""

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self.wake: Callable[[], None] | None = None  # there is nobody before there is a connection, and after it


# Of the connection that is made in this context: whoever makes it is heard of in `wrap_bio` only through loops.
OFFLOAD: Final[ContextVar[Offload | None]] = ContextVar("offload", default=None)


class Client(ssl.SSLContext):
    """A context of clients whose connections are bounded. What they cost is counted for each of its hosts."""

    def __init__(self, *_: Any) -> None:
        self.sslobject_class = Bounded
        self.costs = Costs()

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> "Bounded":
        """A connection that reads from `incoming` and writes to `outgoing`.

        A thread may compute for it while the loop has these two in its hands, so it has two of its own behind them.
        """
        inner, outer = ssl.MemoryBIO(), ssl.MemoryBIO()
        made = super().wrap_bio(inner, outer, server_side, server_hostname, session)
        assert isinstance(made, Bounded)  # noqa: S101 - says so to mypy
        made.attach(incoming, outgoing, inner, outer, self.costs)
        return made


class Bounded(ssl.SSLObject):
    """One connection. What asyncio and uvloop call of it is here, or asks nothing of the server."""

    def attach(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        inner: ssl.MemoryBIO,
        outer: ssl.MemoryBIO,
        costs: Costs,
    ) -> None:
        """Begin, with nothing counted."""
        self._incoming, self._outgoing = incoming, outgoing
        self._inner, self._outer = inner, outer
        self._costs = costs
        self._offload = OFFLOAD.get()
        self._host = self.server_hostname or ""
        self._held: bytes | None = b""  # from the server, until its first message has been judged
        self._heard = 0  # bytes of the handshake, and of what was no answer after it
        self._unsettled = 0  # bytes since the last piece of an answer
        self._seconds = 0.0
        self._record_costs = _RECORD_COSTS_MOST
        self._is_computing = False
        self._has_computed = False  # and nobody has been told yet what came of it
        self._wants_more = False
        self._error: Exception | None = None
        self._cost = 0.0  # of the last step, in CPU time

    def do_handshake(self) -> None:
        """One step. SSLWantReadError says that the server has to speak before the next one, or a thread to end this."""
        if self._is_computing:
            if self._heard + self._incoming.pending > MOST_BYTES:
                raise ssl.SSLError(_TOO_MUCH)
            raise ssl.SSLWantReadError
        self._pass_on()
        if not self._has_computed or (self._wants_more and self._incoming.pending):
            if self._listen() and self._offload is not None:
                self._is_computing = True
                owed = self._costs.owed(self._host, time.monotonic())
                self._offload.compute(max(owed, 0.0), self._step, self._stepped)
                raise ssl.SSLWantReadError
            self._step()
            self._charge(self._cost)
            self._pass_on()
        self._has_computed = False
        if self._wants_more:
            raise ssl.SSLWantReadError
        if self._error is not None:
            raise self._error
        if self._costs.is_overdrawn(self._host, time.monotonic()):
            raise ssl.SSLError("this handshake has cost too much")
        self._record_costs = _RECORD_COSTS.get(self.version() or "", _RECORD_COSTS_MOST)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        self._inner.write(self._incoming.read())
        there = self._inner.pending
        try:
            answer: Any = super().read(len, buffer)  # bytes, or how many there are in `buffer`
        except ssl.SSLWantReadError:
            self._unsettled += there - self._inner.pending
            if self._unsettled > MOST_BYTES:
                self._surplus(self._unsettled)
            raise
        finally:
            self._pass_on()
        size = answer if isinstance(answer, int) else answer.__len__()
        surplus = self._unsettled + there - self._inner.pending - size - self._record_costs
        self._unsettled = 0
        if surplus > 0:
            self._surplus(surplus - super().pending())  # what has been decrypted and not been asked for yet
        return answer

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        finally:
            self._pass_on()

    def unwrap(self) -> Any:
        self._inner.write(self._incoming.read())
        try:
            return super().unwrap()
        finally:
            self._pass_on()

    def pending(self) -> int:
        """Bytes that can be read, and those of which nobody knows yet: uvloop reads on until there are none."""
        return super().pending() + self._inner.pending

    def _pass_on(self) -> None:
        if self._outer.pending:
            self._outgoing.write(self._outer.read())

    def _listen(self) -> bool:
        """Take what the server said, up to what a handshake may have. True when the next step may cost much."""
        if not self._incoming.pending:  # uvloop loses the socket of one that ends before it has begun
            return False
        if self._costs.is_overdrawn(self._host, time.monotonic()):
            raise ssl.SSLError("handshakes with this host have cost too much")
        self._hear(self._incoming.pending)
        if self._held is None:
            self._inner.write(self._incoming.read())
            return True
        said = self._held + self._incoming.read()
        is_whole = self._judge(said)
        # What is no TLS is refused at once: who speaks so often hangs up before a thread has looked.
        return is_whole and said[0] in _BEFORE_HELLO

    def _step(self) -> None:
        """In a thread, perhaps: it only touches what is behind the two of the loop."""
        self._wants_more, self._error, self._cost = False, None, 0.0
        if self._is_computing and self._offload is not None and self._offload.wake is None:
            return  # the connection has ended while it stood in line
        began = time.thread_time()
        try:
            super().do_handshake()
        except ssl.SSLWantReadError:
            self._wants_more = True
        except Exception as error:
            self._error = error
        self._cost = time.thread_time() - began

    def _stepped(self) -> None:
        self._is_computing, self._has_computed = False, True
        self._charge(self._cost)
        if self._offload is not None and self._offload.wake is not None:
            self._offload.wake()

    def _judge(self, held: bytes) -> bool:
        """Pass on what the server said, but its first message only when it is whole, and asks for nothing costly."""
        passed, is_whole = judged(held)
        self._inner.write(held[:passed])
        self._held = None if is_whole else held[passed:]
        return is_whole

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
            raise ssl.SSLError(_TOO_MUCH)


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
