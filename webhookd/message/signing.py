"""Secrets, and the signatures that prove to a receiver who sent a request.

Sources: the Standard Webhooks specification, and for receivers that were made for others the public documentation of
GitHub (X-Hub-Signature-256), Stripe (Stripe-Signature) and Svix (svix-signature). A `v1` key holds the bytes of the
secret. A `v1a` key that signs holds the seed and the public key (64 bytes); one that only verifies holds the public key
(32 bytes). No message of this module ever contains a secret.
"""

import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from webhookd.model import Key, Scheme

EXAMPLE: Final = "whsec_dGhpcy1pcy1hLWZha2Utc2VjcmV0LWZvci1leGFtcGxlcw=="  # what examples and pages have; no secret

_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}")
_TEXT: Final = re.compile(r"[\x21-\x7e]{8,256}")
# the strict mode of binascii still lets padding through that belongs to nothing
_BASE64: Final = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


def parse_secret(text: str) -> Key:
    """The key that signs, of `whsec_` (24 to 64 bytes) or `whsk_` (an ed25519 seed, with or without its public key).

    Raises ValueError, one sentence, for anything else.
    """
    if text.startswith("whsec_"):
        raw = _decode(text, "whsec_")
        if not 24 <= len(raw) <= 64:
            raise ValueError(f"a whsec_ secret holds 24 to 64 bytes, this one {len(raw)}")
        return Key("v1", raw)
    if text.startswith("whsk_"):
        raw = _decode(text, "whsk_")
        if len(raw) not in (32, 64):
            raise ValueError(f"a whsk_ key holds 32 bytes (seed) or 64 (seed and public key), this one {len(raw)}")
        pair = raw[:32] + Ed25519PrivateKey.from_private_bytes(raw[:32]).public_key().public_bytes_raw()
        if not pair.startswith(raw):
            raise ValueError("the two halves of the whsk_ key, seed and public key, do not belong together")
        return Key("v1a", pair)
    if text.startswith("whpk_"):
        raise ValueError("a whpk_ key is public and cannot sign; use the whsk_ key that it belongs to")
    raise ValueError("a secret starts with whsec_ (HMAC-SHA256) or whsk_ (ed25519)")


def parse_private(text: str) -> Key:
    """The ed25519 key of a `whsk_` secret. Raises as `parse_secret`."""
    if text.startswith("whsec_"):
        raise ValueError("a whsec_ secret makes v1 signatures; v1a wants a whsk_ key, see `webhookd secret new`")
    return parse_secret(text)


def parse_text(text: str) -> Key:
    """The key of a secret that another system has made: its characters. Raises ValueError, one sentence."""
    if not _TEXT.fullmatch(text):
        raise ValueError("a secret of this signature has 8 to 256 characters, of printable ASCII without spaces")
    return Key("text", text.encode("ascii"))


def parse_verifier(text: str) -> Key:
    """The key that `verify` needs, of what a receiver holds: `whsec_`, `whpk_` or `whsk_`. Raises as `parse_secret`."""
    if not text.startswith("whpk_"):
        return parse_secret(text)
    raw = _decode(text, "whpk_")
    if len(raw) != 32:
        raise ValueError(f"a whpk_ key holds 32 bytes, this one {len(raw)}")
    return Key("v1a", raw)


def new_secret() -> str:
    """A fresh `whsec_` secret of 32 bytes."""
    return "whsec_" + _encode(secrets.token_bytes(32))


def new_keypair() -> tuple[str, str]:
    """A fresh ed25519 key: `whsk_` for the sender, and the `whpk_` that receivers may know."""
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    return "whsk_" + _encode(private.private_bytes_raw() + public), "whpk_" + _encode(public)


def standard(
    keys: tuple[Key, ...], headers: Mapping[str, str], timestamp: int, content: bytes
) -> tuple[tuple[str, str], ...]:
    """`webhook-signature` with one signature for each key, separated by exactly one space."""
    signed = b"%b.%d.%b" % (headers["webhook-id"].encode(), timestamp, content)
    return (("webhook-signature", " ".join([_sign(key, signed) for key in keys if key.until > timestamp])),)


def svix(
    keys: tuple[Key, ...], headers: Mapping[str, str], timestamp: int, content: bytes
) -> tuple[tuple[str, str], ...]:
    """`webhook-signature`, and the same once more under the names that Svix gives its three headers."""
    ((name, signature),) = standard(keys, headers, timestamp, content)
    moment = str(timestamp)
    return (
        (name, signature),
        ("svix-id", headers["webhook-id"]),
        ("svix-timestamp", moment),
        ("svix-signature", signature),
    )


def none(
    keys: tuple[Key, ...], headers: Mapping[str, str], timestamp: int, content: bytes
) -> tuple[tuple[str, str], ...]:
    """No header: the receiver trusts the address, or a header of the endpoint."""
    return ()


