"""Keeps endpoints and hosts to our share of their limits, of thousands some at a time."""

from collections.abc import Iterable

from webhookd.engine.dispatch.queues import EndpointQueue, Host
from webhookd.engine.dispatch.scheduler import Scheduler
from webhookd.policy.members import Shares, alone

AT_A_TIME = 200  # endpoints that are looked at before others have their turn on the loop


class Limits:
    """How many attempts may be under way at one time: `slots` in all, `per_host`, and as many as each endpoint has."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.slots = self.per_host = 0
        self.shares: Shares = alone()
        self._scheduler = scheduler
        self._endpoints: dict[EndpointQueue, None] = {}  # those to look at
        self._hosts: set[Host] = set()  # and then their hosts

    def keep(self, queue: EndpointQueue) -> bool:
        """Keep this endpoint to our share. True when that is another than before, so that its host is to follow."""
        before = queue.most
        queue.share(*self.shares.place(self.shares.of(queue.endpoint.id)))
        return queue.most != before

    def change(self, queues: Iterable[EndpointQueue]) -> bool:
        """What decides about these has changed. True when `some` is to be called, which it may be already."""
        begun = self.is_under_way
        self._endpoints |= dict.fromkeys(queues)
        return not begun

    def some(self) -> bool:
        """Keep some more of those to it whose limits have changed; True until these were all."""
        looked_at = 0
        while self._endpoints and looked_at < AT_A_TIME:
            queue, _ = self._endpoints.popitem()
            if queue in queue.host.queues:  # else it is gone
                self.keep(queue)
                self._hosts.add(queue.host)
            looked_at += 1
        hosts = []
        while self._hosts and not self._endpoints and looked_at < AT_A_TIME:
            hosts.append(host := self._hosts.pop())
            looked_at += len(host.queues)
        self._scheduler.configure(self.slots, self.per_host, hosts, self.shares)
        return self.is_under_way

    @property
    def is_under_way(self) -> bool:
        """True while there are some to look at."""
        return bool(self._endpoints or self._hosts)
