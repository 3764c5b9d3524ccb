"""What may be said of an endpoint: a model of its own, and never that of the files.

Values only, since a file, a variable or a credential of the operator's would leave in a header.
"""

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from webhookd.message.kept import TIMEOUT_MOST
from webhookd.message.own_signature import headers_in
from webhookd.message.signing import parse_secret
from webhookd.policy.payload_filter import compiled
from webhookd.web.shapes import Given, Metadata, Page, Rate, Shape, Text, Uid, Word, nulls

VALUES, TEXT = 50, 256  # of a filter under one label or path; characters of each
FOREVER: Final = 7 * 86_400  # seconds that an old secret may go on
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")  # RFC 9110, section 5.6.2
_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_OURS: Final = re.compile(
    r"host|content-.*|transfer-encoding|connection|keep-alive|proxy-.*|expect|te|upgrade|trailer|cookie|accept-encoding|"
    r"user-agent|(webhook|svix)-.*",
    re.IGNORECASE,
)


def _secret(text: str) -> str:
    whole = text if text.startswith("whsec_") else f"whsec_{text}"
    parse_secret(whole)
    return whole


def _not_ours(uid: str) -> str:
    if uid.startswith("ep_"):
        raise ValueError("must not begin with ep_, as the ids that are made here do")
    return uid


def _header_name(name: str) -> str:
    if not _HEADER.fullmatch(name):
        raise ValueError("is no name of a header")
    if _OURS.fullmatch(name):
        raise ValueError("is a header of ours, or of the connection")
    return name


def _signed(text: str) -> str:
    headers_in(text)
    return text


def _of_payloads_alone(said: dict[str, Any]) -> dict[str, Any]:
    """What is said of payloads stands under `data`, and nothing else does."""
    for key, value in said.items():
        if isinstance(value, dict) is not (key == "data"):
            raise ValueError("data is an object of paths in the payload; every other label has a list of values")
    return said


def _header_value(value: str) -> str:
    if value and not _VALUE.fullmatch(value):
        raise ValueError("wants one line of printable ASCII")
    return value


Own = Annotated[Uid, AfterValidator(_not_ours)]
Secret = Annotated[str, Field(max_length=110), AfterValidator(_secret)]
Channels = Annotated[list[Annotated[Word, Field(max_length=128)]], Field(min_length=1, max_length=10)]
Type = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[a-zA-Z0-9\-_.]+(\.\*)?$")]
Types = Annotated[list[Type], Field(min_length=1, max_length=1_000)]
Description = Annotated[Text, Field(max_length=1_000)]
Link = Annotated[Text, Field(max_length=2_048)]
Name = Annotated[str, AfterValidator(_header_name)]
FormatName = Annotated[Word, Field(max_length=128)]
Value = Annotated[str, Field(max_length=4_096), AfterValidator(_header_value)]


def _conditions(said: dict[str, Any]) -> dict[str, Any]:
    for path, among, _, bounds in compiled(said):
        values = [*(among or ()), *(value for _, value in bounds)]
        if len(values) > VALUES or any(len(value) > TEXT for value in values if isinstance(value, str)):
            raise ValueError(f"{path[:80]} may have {VALUES} values at most, of {TEXT} characters each")
    return said


Values = Annotated[list[Annotated[Text, Field(max_length=TEXT)]], Field(min_length=1, max_length=VALUES)]
OfPayloads = Annotated[dict[str, Any], Field(min_length=1, max_length=20), AfterValidator(_conditions)]
Passing = Annotated[
    Annotated[Values, Tag("list")] | Annotated[OfPayloads, Tag("object")],
    Discriminator(lambda value: "object" if isinstance(value, dict) else "list"),
]
Filter = Annotated[
    dict[Annotated[Text, Field(max_length=256)], Passing], AfterValidator(_of_payloads_alone), Field(max_length=20)
]


Timeout = Annotated[float, Field(ge=1, le=TIMEOUT_MOST)]
Seconds = Annotated[float, Field(ge=1, le=30 * 86_400)]


class RetryIn(Given):
    """When a failed delivery is tried again, and when it is given up, in seconds; the rest is as [retry] has it."""

    first: Seconds | None = None
    """After the first attempt."""
    factor: Annotated[float, Field(ge=1, le=100)] | None = None
    """By which each wait is longer than the one before."""
    max_interval: Seconds | None = None
    """The longest wait."""
    schedule: Annotated[list[Seconds], Field(min_length=1, max_length=50)] | None = None
    """The waits, in the place of the three above."""
    give_up_after: Seconds | None = None
    """After the event came; a day less than events are kept, at most."""

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if self.schedule is not None and {"first", "factor", "max_interval"} & self.model_fields_set:
            raise ValueError("schedule stands in the place of first, factor and maxInterval")
        if self.first is not None and self.max_interval is not None and self.first > self.max_interval:
            raise ValueError("first is longer than maxInterval")
        return self


class DisableIn(Given):
    """When an endpoint is disabled: so many failures in a row, over so many seconds."""

    failures: Annotated[int, Field(ge=1, le=1_000_000)]
    seconds: Seconds