def github(
    keys: tuple[Key, ...], headers: Mapping[str, str], timestamp: int, content: bytes
) -> tuple[tuple[str, str], ...]:
    """`x-hub-signature-256`, over the body alone."""
    return (("x-hub-signature-256", "sha256=" + _hmac(current(keys, timestamp), content).hex()),)


def stripe(
    keys: tuple[Key, ...], headers: Mapping[str, str], timestamp: int, content: bytes
) -> tuple[tuple[str, str], ...]:
    """`stripe-signature`, with the moment and one `v1` for each key."""
    signed = b"%d.%b" % (timestamp, content)
    made = [f",v1={_hmac(key.raw, signed).hex()}" for key in keys if key.until > timestamp]
    return (("stripe-signature", f"t={timestamp}{''.join(made)}"),)


SCHEMES: Final[Mapping[str, Scheme]] = MappingProxyType(
    {
        "standard": standard,
        "standard-ed25519": standard,
        "svix": svix,
        "github": github,
        "stripe": stripe,
        "none": none,
    }
)
PARSERS: Final[Mapping[str, Callable[[str], Key]]] = MappingProxyType(  # what a secret of theirs looks like
    {"standard-ed25519": parse_private, "github": parse_text, "stripe": parse_text, "hmac": parse_text}
)
ONE_SECRET: Final = frozenset(("github", "hmac"))  # whose header has room for one signature


def verify(
    keys: tuple[Key, ...], headers: Mapping[str, str], body: bytes, now: float, tolerance: float = 300
) -> str | None:
    """None when one signature was made by one of the keys, else the reason against it, in one sentence.

    `now` and `tolerance` are in seconds; header names are found in any case.
    """
    found = {name.lower(): text for name, text in headers.items()}
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        if not found.get(name):
            return f"the header {name} is missing"
    timestamp = found["webhook-timestamp"]
    if not _TIMESTAMP.fullmatch(timestamp):
        return "webhook-timestamp is not a whole number of seconds"
    age = now - int(timestamp)
    if abs(age) > tolerance:
        return f"webhook-timestamp is {abs(age):.0f} s in the {'past' if age > 0 else 'future'}; {tolerance:g} s pass"
    # surrogatepass: what an HTTP parser made of bytes that are not UTF-8 must fail to match, not raise
    signed = f"{found['webhook-id']}.{timestamp}.".encode(errors="surrogatepass") + body
    signatures = found["webhook-signature"].encode(errors="surrogatepass").split(b" ")
    if any(_matches(key, signatures, signed) for key in keys):
        return None
    return "no signature matches: another secret, or not the exact bytes that were sent"


def current(keys: tuple[Key, ...], timestamp: int) -> bytes:
    """The one that signs where there is room for one signature: a key that ends is used to its end."""
    return min((key for key in keys if key.until > timestamp), key=lambda key: key.until).raw


def _sign(key: Key, signed: bytes) -> str:
    if key.kind == "v1":
        return "v1," + _encode(_hmac(key.raw, signed))
    return "v1a," + _encode(_private(key.raw).sign(signed))


def _hmac(key: bytes, message: bytes) -> bytes:
    """HMAC-SHA256 (RFC 2104): `hmac.digest` takes as long to look up its hash and key as to hash a kilobyte."""
    inner, outer = _keyed(key)
    within = inner.copy()
    within.update(message)
    around = outer.copy()
    around.update(within.digest())
    return around.digest()


@lru_cache(maxsize=4096)
def _keyed(key: bytes) -> tuple["hashlib._Hash", "hashlib._Hash"]:
    """The two hashes of an HMAC-SHA256, each as far as the key alone takes it."""
    block = (key if len(key) <= 64 else hashlib.sha256(key).digest()).ljust(64, b"\0")
    return hashlib.sha256(block.translate(_INNER)), hashlib.sha256(block.translate(_OUTER))


def _matches(key: Key, signatures: list[bytes], signed: bytes) -> bool:
    if key.kind == "v1":
        expected = _sign(key, signed).encode()
        return any(hmac.compare_digest(expected, signature) for signature in signatures)
    public = Ed25519PublicKey.from_public_bytes(key.raw[-32:])
    for signature in signatures:
        kind, _, encoded = signature.partition(b",")
        if kind == b"v1a":
            with suppress(InvalidSignature, ValueError):
                public.verify(binascii.a2b_base64(encoded, strict_mode=True), signed)
                return True
    return False


@lru_cache(maxsize=4096)  # loading the key costs as much as a signature
def _private(raw: bytes) -> Ed25519PrivateKey:
    if len(raw) != 64:  # a public key would pass for a seed
        raise ValueError("a v1a key that only verifies cannot sign")
    return Ed25519PrivateKey.from_private_bytes(raw[:32])


def _encode(raw: bytes) -> str:
    return binascii.b2a_base64(raw, newline=False).decode("ascii")


def _decode(text: str, prefix: str) -> bytes:
    encoded = text.removeprefix(prefix)
    if not _BASE64.fullmatch(encoded):
        raise ValueError(f"what follows {prefix} is not base64")
    return binascii.a2b_base64(encoded)
