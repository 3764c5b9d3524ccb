"""The request that goes out: headers, exact bytes, and a signature that receivers accept."""

import base64
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from webhookd.exchange import Request
from webhookd.message.formats import FORMATS, compile_header_value, compile_template
from webhookd.message.request import HIDDEN, build, shown
from webhookd.message.signing import SCHEMES, new_keypair, parse_secret, parse_verifier, verify
from webhookd.model import Delivery, Endpoint, Event, Key, RetryPolicy

SECRET = "whsec_" + base64.b64encode(b"planted-secret-of-test-request").decode()
OLDER = "whsec_" + base64.b64encode(b"planted-older-secret-of-test-request").decode()
HOUR = 3600
AWKWARD = [
    b"1.10",
    b'{"z":1,"a":123456789012345678901234567890}',
    b'{"a":1,"a":2}',
    rb'{"nul":"\u0000"}',
    rb'{"lone":"\ud800"}',
    b' { "a" :\n[ ] }\t',
    '{"name":"Zoë 😀"}'.encode(),
]


def endpoint(**changes: Any) -> Endpoint:
    plain = Endpoint(
        id=1,
        tenant="",
        name="hook",
        url="https://hooks.example.com/in?token=a%2Fb",
        events=("*",),
        format=FORMATS["standard"],
        signature=SCHEMES["standard"],
        secrets=(parse_secret(SECRET),),
        retry=RetryPolicy(),
        timeout=7.0,
        max_in_flight=10,
    )
    return replace(plain, **changes)


def request(
    payload: bytes = b"{}",
    at: float | None = None,
    attempts: int = 0,
    metadata: bytes = b'{"region":"eu"}',
    **changes: Any,
) -> Request:
    event = Event(
        1,
        "evt_1",
        datetime(2021, 1, 27, 16, 23, 9, tzinfo=UTC),
        "order.created",
        "acme",
        "key-1",
        metadata,
        None,
        len(payload),
    )
    delivery = Delivery(event, endpoint(**changes), None, attempts, 0.0, 0.0, 0.0)
    return build(delivery, payload, int(time.time() if at is None else at), "https://shop.example", "webhookd/9.9")


def lower(found: Request) -> dict[str, str]:
    return {name.lower(): value for name, value in found.headers.items()}


def test_headers_of_the_default_format() -> None:
    found = request(at=1_700_000_000, attempts=2)
    signature = found.headers["webhook-signature"]
    assert signature.startswith("v1,")
    assert found == Request(
        "https://hooks.example.com/in?token=a%2Fb",
        {
            "content-type": "application/json",
            "user-agent": "webhookd/9.9",
            "accept-encoding": "identity",
            "webhook-id": "evt_1",
            "webhook-timestamp": "1700000000",
            "webhook-attempt": "3",
            "webhook-signature": signature,
        },
        b'{"type":"order.created","timestamp":"2021-01-27T16:23:09Z","data":{}}',
        7.0,
    )


@pytest.mark.parametrize("payload", AWKWARD)
@pytest.mark.parametrize("name", ["standard", "raw", "cloudevents", "cloudevents-binary"])
def test_the_payload_is_in_the_body_byte_for_byte_and_the_signature_covers_it(name: str, payload: bytes) -> None:
    found = request(payload, format=FORMATS[name])
    assert found.content.count(payload) >= 1
    assert request(payload, format=FORMATS[name], attempts=1).content == found.content
    Webhook(SECRET).verify(found.content, dict(found.headers), json_parse=False)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(found.content + b" ", dict(found.headers), json_parse=False)


