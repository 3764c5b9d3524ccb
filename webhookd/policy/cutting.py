"""What a cut may take of the log, and what it took."""

from collections.abc import Sequence
from typing import NamedTuple

from webhookd.model import Batch


class Share(NamedTuple):
    """What a cut may take: events of the log, and of the surplus of those that had more than their share."""

    most: int  # events of one tenant; what it has beyond is surplus
    read: int  # events of all
    surplus: int  # events that become batches again; 0 for none
    full: Sequence[str]  # tenants all of whose new events are surplus
    busy: Sequence[str]  # tenants whose surplus waits
    after: str | None  # the tenant whose surplus was drawn last: the next turn is the next one's


class Cut(NamedTuple):
    """New batches. `more`: the log has not been read to its end; `drawn`: whose surplus was drawn last."""

    batches: Sequence[Batch] = ()
    more: bool = False
    drawn: str | None = None
