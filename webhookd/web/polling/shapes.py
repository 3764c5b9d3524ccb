"""What is asked for by who polls, and what is answered."""

from datetime import datetime
from typing import Annotated, Final, Self

from pydantic import AwareDatetime, Field

from webhookd.web.messages.shapes import Channel, MessageOut
from webhookd.web.shapes import MOST, PAGE, Given, Query, Shape, Word

WAIT: Final = 10.0  # seconds that an answer waits for events, unless its caller says how many
WAIT_MOST: Final = 60.0


class Consuming(Query):
    """From where on, and how much."""

    limit: Annotated[int, Field(ge=1, le=MOST)] = PAGE
    """Events of an answer, at most."""
    iterator: str | None = None
    """What the answer before gave: all that it had has arrived. Without it, from where that was last said."""
    wait: Annotated[float, Field(ge=0, le=WAIT_MOST)] = WAIT
    """Seconds to wait for an event where there is none."""


class Polling(Consuming):
    """The same, and which events."""

    event_type: Word | None = None
    """Of this type only."""
    channel: Channel | None = None
    """With this channel."""
    after: AwareDatetime | None = None
    """Without an iterator: what came from this moment on."""


class SeekIn(Given):
    """Where to begin."""

    after: AwareDatetime = Field(strict=False)
    """With what came from this moment on."""


class SeekOut(Shape):
    """The place."""

    iterator: str


class PolledMessageOut(MessageOut):
    """An event, and the headers of the request that it would be: they prove the payload as it stands here."""

    headers: dict[str, str]


class MissedOut(Shape):
    """What retention took before it was fetched: between these moments, so many events where they were counted."""

    from_: datetime | None = Field(alias="from")
    to: datetime | None
    count: int | None

    @classmethod
    def of(cls, since: datetime | None, until: datetime | None, count: int | None) -> Self:
        """`from` is no name in Python."""
        return cls.model_validate({"from": since, "to": until, "count": count})


class PolledOut(Shape):
    """Events, oldest first, and where to go on; `done` where there are no more and nobody waited for them."""

    data: list[PolledMessageOut]
    iterator: str
    done: bool
    missed: MissedOut | None


class PollerTokenIn(Given):
    """How long the new token counts, and those before it."""

    expiry: Annotated[int, Field(ge=1, le=31_536_000)] | None = None
    """Seconds; without it, until it is revoked."""
    old_token_expiry: Annotated[int, Field(ge=0, le=86_400)] = 300
    """Seconds that those before it go on counting."""


class PollerTokenOut(Shape):
    """A token, which is shown this once: later it is empty."""

    token: str
    id: str
    name: str | None
    created_at: datetime
    expires_at: datetime | None
    scopes: list[str] | None
