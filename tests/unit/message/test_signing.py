import hmac
import json
import re
import time
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stripe
import svix
from hypothesis import example, given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from webhookd.message.signing import (
    SCHEMES,
    new_keypair,
    new_secret,
    parse_private,
    parse_secret,
    parse_text,
    parse_verifier,
    verify,
)
from webhookd.model import Key

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "standard_webhooks.json").read_text())
GITHUB = json.loads((Path(__file__).parents[2] / "vectors" / "github.json").read_text())["cases"]
NOW = 1_700_000_000
ID = "msg_1"
SENT = {"webhook-id": ID, "webhook-timestamp": str(NOW), "x-shop": "berlin"}
HMAC = parse_secret("whsec_" + b64encode(b"h" * 32).decode())
OTHER = parse_secret("whsec_" + b64encode(b"o" * 32).decode())
PRIVATE, PUBLIC = new_keypair()
ED25519 = parse_secret(PRIVATE)


def signed(keys: tuple[Key, ...], content: bytes, timestamp: int = NOW, event_id: str = ID) -> dict[str, str]:
    headers = {"webhook-id": event_id, "webhook-timestamp": str(timestamp)}
    return headers | dict(SCHEMES["standard"](keys, headers, timestamp, content))


def secret_of(raw: bytes, prefix: str = "whsec_") -> str:
    return prefix + b64encode(raw).decode()


class TestScheme:
    @pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["name"]))
    def test_vectors(self, vector: dict[str, Any]) -> None:
        key = parse_secret(vector["secret"])
        content = vector["body"].encode()
        headers = SCHEMES["standard"]((key,), {"webhook-id": vector["id"]}, vector["timestamp"], content)
        assert headers == (("webhook-signature", vector["signature"]),)
        sent = {"webhook-id": vector["id"], "webhook-timestamp": str(vector["timestamp"]), **dict(headers)}
        assert verify((key,), sent, content, vector["timestamp"]) is None

    def test_all_keys_sign_and_one_space_separates_them(self) -> None:
        value = signed((HMAC, OTHER, ED25519), b"{}")["webhook-signature"]
        assert re.fullmatch(r"v1,[^ ,]{44} v1,[^ ,]{44} v1a,[^ ,]{88}", value)
        assert value.split(" ")[0] == signed((HMAC,), b"{}")["webhook-signature"]

    def test_none(self) -> None:
        assert SCHEMES["none"]((HMAC,), SENT, NOW, b"{}") == ()

    def test_is_read_only(self) -> None:
        with pytest.raises(TypeError):
            SCHEMES["mine"] = SCHEMES["none"]  # type: ignore[index]

    def test_a_public_key_does_not_sign(self) -> None:
        with pytest.raises(ValueError, match="a v1a key that only verifies cannot sign"):
            SCHEMES["standard"]((parse_verifier(PUBLIC),), SENT, NOW, b"{}")

    @given(
        raw=st.lists(st.binary(min_size=24, max_size=64), min_size=1, max_size=3, unique=True),
        value=st.recursive(st.none() | st.integers() | st.text(), st.lists),
        event_id=st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True),
    )
    def test_receivers_of_the_reference_library_accept(self, raw: list[bytes], value: object, event_id: str) -> None:
        texts = [secret_of(each) for each in raw]
        content = json.dumps(value).encode()
        headers = signed((*map(parse_secret, texts), ED25519), content, int(time.time()), event_id)
        for text in texts:
            assert Webhook(text).verify(content, headers) == value
        with pytest.raises(WebhookVerificationError):
            Webhook(secret_of(b"another secret, not in the list!")).verify(content, headers)


