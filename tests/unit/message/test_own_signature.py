"""A signature of one's own: of the body, the time, a header, or of several."""

import hmac
from base64 import b64encode
from dataclasses import replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.message.own_signature import headers_in, own_hmac
from webhookd.message.signing import parse_text
from webhookd.model import Scheme

NOW = 1_700_000_000  # 2023-11-14T22:13:20Z
SECRET = b"a-fake-secret"
KEY = parse_text(SECRET.decode())
SENT = {"webhook-id": "msg_1", "webhook-timestamp": str(NOW), "x-shop": "caf\u00e9"}


def scheme(signed: str, **said: Any) -> Scheme:
    defaults = {"header": "X-Signature", "hash": "sha256", "encoding": "hex", "prefix": ""}
    return own_hmac(**{**defaults, "timestamp_header": "", "timestamp": "seconds", "signed": signed, **said})


def made(signed: str, content: bytes = b"{}", **said: Any) -> dict[str, str]:
    return dict(scheme(signed, **said)((KEY,), SENT, NOW, content))


def of(text: bytes, hash_: str = "sha256") -> bytes:
    return hmac.digest(SECRET, text, hash_)


@pytest.mark.parametrize("hash_", ["sha1", "sha256", "sha512"])
def test_of_the_body(hash_: str) -> None:
    raw = of(b"{}", hash_)
    assert made("$body", hash=hash_, prefix="v0=") == {"x-signature": "v0=" + raw.hex()}
    assert made("$body", hash=hash_, encoding="base64") == {"x-signature": b64encode(raw).decode()}


@pytest.mark.parametrize(
    ("signed", "text"),
    [
        ("$id.$timestamp.$body", b"msg_1.1700000000.{}"),
        ("$timestamp.$body", b"1700000000.{}"),
        ("$timestamp$body", b"1700000000{}"),
        ("v0:$timestamp:$body", b"v0:1700000000:{}"),
        ("${id}x${body}", b"msg_1x{}"),
        ("$header.x-shop", "caf\u00e9".encode()),
        ("$header.X-Shop.$body", "caf\u00e9.{}".encode()),
        ("${header.webhook-id}-$$body", b"msg_1-$body"),
        ("$$$$", b"$$"),
        ("nothing", b"nothing"),
    ],
)
def test_of_what_is_asked_for(signed: str, text: bytes) -> None:
    assert made(signed) == {"x-signature": of(text).hex()}


def test_the_date_alone_as_a_chat_platform_has_it() -> None:
    found = made("$header.date", hash="sha1", prefix="sha1=", timestamp_header="Date", timestamp="http")
    assert found["date"] == "Tue, 14 Nov 2023 22:13:20 GMT"
    assert found["x-signature"] == "sha1=" + of(found["date"].encode(), "sha1").hex()
    assert list(found) == ["date", "x-signature"]


@given(st.integers(0, 253_402_300_799))
def test_a_time_is_told_as_it_is_signed(moment: int) -> None:
    for written, read in (
        ("seconds", int),
        ("iso", lambda text: int(datetime.fromisoformat(text).timestamp())),
        ("http", lambda text: int(parsedate_to_datetime(text).timestamp())),
    ):
        sign = scheme("$timestamp.$body", timestamp_header="x-time", timestamp=written)
        found = dict(sign((KEY,), SENT, moment, b"\xff"))
        assert read(found["x-time"]) == moment
        assert found["x-signature"] == of(found["x-time"].encode() + b".\xff").hex()


def test_a_key_signs_until_its_end() -> None:
    old = replace(parse_text("an-older-fake-secret"), until=NOW + 10.0)
    sign = scheme("$body")
    assert sign((KEY, old), SENT, NOW + 9, b"{}") == sign((old,), SENT, NOW, b"{}")
    assert sign((KEY, old), SENT, NOW + 10, b"{}") == sign((KEY,), SENT, NOW, b"{}")


@pytest.mark.parametrize("signed", ["$bodyx", "$", "100 $", "$header.", "${header.}", "$header", "${}", "$Body", "${x"])
def test_what_is_no_placeholder_is_told(signed: str) -> None:
    with pytest.raises(ValueError, match="placeholder there; known are \\$body, \\$id, \\$timestamp and \\$header"):
        scheme(signed)


def test_headers_that_have_to_be_there() -> None:
    assert headers_in("$header.Date:${header.x-a}$$header.no $body") == {"date", "x-a"}
