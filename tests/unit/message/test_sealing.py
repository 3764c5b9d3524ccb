"""Sealed secrets open with their key, for their endpoint, unchanged, and in no other case."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.message.sealing import Keyring, Sealed, SealingKey, Unreadable, new_key, parse_key

OLD, NEW = SealingKey("2025", b"o" * 32), SealingKey("2026", b"n" * 32)
SECRET = "whsec_PLANTED-fake-secret"


@given(st.text(), st.integers(1, 2**31 - 1))
def test_what_is_sealed_can_be_opened(secret: str, endpoint_id: int) -> None:
    if any("\ud800" <= sign <= "\udfff" for sign in secret):
        return
    sealed = Keyring([OLD]).seal(endpoint_id, secret)
    assert Keyring([NEW, OLD]).open(endpoint_id, sealed) == secret


@given(st.data())
def test_a_change_of_any_bit_is_seen(data: st.DataObject) -> None:
    keyring = Keyring([NEW])
    sealed = keyring.seal(7, SECRET)
    at = data.draw(st.integers(0, len(sealed.content) * 8 - 1))
    changed = bytearray(sealed.content)
    changed[at // 8] ^= 1 << at % 8
    with pytest.raises(Unreadable):
        keyring.open(7, Sealed(sealed.key_id, bytes(changed)))


@given(st.binary(max_size=80))
def test_no_bytes_break_it(content: bytes) -> None:
    with pytest.raises(Unreadable):
        Keyring([NEW]).open(7, Sealed("2026", content))


def test_the_first_key_seals_and_each_secret_looks_different() -> None:
    keyring = Keyring([NEW, OLD])
    one, other = keyring.seal(7, SECRET), keyring.seal(7, SECRET)
    assert one.key_id == other.key_id == "2026"
    assert one.content != other.content
    assert SECRET.encode() not in one.content


def test_a_secret_of_another_endpoint_or_key_says_nothing() -> None:
    sealed = Keyring([NEW]).seal(7, SECRET)
    with pytest.raises(Unreadable, match=r"^it was changed, or not sealed with the key 2026 for this endpoint$"):
        Keyring([NEW]).open(8, sealed)
    with pytest.raises(Unreadable, match="not sealed with the key 2026"):
        Keyring([SealingKey("2026", b"x" * 32)]).open(7, sealed)
    with pytest.raises(Unreadable, match=r"^the key 2026 is not in \[encryption\] keys$"):
        Keyring([OLD]).open(7, sealed)
    with pytest.raises(Unreadable, match=r"^it was sealed by a newer version of webhookd$"):
        Keyring([NEW]).open(7, Sealed("2026", b"\x02" + sealed.content[1:]))


def test_without_a_key_nothing_is_sealed() -> None:
    with pytest.raises(Unreadable, match="there is no key to seal secrets with"):
        Keyring([]).seal(7, SECRET)


def test_keys_are_32_bytes_in_base64() -> None:
    assert parse_key(f" {new_key()}\n") != parse_key(new_key())
    for text in ("", "planted", base64.b64encode(b"x" * 31).decode(), base64.b64encode(b"x" * 33).decode()):
        with pytest.raises(ValueError, match=r"^is no key; make one with `webhookd secret key`$"):
            parse_key(text)
    assert "n" * 8 not in repr(NEW)
