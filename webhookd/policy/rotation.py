"""Whose turn it is: round robin over tenants and the members of each, so that a busy one delays others by one turn."""

from collections import deque
from typing import Generic, TypeVar

Member = TypeVar("Member")


class Rotation(Generic[Member]):
    """Members that have something to do, each at most once; every operation takes constant time."""

    def __init__(self) -> None:
        self._tenants: deque[str] = deque()
        self._members: dict[str, deque[Member]] = {}
        self._present: set[Member] = set()

    def __len__(self) -> int:
        return len(self._present)

    def add(self, tenant: str, member: Member) -> None:
        """Put `member` behind the others of its tenant, unless it already waits."""
        if member in self._present:
            return
        self._present.add(member)
        members = self._members.get(tenant)
        if members is None:
            self._members[tenant] = deque((member,))
            self._tenants.append(tenant)
        else:
            members.append(member)

    def take(self) -> Member | None:
        """Take the member whose turn it is out of the rotation; None when nobody waits."""
        if not self._tenants:
            return None
        tenant = self._tenants.popleft()
        members = self._members[tenant]
        member = members.popleft()
        self._present.discard(member)
        if members:
            self._tenants.append(tenant)
        else:
            del self._members[tenant]
        return member