def test_a_retry_an_hour_later_has_a_fresh_timestamp_and_the_same_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    first = request(attempts=0)
    later = time.time() + HOUR
    retry = request(at=later, attempts=1)
    assert retry.headers["webhook-id"] == first.headers["webhook-id"]
    assert retry.content == first.content
    assert retry.headers["webhook-signature"] != first.headers["webhook-signature"]

    class AnHourLater(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "AnHourLater":
            return cls.fromtimestamp(later, tz)

    monkeypatch.setattr("standardwebhooks.webhooks.datetime", AnHourLater)
    Webhook(SECRET).verify(retry.content, dict(retry.headers))
    with pytest.raises(WebhookVerificationError, match="too old"):
        Webhook(SECRET).verify(first.content, dict(first.headers))


def test_during_a_rotation_either_secret_verifies_and_no_third() -> None:
    found = request(secrets=(parse_secret(SECRET), parse_secret(OLDER)))
    assert found.headers["webhook-signature"].count(" ") == 1
    Webhook(SECRET).verify(found.content, dict(found.headers))
    Webhook(OLDER).verify(found.content, dict(found.headers))
    with pytest.raises(WebhookVerificationError, match="No matching"):
        Webhook("whsec_" + base64.b64encode(b"somebody else's fake secret").decode()).verify(
            found.content, dict(found.headers)
        )


def test_an_ed25519_key_beside_a_shared_secret() -> None:
    private, public = new_keypair()
    found = request(secrets=(parse_secret(private), parse_secret(SECRET)))
    assert verify((parse_verifier(public),), found.headers, found.content, time.time()) is None
    Webhook(SECRET).verify(found.content, dict(found.headers))


def test_without_a_signature_there_is_no_signature_header() -> None:
    assert "webhook-signature" not in request(signature=SCHEMES["none"], secrets=()).headers


def test_a_template_is_signed_as_it_is_sent() -> None:
    found = request(b'{"n":1.10}', format=compile_template({"kind": "$type", "body": "$data"}))
    assert found.content == b'{"kind":"order.created","body":{"n":1.10}}'
    Webhook(SECRET).verify(found.content, dict(found.headers))


def test_headers_of_the_endpoint_come_with_values_of_the_event() -> None:
    headers = (("x-fixed", "yes"), ("x-region", compile_header_value("r=$metadata.region t=$type")))
    found = request(headers=headers)
    assert found.headers["x-fixed"] == "yes"
    assert found.headers["x-region"] == "r=eu t=order.created"


@pytest.mark.parametrize("name", ["content-type", "Content-Type", "User-Agent", "CE-Type"])
def test_a_header_of_the_endpoint_replaces_ours_in_any_case(name: str) -> None:
    found = request(headers=((name, "application/vnd.mine+json"),), format=FORMATS["cloudevents-binary"])
    assert [value for key, value in found.headers.items() if key.lower() == name.lower()] == [
        "application/vnd.mine+json"
    ]


def test_headers_of_the_format_go_out() -> None:
    found = lower(request(format=FORMATS["cloudevents-binary"]))
    assert (found["ce-id"], found["ce-type"], found["ce-source"]) == ("evt_1", "order.created", "https://shop.example")
    assert found["content-type"] == "application/json"


EVENT = Event(1, "e-1", datetime(2026, 1, 31, tzinfo=UTC), "order.created", "", None, None, None, 2)


@pytest.mark.parametrize("trigger", [None, "resend", "test", "replay"])
def test_what_a_request_is_made_for_is_said_where_somebody_wanted_it(trigger: str | None) -> None:
    delivery = Delivery(EVENT, endpoint(), None, 0, 0.0, 0.0, 0.0, trigger=trigger)
    assert build(delivery, b"{}", 0, "here", "agent").headers.get("webhook-trigger") == trigger


def test_what_people_are_shown_has_no_secret() -> None:
    """Neither what the endpoint's own headers say, nor the query, nor a header that a secret is part of."""

    def key(keys: Any, event_id: str, timestamp: int, content: bytes) -> Any:
        return (("x-api-key", "Key " + keys[0].raw.decode("latin-1")), ("x-signed", "abc"))

    secret = "planted-secret"
    hook = endpoint(
        url="https://planted:planted@hooks.example.com:8443/in?token=planted#planted",
        headers=(("Authorization", f"Bearer {secret}"), ("x-type", lambda event, payload: event.type)),
        signature=key,
        secrets=(Key("text", secret.encode()),),
    )
    delivery = Delivery(EVENT, hook, None, 2, 0.0, 0.0, 0.0, trigger="test")
    found = shown(build(delivery, b'{"a": "\xff"}', 0, "here", "agent"), hook)
    assert found["url"] == "https://hooks.example.com:8443/in"
    headers: Any = found["headers"]
    assert [headers[name] for name in ("authorization", "x-type", "x-api-key", "x-signed")] == [HIDDEN] * 3 + ["abc"]
    assert (headers["webhook-attempt"], headers["webhook-trigger"]) == ("3", "test")
    assert "planted" not in str(found)
