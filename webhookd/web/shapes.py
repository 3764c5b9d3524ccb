"""What bodies and queries have in common, as pydantic models with the names that are on the wire.

A key that no model knows is ignored, as client libraries may be newer than we are.
"""

import re
from typing import Annotated, Final, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

T = TypeVar("T")

WORD: Final = r"^[a-zA-Z0-9\-_.]+$"  # what ids, uids, names of types and channels are made of
_UNSTORABLE: Final = re.compile(r"[\x00\ud800-\udfff]")
PAGE, MOST = 50, 250  # things on a page
KEYS_MOST: Final = 100


def storable(text: str) -> str:
    """The text, unless Postgres could not keep it."""
    if _UNSTORABLE.search(text):
        raise ValueError("has a character that cannot be kept: NUL, or half of a surrogate pair")
    return text


class Shape(BaseModel):
    """The body of a request or an answer."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class Given(Shape):
    """The body of a request, whose values are what they say they are: no text is taken for a number."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Query(BaseModel):
    """The query of a request: all of it is text."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def nulls(self: BaseModel, *names: str) -> None:
    """Raise ValueError for what was said to be null and cannot be: absent keeps, null clears."""
    for name in names:
        if name in self.model_fields_set and getattr(self, name) is None:
            raise ValueError(f"{to_camel(name)} cannot be null; leave it out to keep it")


def _few(metadata: object) -> object:
    """What it is, unless it is so many that even to say what is wrong with each would take long."""
    if isinstance(metadata, dict) and len(metadata) > KEYS_MOST:
        raise ValueError(f"may have {KEYS_MOST} keys at most")
    return metadata


def _parted(value: object) -> object:
    """What is there several times, or once with commas: client libraries do either."""
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        return [part for text in texts for part in text.split(",")]
    return value


Text = Annotated[str, AfterValidator(storable)]
Word = Annotated[str, Field(min_length=1, max_length=256, pattern=WORD)]
Uid = Annotated[str, Field(min_length=1, max_length=255, pattern=WORD)]  # as a tenant of the outbox
Many = Annotated[list[Word], BeforeValidator(_parted), Field(max_length=500)]
Name = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(storable)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=256), AfterValidator(storable)], Annotated[Text, Field(max_length=4096)]],
    BeforeValidator(_few),
]
Rate = Annotated[int, Field(ge=1, le=65_535)]


class Listed(Query):
    """Which page of a list."""

    limit: Annotated[int, Field(ge=1, le=MOST)] = PAGE
    """Things on a page."""
    iterator: str | None = None
    """What the page before gave as `iterator`, or as `prevIterator` to go back."""


class Ordered(Listed):
    """Which page of a list that has two directions."""

    order: Literal["ascending", "descending"] = "ascending"
    """Whether the oldest or the newest comes first."""


class Page(Shape, Generic[T]):
    """A page of a list."""

    data: list[T]
    iterator: str | None
    prev_iterator: str | None
    done: bool


class Nothing(Shape):
    """An object without anything in it."""
