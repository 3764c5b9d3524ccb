"""Where what is owed to an endpoint comes from."""

from enum import Enum
from typing import Final, NamedTuple


class Feed(Enum):
    """Where what is owed to an endpoint comes from, as far as this daemon is concerned."""

    MEMORY = "memory"  # it is live: every daemon sends what it cuts, within its share of the limits
    CURSOR = "cursor"  # it is parked, and we are its only sender
    NONE = "none"  # it is parked at another daemon, or nothing may be sent to it


class FeedState(NamedTuple):
    """Where an endpoint gets what it is owed, and where its breaker is: failures, and the moment of the next probe."""

    feed: Feed = Feed.MEMORY
    fails: int = 0
    retry_at: float = 0.0
    epoch: int = 0  # of the cursor


LIVE: Final = FeedState()