class HmacIn(Given):
    """A signature of the operator's own, as `hmac` of a file has it; the whole text of the secret is its key."""

    header: Name
    """The header that has it."""
    hash: Literal["sha256", "sha512", "sha1"] = "sha256"
    """The hash that the HMAC is made with."""
    encoding: Literal["hex", "base64"] = "hex"
    """How it is written."""
    prefix: Annotated[str, Field(max_length=64, pattern=r"^[\x20-\x7e]*$")] = ""
    """What stands before it."""
    signed: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_signed)] = "$body"
    """What it is of: a text with $body, $id, $timestamp and $header.NAME."""
    timestamp_header: Name | Literal[""] = ""
    """A header that has the time of the attempt."""
    timestamp: Literal["seconds", "iso", "http"] = "seconds"
    """How the time is written."""


class OperatorsIn(Given):
    """What an operator says of an endpoint, and no portal."""

    kind: Literal["push", "poll"] | None = None
    """poll: its events are fetched, and it has no url. It stays what it was made as."""
    max_in_flight: Annotated[int, Field(ge=1, le=1_000)] | None = None
    """Requests at one time, at most; as [delivery] has it without."""
    disable_after: DisableIn | None = None
    """As [delivery] has it without."""
    hmac: HmacIn | None = None
    """A signature of one's own, in the place of `signature`."""


class EndpointUpdate(Given):
    """What an endpoint is to be like."""

    url: Link
    """Where its events go: https, and a public address; empty for one that is polled."""
    description: Description = ""
    """What it is for."""
    uid: Own | None = None
    """The caller's own id for it."""
    event_types: Types | None = None
    """The types it gets, such as order.created, or order.* for all below; all without them. Formerly filterTypes."""
    filter_types: Types | None = None
    channels: Channels | None = None
    """It gets only what shares one of these; without them, all."""
    disabled: bool = False
    """Whether it gets nothing."""
    metadata: Metadata = Field(default={})
    """Whatever its owner wants to keep with it."""
    rate_limit: Rate | None = None
    """Requests a second, at most. The older name of throttleRate."""
    throttle_rate: Rate | None = None
    timeout: Timeout | None = None
    """Seconds that a request may take; as [delivery] has it without."""
    retry: RetryIn | None = None
    """When what failed is tried again."""
    webhookd: OperatorsIn | None = None
    """What is the operator's to say."""
    version: int | None = None
    """Taken, and not used."""


class EndpointIn(EndpointUpdate):
    """An endpoint."""

    secret: Secret | None = None
    """What its requests are signed with; made if there is none."""
    headers: dict[Name, Value] = Field(default={}, max_length=50)
    """Headers that its requests have beside ours."""
    signature: Literal["standard", "svix", "none"] = "standard"
    """Whether its requests have svix-id and the others of Svix beside webhook-id and the others, or no signature."""
    format: FormatName = "raw"
    """The payload itself, or around it what Standard Webhooks or CloudEvents has; or a format of the operator's."""
    filter: Filter = Field(default={})
    """Metadata that its events have: a label, and the values that pass; `data` is of the payload, as in files."""


class EndpointPatch(Given):
    """What is to be different; null clears what can be missing."""

    url: Link | None = None
    description: Description | None = None
    uid: Own | None = None
    event_types: Types | None = None
    filter_types: Types | None = None
    channels: Channels | None = None
    disabled: bool | None = None
    metadata: Metadata | None = None
    rate_limit: Annotated[int, Field(ge=0, le=65_535)] | None = None
    throttle_rate: Annotated[int, Field(ge=0, le=65_535)] | None = None
    signature: Literal["standard", "svix", "none"] | None = None
    format: FormatName | None = None
    filter: Filter | None = None
    timeout: Timeout | None = None
    retry: RetryIn | None = None
    webhookd: OperatorsIn | None = None
    version: int | None = None

    @model_validator(mode="after")
    def _something_where_something_must_be(self) -> Self:
        nulls(self, "url", "description", "disabled", "metadata", "signature", "format")
        return self


class EndpointOut(Shape):
    """An endpoint."""

    id: str
    uid: str | None
    url: str
    description: str
    event_types: list[str] | None
    filter_types: list[str] | None
    channels: list[str] | None
    disabled: bool
    metadata: dict[str, str]
    rate_limit: int | None
    throttle_rate: int | None
    version: int
    created_at: datetime
    updated_at: datetime
    signature: str
    format: str
    filter: dict[str, Any]
    timeout: float | None
    retry: dict[str, Any] | None
    webhookd: dict[str, Any] | None
    read_only: bool


class EndpointPage(Page[EndpointOut]):
    """A page of endpoints."""


class SecretOut(Shape):
    """What its requests are signed with; empty for who may change it and not see it."""

    key: str


class RotationIn(Given):
    """How to go over to another secret."""

    key: Secret | None = None
    """The new one; made if there is none."""
    grace_period_seconds: Annotated[int, Field(ge=0, le=FOREVER)] | None = 86_400
    """How long those before go on signing."""


class HeadersIn(Given):
    """All headers."""

    headers: dict[Name, Value] = Field(max_length=50)


class HeadersPatch(Given):
    """Headers that are to be different; null removes one."""

    headers: dict[Name, Value | None] = Field(max_length=50)


class HeadersOut(Shape):
    """Headers, but for the values of those that tell a secret."""

    headers: dict[str, str]
    sensitive: list[str]
