"""Names to addresses, on threads of its own, so that names that do not resolve hold up none that do.

A lookup cannot be ended: a thread that waits for a dead name server waits on when nobody listens any longer. So names
that are new share a part of the threads, which is large, as after a start all are; those that failed last share a small
one; and the rest is always free for names that are known to work. Of one domain only a few that are not may be looked
up at one time. Threads are made when they are needed.
"""

import asyncio
import queue
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from weakref import WeakValueDictionary

from aiohttp.abc import AbstractResolver, ResolveResult

from webhookd.egress.guard import address_mistake
from webhookd.model import Network

SECONDS = 5.0  # for a lookup, its wait for a thread included
FOR_NEW, FOR_FAILING, FOR_WORKING = 256, 16, 48  # threads
PER_DOMAIN = 4
ADDRESSES = 4  # a name with N refused addresses costs N(N+1)/2 connects
REMEMBERED = 20_000  # names


_Tell = Callable[[list[str], BaseException | None], None]


class Verdict(OSError):
    """A verdict on its way out through aiohttp, which wraps it; the text is a code and holds no address.

    `ours`: no receiver had a part in it.
    """

    def __init__(self, code: str, *, ours: bool = False) -> None:
        super().__init__(code)
        self.ours = ours


class Resolver(AbstractResolver):
    """Resolves for aiohttp; an answer with one denied address is refused as a whole."""

    def __init__(self, allow_networks: tuple[Network, ...]) -> None:
        self.allow_networks = allow_networks
        self._threads = _Threads(FOR_NEW + FOR_FAILING + FOR_WORKING)
        self._worked: OrderedDict[str, bool] = OrderedDict()  # whether a name did when it was looked up last
        self._new = asyncio.Semaphore(FOR_NEW)
        self._failing = asyncio.Semaphore(FOR_FAILING)
        self._running: dict[str, asyncio.Future[list[str]]] = {}
        self._domains: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Up to four addresses; Verdict with `dns_timeout` or `egress_denied`, or the system's own OSError."""
        addresses = await self.addresses(host, port)
        if any(address_mistake(address, port, self.allow_networks) for address in addresses):
            raise Verdict("egress_denied")
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in addresses[:ADDRESSES]
        ]

    async def addresses(self, host: str, port: int) -> list[str]:
        """All of them, also those that are denied; Verdict with `dns_timeout`, or the system's own OSError."""
        try:
            async with asyncio.timeout(SECONDS):
                return await self._lookup(host, port)
        except TimeoutError:
            raise Verdict("dns_timeout") from None

    async def close(self) -> None:
        """Begin nothing more; threads that are stuck end with the process."""
        self._threads.close()

    async def _lookup(self, host: str, port: int) -> list[str]:
        """Its addresses. However many want them at one time, one thread looks them up."""
        if host not in self._running:
            entered: list[asyncio.Semaphore] = []
            try:
                for door in self._doors(host):
                    await door.acquire()
                    entered.append(door)
                if host not in self._running:
                    self._begin(host, port, entered)
                    entered = []
            finally:
                for door in entered:
                    door.release()
        running = self._running[host]
        try:
            return await asyncio.shield(running)
        finally:
            if not running.done():  # somebody has lost patience, and its thread may not know for long
                self._note(host, worked=False)

    def _begin(self, host: str, port: int, doors: Sequence[asyncio.Semaphore]) -> None:
        loop = asyncio.get_running_loop()
        running: asyncio.Future[list[str]] = loop.create_future()

        def tell(addresses: list[str], error: BaseException | None) -> None:
            """In the thread: its work is over, whether or not anybody waited for it."""
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(end, addresses, error)

        def end(addresses: list[str], error: BaseException | None) -> None:
            del self._running[host]
            self._note(host, worked=error is None)
            for door in doors:
                door.release()
            if error is None:
                running.set_result(addresses)
            else:
                running.set_exception(error)
                running.exception()  # nobody may be waiting for it any longer

        self._threads.look_up(host, port, tell)
        self._running[host] = running

    def _doors(self, host: str) -> tuple[asyncio.Semaphore, ...]:
        """What a lookup of this name has to wait for."""
        worked = self._worked.get(host)
        if worked:
            return ()
        domain = ".".join(host.rstrip(".").lower().rsplit(".", 2)[-2:])
        crowd = self._domains.setdefault(domain, asyncio.Semaphore(PER_DOMAIN))
        return crowd, self._new if worked is None else self._failing

    def _note(self, host: str, *, worked: bool) -> None:
        self._worked[host] = worked
        self._worked.move_to_end(host)
        if len(self._worked) > REMEMBERED:
            self._worked.popitem(last=False)


class _Threads:
    """Runs lookups on up to so many threads.

    Unlike those of an executor they are daemon threads: at its end the interpreter waits for none that is stuck.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._made = 0
        self._work: queue.SimpleQueue[tuple[str, int, _Tell] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)

    def look_up(self, host: str, port: int, tell: _Tell) -> None:
        """Tell its addresses, or why there are none, from a thread. Verdict when there can be none."""
        if not self._idle.acquire(blocking=False) and self._made < self._most:
            try:
                threading.Thread(target=self._run, name=f"dns-{self._made + 1}", daemon=True).start()
                self._made += 1
            except RuntimeError:  # no thread more for this process: those that there are have to do
                if not self._made:
                    raise Verdict("internal", ours=True) from None
        self._work.put((host, port, tell))

    def close(self) -> None:
        """End those that have nothing to do, and the others when they have."""
        for _ in range(self._made):
            self._work.put(None)

    def _run(self) -> None:
        while (asked := self._work.get()) is not None:
            host, port, tell = asked
            try:
                addresses = _addresses(host, port)
            except BaseException as error:
                tell([], error)
            else:
                tell(addresses, None)
            self._idle.release()


def _addresses(host: str, port: int) -> list[str]:
    """In the order of the system's preference, each once."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
