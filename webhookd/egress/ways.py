"""Two ways out: the operator's own, and that of endpoints which tenants have made by the API.

What an operator allows himself he has not allowed his customers, who can read the answers. Nothing is shared: a
connection that one may use is not there for the other.
"""

from typing import Self

from webhookd.egress.sender import Sender
from webhookd.exchange import NoResponse, Request, Response
from webhookd.model import Egress
from webhookd.tally import Tally


class Ways:
    """Sends each request by the way of its endpoint. Use it with `async with`.

    `tenants` is None where there is none for theirs: what they have made is refused.
    """

    def __init__(self, own: Egress, tenants: Egress | None, user_agent: str, tally: Tally | None = None) -> None:
        self._own = Sender(own, user_agent, tally)
        self._tenants = Sender(tenants or Egress(), user_agent, tally)
        self._is_closed = tenants is None

    async def __aenter__(self) -> Self:
        await self._own.__aenter__()
        await self._tenants.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._tenants.__aexit__(*error)
        await self._own.__aexit__(*error)

    def configure(self, own: Egress, tenants: Egress | None) -> None:
        """Allow this from now on."""
        self._own.configure(own)
        self._tenants.configure(tenants or Egress())
        self._is_closed = tenants is None

    async def send(self, request: Request) -> Response | NoResponse:
        """As a Sender does."""
        if request.by_api and self._is_closed:
            return NoResponse("egress_denied")
        return await (self._tenants if request.by_api else self._own).send(request)
