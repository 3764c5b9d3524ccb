"""Names to addresses, on threads of its own, so that names that do not resolve hold up none that do.

A lookup cannot be ended: a thread that waits for a dead name server waits on when nobody listens any longer. So names
that have never resolved share a part of the threads, those that failed last another, and the rest is always free for
names that are known to work. Of one domain only a few that are not may be looked up at one time.
"""

import asyncio
import socket
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from weakref import WeakValueDictionary

from aiohttp.abc import AbstractResolver, ResolveResult

from webhookd.guard import address_mistake
from webhookd.model import Network

SECONDS = 5.0  # for a lookup, its wait for a thread included
THREADS, FOR_NEW, FOR_FAILING = 64, 32, 16
PER_DOMAIN = 4
ADDRESSES = 4  # a name with N refused addresses costs N(N+1)/2 connects
REMEMBERED = 20_000  # names


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
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="dns")
        self._worked: OrderedDict[str, bool] = OrderedDict()  # whether a name did when it was looked up last
        self._new = asyncio.Semaphore(FOR_NEW)
        self._failing = asyncio.Semaphore(FOR_FAILING)
        self._domains: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Up to four addresses; Verdict with `dns_timeout` or `egress_denied`, or the system's own OSError."""
        try:
            async with asyncio.timeout(SECONDS):
                addresses = await self._lookup(host, port)
        except TimeoutError:
            self._note(host, worked=False)  # its thread may not know that for long
            raise Verdict("dns_timeout") from None
        if any(address_mistake(address, port, self.allow_networks) for address in addresses):
            raise Verdict("egress_denied")
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in addresses[:ADDRESSES]
        ]

    async def close(self) -> None:
        """Begin nothing more; threads that are stuck end with the process."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _lookup(self, host: str, port: int) -> list[str]:
        doors = self._doors(host)
        entered: list[asyncio.Semaphore] = []
        try:
            for door in doors:
                await door.acquire()
                entered.append(door)
            lookup = self._threads.submit(_addresses, host, port)
        except BaseException:
            for door in entered:
                door.release()
            raise
        lookup.add_done_callback(partial(self._tell, asyncio.get_running_loop(), host, entered))
        return await asyncio.wrap_future(lookup)

    def _doors(self, host: str) -> tuple[asyncio.Semaphore, ...]:
        """What a lookup of this name has to wait for."""
        worked = self._worked.get(host)
        if worked:
            return ()
        domain = ".".join(host.rstrip(".").lower().rsplit(".", 2)[-2:])
        crowd = self._domains.setdefault(domain, asyncio.Semaphore(PER_DOMAIN))
        return crowd, self._new if worked is None else self._failing

    def _tell(
        self,
        loop: asyncio.AbstractEventLoop,
        host: str,
        entered: Sequence[asyncio.Semaphore],
        lookup: Future[list[str]],
    ) -> None:
        """In the thread: its work is over, whether or not anybody waited for it."""
        good = not lookup.cancelled() and lookup.exception() is None
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._left, host, good, entered)

    def _left(self, host: str, good: bool, entered: Sequence[asyncio.Semaphore]) -> None:
        self._note(host, worked=good)
        for door in entered:
            door.release()

    def _note(self, host: str, *, worked: bool) -> None:
        self._worked[host] = worked
        self._worked.move_to_end(host)
        if len(self._worked) > REMEMBERED:
            self._worked.popitem(last=False)


def _addresses(host: str, port: int) -> list[str]:
    """In the order of the system's preference, each once."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
