"""The tables that have names of their own, also in the files of endpoints: event types, formats and endpoints."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Final, Literal

from pydantic import Field

from webhookd.config.checks import (
    Example,
    Filter,
    FormatName,
    HeaderName,
    HeaderOrNone,
    Many,
    Pattern,
    Plain,
    Rate,
    Signature,
    Signed,
    Slots,
    Storable,
    Template,
    Tenant,
    Timeout,
    Url,
)
from webhookd.config.schema import DisableAfter, Retry, Shape
from webhookd.config.secrets import (
    ClientSecret,
    ClientWord,
    CredentialSecret,
    EnvironSecret,
    FileSecret,
    Headers,
    Keys,
    OneSecret,
    PemFile,
    Secret,
)

SECRETS: Final = ("secret", "secrets", "secret_file", "secret_env", "secret_credential")


class EventType(Shape):
    """A type of event, described for people; a type that is not listed is no error."""

    description: Annotated[Storable, Field(max_length=1000)] = ""
    """What has happened when it comes."""
    example: Example = None
    """A payload as an application would write it."""


class FormatTable(Shape):
    """A body of one's own, as a template."""

    body: Template
    """The body, with placeholders such as "$type", "$timestamp", "$data" and "$metadata.KEY" in its texts."""


class Hmac(Shape):
    """A signature of one's own: an HMAC in a header."""

    header: HeaderName
    """The header that has it."""
    hash: Literal["sha256", "sha512", "sha1"] = "sha256"
    """The hash that the HMAC is made with."""
    encoding: Literal["hex", "base64"] = "hex"
    """How it is written."""
    prefix: Annotated[str, Field(max_length=64, pattern=r"^[\x20-\x7e]*$")] = ""
    """What stands before it."""
    signed: Signed = "$body"
    """What it is of: a text with $body, $id, $timestamp and $header.NAME, such as "$timestamp.$body"."""
    timestamp_header: HeaderOrNone = ""
    """A header that has the time of the attempt, beside webhook-timestamp."""
    timestamp: Literal["seconds", "iso", "http"] = "seconds"
    """How the time is written there and in signed: 1767225600, 2026-01-01T00:00:00Z, or as HTTP has dates."""


class Tls(Shape):
    """Whom an endpoint's connections trust, and what they show of themselves."""

    ca_file: PemFile = Field(default="", repr=False)
    """The authorities, in PEM, instead of those of the system."""
    certificate_file: PemFile = Field(default="", repr=False)
    """The client's certificate with its chain, in PEM."""
    key_file: PemFile = Field(default="", repr=False)
    """Its key, in PEM and unencrypted, when it is not in the same file."""


class Auth(Shape):
    """A token of OAuth 2 for the receiver, got as RFC 6749 4.4 has it: with client credentials."""

    token_url: Url = Field(repr=False)
    """Where tokens are asked for. The authorities of the system vouch for it, whatever tls says of the receiver."""
    client_id: ClientWord
    """Who we are there."""
    client_secret: ClientSecret = Field(repr=False)
    """What proves it: the text, or { file = "client.secret" }, or with env or credential."""
    scope: Plain = ""
    """What the token shall allow, where that is asked; several words with spaces between."""
    audience: Plain = ""
    """For whom the token is, where that is asked."""
    client_authentication: Literal["basic", "post"] = "basic"
    """Whether id and secret stand in a header or in the body of that request."""


class EndpointTable(Shape):
    """A subscriber: where events go, which ones, and how they are signed."""

    kind: Literal["push", "poll"] = "push"
    """Whether its events are sent to it, or fetched by whom they are for, who cannot be reached: docs/polling.md."""
    url: Url = Field(default="", repr=False)
    """Where the requests go; one that is polled has none."""
    events: Annotated[Many[Pattern], Field(min_length=1)]
    """The types it gets: "order.created", "order.*" for one or more further words, or "*" for all."""
    tenant: Tenant = ""
    """Exactly this tenant's events; "*" for every tenant's."""
    description: Annotated[Storable, Field(max_length=1000)] = ""
    """What it is for."""
    active: bool = True
    """Whether it gets events; while it is false, new ones are not owed to it."""
    secret: OneSecret = Field(default=(), repr=False)
    """What its requests are signed with; `webhookd secret new` makes one."""
    secrets: Annotated[Many[Secret], Field(min_length=1, max_length=10)] = Field(default=(), repr=False)
    """Instead of secret: several, each signs, also until a date: ["…", { file = "old", until = 2027-01-31 }]."""
    secret_file: FileSecret = Field(default=(), repr=False)
    """Instead of secret: a file that holds it; a relative path starts at the folder of the file that names it."""
    secret_env: EnvironSecret = Field(default=(), repr=False)
    """Instead of secret: the environment variable that holds it."""
    secret_credential: CredentialSecret = Field(default=(), repr=False)
    """Instead of secret: the systemd credential that holds it, a file in $CREDENTIALS_DIRECTORY."""
    signature: Signature = "standard"
    """Standard Webhooks, v1 or v1a as its secrets are; or another, for receivers that already check that."""
    hmac: Hmac | None = None
    """With signature = "hmac": { header = "x-signature", hash = "sha256", encoding = "hex", prefix = "sha256=" }."""
    format: FormatName = "standard"
    """What the body looks like."""
    headers: Headers = Field(default={}, repr=False)
    """Headers of its requests: { x-event = "$type" }, or { authorization = { file = "token", prefix = "Bearer " } }."""
    tls: Tls | None = None
    """{ ca_file = "ca.pem", certificate_file = "client.pem", key_file = "client.key" }, or some of them."""
    auth: Auth | None = None
    """OAuth 2: { token_url = "https://…", client_id = "…", client_secret = { file = "client.secret" }, … }."""
    timeout: Timeout | None = None
    """Instead of that of [delivery]."""
    max_in_flight: Slots | None = None
    """Requests at one time, instead of max_in_flight_per_endpoint of [delivery]."""
    rate_limit: Rate | None = None
    """At most so many requests, evenly: "50/s", "600/m" or "1000/h", from all daemons together."""
    retry: Retry = Retry()
    """What is different from [retry]."""
    disable_after: DisableAfter | None = None
    """Instead of that of [delivery]; { failures = 0 } for never."""
    disable_on_request: bool = False
    """Whether an answer with the header `webhook-delivery: disable` disables it."""
    ordered: Literal[False, True, "key"] = False
    """true: one event after the other, as they were committed; "key": one after the other of each ordering_key."""
    on_exhausted: Literal["skip", "hold"] = "skip"
    """With ordered, when the time of an event is over: go on without it, or wait until it is resent or discarded."""
    filter: Filter = Field(default={})
    """Only events with one of these values under each of these keys of the metadata; data = { … } is of the payload."""

    @property
    def keys(self) -> Keys:
        """The secrets, whichever way they were given."""
        return self.secret or self.secrets or self.secret_file or self.secret_env or self.secret_credential


NAMED: Final[Mapping[str, type[Shape]]] = MappingProxyType(
    {"event_types": EventType, "formats": FormatTable, "endpoint": EndpointTable}
)
