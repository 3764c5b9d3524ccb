"""What is said of what is to be sent again, and what is shown of how far that is."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from webhookd.web.messages.shapes import Channel, Tag
from webhookd.web.shapes import Given, Listed, Page, Shape, Word

Moment = Annotated[AwareDatetime, Field(strict=False)]
Status = Literal["running", "finished", "failed"]
# As client libraries know them: a test, and a resend, are an endpoint.replay for them, and `data` says what they are.
Task = Literal["endpoint.recover", "endpoint.replay", "endpoint.bulk-replay"]


class SpanIn(Given):
    """Of which time."""

    since: Moment
    """What was inserted since then."""
    until: Moment | None = None
    """And until then; until now without it."""

    @model_validator(mode="after")
    def _the_one_before_the_other(self) -> Self:
        if self.until is not None and self.until < self.since:
            raise ValueError("until is before since")
        return self


def _not_owed(status: int) -> int:
    if status in (1, 3):
        raise ValueError("what is waiting or to be tried again is owed already: 0, 2 or 4 can be sent again")
    return status


class BulkReplayIn(SpanIn):
    """Which messages; all that the endpoint subscribes to without more."""

    event_types: Annotated[list[Word], Field(max_length=100)] | None = None
    """Of these types only; of all without any."""
    channel: Channel | None = None
    """With this channel."""
    tag: Tag | None = None
    """With this tag."""
    status: Annotated[Literal[0, 1, 2, 3, 4], AfterValidator(_not_owed)] | None = None
    """0 what was delivered, 2 what failed, 4 what was discarded."""
    status_code_class: Literal[0, 100, 200, 300, 400, 500] | None = None
    """Last answered with 400 to 499, say; 0 for no answer."""


class ExampleIn(Given):
    """An example of which type."""

    event_type: Word


class TestIn(Given):
    """Which examples; without a type, of all that the endpoint subscribes to."""

    event_type: Word | None = None


class BegunOut(Shape):
    """Work that has begun."""

    id: str
    status: Status
    task: Task
    updated_at: datetime


class TaskOut(BegunOut):
    """Work that goes on, as far as it is."""

    data: dict[str, Any]


class TaskPage(Page[TaskOut]):
    """A page of such work."""


class TaskListing(Listed):
    """Which work: the newest comes first."""

    status: Status | None = None
    task: Literal["endpoint.recover", "endpoint.replay", "endpoint.bulk-replay"] | None = None
    order: Literal["ascending", "descending"] = "descending"


class ResentOut(Shape):
    """What was wanted."""

    task_id: str
    """By which `/background-task` tells what came of it."""


class TestOut(Shape):
    """What came of tests."""

    data: dict[str, Any]
    error: str | None