class TestVerify:
    @given(content=st.binary(), keys=st.lists(st.sampled_from([HMAC, OTHER, ED25519]), min_size=1))
    def test_accepts_what_any_key_signed(self, content: bytes, keys: list[Key]) -> None:
        headers = signed(tuple(keys), content)
        for key in keys:
            assert verify((key,), headers, content, NOW) is None
            assert verify((HMAC, OTHER, ED25519), headers, content, NOW) is None

    def test_needs_the_public_key_only(self) -> None:
        headers = signed((HMAC, ED25519), b"{}")
        assert verify((parse_verifier(PUBLIC),), headers, b"{}", NOW) is None
        assert verify((parse_verifier(PRIVATE),), headers, b"{}", NOW) is None
        assert verify((parse_verifier(new_keypair()[1]),), headers, b"{}", NOW) is not None

    def test_finds_headers_in_any_case(self) -> None:
        headers = {name.title(): value for name, value in signed((HMAC,), b"{}").items()}
        assert verify((HMAC,), headers, b"{}", NOW) is None

    @pytest.mark.parametrize("key", [HMAC, ED25519], ids=["v1", "v1a"])
    @given(content=st.binary(), data=st.data())
    def test_refuses_what_was_changed(self, key: Key, content: bytes, data: st.DataObject) -> None:
        headers = signed((key,), content)
        reason = "no signature matches: another secret, or not the exact bytes that were sent"
        changed = data.draw(st.binary().filter(lambda other: other != content))
        assert verify((key,), headers, changed, NOW) == reason
        assert verify((key,), headers | {"webhook-id": "msg_2"}, content, NOW) == reason
        assert verify((key,), headers | {"webhook-timestamp": str(NOW + 1)}, content, NOW) == reason
        assert verify((OTHER, parse_verifier(new_keypair()[1])), headers, content, NOW) == reason
        assert verify((), headers, content, NOW) == reason

    @given(signature=st.text(st.characters(), min_size=1), event_id=st.text(st.characters(), min_size=1))
    @example(signature="\udcff", event_id="\udcff")
    @example(signature=" ", event_id="é")
    def test_any_header_has_an_answer(self, signature: str, event_id: str) -> None:
        for prefix in ("", "v1,", "v1a,"):
            headers = {"webhook-id": event_id, "webhook-timestamp": str(NOW), "webhook-signature": prefix + signature}
            assert isinstance(verify((HMAC, ED25519), headers, b"{}", NOW), str)

    def test_a_signature_of_one_kind_is_not_taken_for_the_other(self) -> None:
        for key, kind, other in ((HMAC, "v1,", "v1a,"), (ED25519, "v1a,", "v1,")):
            headers = signed((key,), b"{}")
            headers["webhook-signature"] = headers["webhook-signature"].replace(kind, other)
            assert verify((HMAC, ED25519), headers, b"{}", NOW) is not None

    @pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
    def test_missing_header(self, name: str) -> None:
        headers = signed((HMAC,), b"{}")
        assert verify((HMAC,), headers | {name: ""}, b"{}", NOW) == f"the header {name} is missing"
        del headers[name]
        assert verify((HMAC,), headers, b"{}", NOW) == f"the header {name} is missing"

    @pytest.mark.parametrize("timestamp", ["1.5", "-1", "x", " 1", "1\n", "٣", "9" * 5000, "1_0"])
    def test_timestamp_that_is_no_number(self, timestamp: str) -> None:
        headers = signed((HMAC,), b"{}") | {"webhook-timestamp": timestamp}
        assert verify((HMAC,), headers, b"{}", NOW) == "webhook-timestamp is not a whole number of seconds"

    @pytest.mark.parametrize(
        ("now", "reason"),
        [
            (NOW + 300, None),
            (NOW - 300, None),
            (NOW + 301, "webhook-timestamp is 301 s in the past; 300 s pass"),
            (NOW - 300.6, "webhook-timestamp is 301 s in the future; 300 s pass"),
        ],
    )
    def test_clock(self, now: float, reason: str | None) -> None:
        assert verify((HMAC,), signed((HMAC,), b"{}"), b"{}", now) == reason

    def test_tolerance(self) -> None:
        assert verify((HMAC,), signed((HMAC,), b"{}"), b"{}", NOW + 9000, tolerance=9000) is None
        assert verify((HMAC,), signed((HMAC,), b"{}"), b"{}", NOW + 6, tolerance=5) is not None


class TestSecrets:
    @given(raw=st.binary(min_size=24, max_size=64))
    def test_whsec(self, raw: bytes) -> None:
        assert parse_secret(secret_of(raw)) == parse_verifier(secret_of(raw)) == Key("v1", raw)

    @given(seed=st.binary(min_size=32, max_size=32))
    def test_whsk_with_and_without_its_public_key(self, seed: bytes) -> None:
        key = parse_secret(secret_of(seed, "whsk_"))
        assert (key.kind, key.raw[:32], len(key.raw)) == ("v1a", seed, 64)
        assert parse_secret(secret_of(key.raw, "whsk_")) == key

    def test_new_ones_are_fresh_and_usable(self) -> None:
        assert len(parse_secret(new_secret()).raw) == 32
        assert new_secret() != new_secret()
        assert new_keypair() != new_keypair()
        assert parse_verifier(PUBLIC).raw == ED25519.raw[32:]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "a secret starts with whsec_ (HMAC-SHA256) or whsk_ (ed25519)"),
            ("PLANTED+", "a secret starts with whsec_ (HMAC-SHA256) or whsk_ (ed25519)"),
            (" whsec_PLANTED+", "a secret starts with whsec_ (HMAC-SHA256) or whsk_ (ed25519)"),
            (
                secret_of(b"p" * 32, "whpk_"),
                "a whpk_ key is public and cannot sign; use the whsk_ key that it belongs to",
            ),
            ("whsec_PLANTED", "what follows whsec_ is not base64"),
            ("whsec_" + "PLANTED+" * 4 + "\n", "what follows whsec_ is not base64"),
            ("whsec_" + "PLANTED+" * 4 + "=", "what follows whsec_ is not base64"),
            ("whsec_" + "PLANTED+" * 4 + "====", "what follows whsec_ is not base64"),
            ("whsec_" + "PLANTED_" * 4, "what follows whsec_ is not base64"),
            ("whsec_" + "PLANTEDé" * 4, "what follows whsec_ is not base64"),
            ("whsk_PLANTED", "what follows whsk_ is not base64"),
            ("whsec_", "a whsec_ secret holds 24 to 64 bytes, this one 0"),
            (secret_of(b"p" * 23), "a whsec_ secret holds 24 to 64 bytes, this one 23"),
            (secret_of(b"p" * 65), "a whsec_ secret holds 24 to 64 bytes, this one 65"),
            (
                secret_of(b"p" * 33, "whsk_"),
                "a whsk_ key holds 32 bytes (seed) or 64 (seed and public key), this one 33",
            ),
            (
                secret_of(b"p" * 64, "whsk_"),
                "the two halves of the whsk_ key, seed and public key, do not belong together",
            ),
        ],
    )
    def test_refuses(self, text: str, message: str) -> None:
        for parsing in (parse_secret, parse_verifier) if not text.startswith("whpk_") else (parse_secret,):
            with pytest.raises(ValueError, match=re.escape(message)) as refused:
                parsing(text)
            assert str(refused.value) == message
            assert refused.value.__suppress_context__ or refused.value.__context__ is None
            assert "PLANTED" not in str(refused.value)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("whpk_PLANTED", "what follows whpk_ is not base64"),
            (secret_of(b"p" * 31, "whpk_"), "a whpk_ key holds 32 bytes, this one 31"),
        ],
    )
    def test_verifier_refuses(self, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            parse_verifier(text)

    def test_repr_keeps_the_secret(self) -> None:
        assert "hhhh" not in repr(HMAC)


class TestOtherSchemes:
    """For receivers that check the signatures of others already."""

    TEXT = "whsec_fake-and-not-base64"

    @given(st.text(max_size=100))
    def test_standard_passes_svix(self, text: str) -> None:
        secret, content = new_secret(), json.dumps({"text": text}).encode()
        headers = signed((parse_secret(secret),), content, int(time.time()))
        svix.Webhook(secret).verify(content, headers)
        with pytest.raises(svix.WebhookVerificationError):
            svix.Webhook(secret).verify(content + b" ", headers)

    @given(key=st.binary(min_size=1, max_size=256), content=st.binary())
    @example(key=b"k" * 64, content=b"")
    @example(key=b"k" * 65, content=b"")
    def test_hmac_is_what_the_standard_library_makes(self, key: bytes, content: bytes) -> None:
        for _ in range(2):  # what is kept of a key is not spent by its first use
            ((_, value),) = SCHEMES["github"]((Key("text", key),), SENT, NOW, content)
            assert value == "sha256=" + hmac.digest(key, content, "sha256").hex()

    def test_github_as_its_documentation_has_it(self) -> None:
        """The example of "Validating webhook deliveries"."""
        ((name, value),) = SCHEMES["github"]((Key("text", b"It's a Secret to Everybody"),), SENT, NOW, b"Hello, World!")
        assert name == "x-hub-signature-256"
        assert value == "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"

    @pytest.mark.parametrize("case", GITHUB)
    def test_github_as_its_own_library_signs(self, case: dict[str, str]) -> None:
        key = Key("text", case["secret"].encode())
        ((_, value),) = SCHEMES["github"]((key,), SENT, NOW, case["body"].encode())
        assert value == case["signature"]

    @given(st.text(max_size=100))
    def test_svix_passes_its_library_under_both_names(self, text: str) -> None:
        secrets = new_secret(), new_secret()
        content, now = json.dumps({"text": text}).encode(), int(time.time())
        made = dict(SCHEMES["svix"](tuple(map(parse_secret, secrets)), SENT, now, content))
        ours = {"webhook-id": ID, "webhook-timestamp": str(now), "webhook-signature": made["webhook-signature"]}
        theirs = {name: value for name, value in made.items() if name.startswith("svix-")}
        for headers in (ours, theirs):
            for secret in secrets:
                svix.Webhook(secret).verify(content, headers)
        with pytest.raises(svix.WebhookVerificationError):
            svix.Webhook(new_secret()).verify(content, made)

    @given(st.text(max_size=100))
    def test_stripe_passes_its_library_with_each_of_the_secrets(self, text: str) -> None:
        keys = (parse_text("another-fake-secret"), parse_text(self.TEXT))
        content, now = json.dumps({"text": text}).encode(), int(time.time())
        ((name, value),) = SCHEMES["stripe"](keys, SENT, now, content)
        assert name == "stripe-signature"
        for secret in ("another-fake-secret", self.TEXT):
            assert stripe.WebhookSignature.verify_header(content.decode(), value, secret, tolerance=300)
        with pytest.raises(stripe.SignatureVerificationError):
            stripe.WebhookSignature.verify_header(content.decode() + " ", value, self.TEXT, tolerance=300)

    def test_ed25519_takes_no_other_key(self) -> None:
        assert parse_private(PRIVATE).kind == "v1a"
        with pytest.raises(ValueError, match="v1a wants a whsk_ key"):
            parse_private(new_secret())

    @pytest.mark.parametrize("text", ["short", "x" * 257, "with space", "caf\u00e9-secret", "line\nbreak", ""])
    def test_a_text_that_is_no_secret_is_refused_and_not_shown(self, text: str) -> None:
        with pytest.raises(ValueError, match="8 to 256 characters") as caught:
            parse_text(text)
        assert not text or text not in str(caught.value)
        assert "fake" not in repr(parse_text("fake-fake"))

    @pytest.mark.parametrize("before", [True, False])
    def test_a_key_signs_until_its_end(self, before: bool) -> None:
        """And where there is room for one signature the next one takes over at that moment."""
        new, old = parse_text("new-fake-secret"), replace(parse_text("old-fake-secret"), until=NOW + 10.0)
        moment = NOW + 9 if before else NOW + 10
        stripes = dict(SCHEMES["stripe"]((new, old), SENT, moment, b"{}"))["stripe-signature"]
        assert stripes.count("v1=") == (2 if before else 1)
        ending = replace(HMAC, until=NOW + 10.0)
        assert len(signed((OTHER, ending), b"{}", moment)["webhook-signature"].split(" ")) == (2 if before else 1)
        one = SCHEMES["github"]((old if before else new,), SENT, moment - 5, b"{}")
        assert SCHEMES["github"]((new, old), SENT, moment, b"{}") == one
