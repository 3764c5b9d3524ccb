"""Secrets that are kept in the database: sealed with a key that is not there.

AES-256-GCM (NIST SP 800-38D) with a random nonce of 96 bits, so one key seals up to 2^32 secrets. A sealed secret
belongs to its endpoint: copied into another's row it cannot be opened.
"""

import binascii
import secrets
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from webhookd.errors import WebhookdError

_FORMAT: Final = b"\x01"
_NONCE: Final = 12
_KEY: Final = 32


@dataclass(frozen=True, slots=True)
class SealingKey:
    """A key and its name, which stands beside what it has sealed."""

    id: str
    raw: bytes = field(repr=False)


class Sealed(NamedTuple):
    """What the database has of a secret."""

    key_id: str
    content: bytes


class Unreadable(WebhookdError):
    """A sealed secret that cannot be opened; the message is one sentence, and holds nothing of it."""


class Keyring:
    """The first of its keys seals, each opens what it has sealed."""

    def __init__(self, keys: Sequence[SealingKey]) -> None:
        self._keys = {key.id: AESGCM(key.raw) for key in keys}
        self.first = keys[0].id if keys else ""

    @property
    def ids(self) -> list[str]:
        """The names of its keys."""
        return list(self._keys)

    def seal(self, endpoint_id: int, secret: str, name: str = "secret") -> Sealed:
        """The secret, or what else has this name, sealed for this endpoint. Unreadable without a key."""
        if not self.first:
            raise Unreadable("there is no key to seal secrets with; add one to [encryption] keys")
        nonce = secrets.token_bytes(_NONCE)
        content = self._keys[self.first].encrypt(nonce, secret.encode(), _bound(self.first, endpoint_id, name))
        return Sealed(self.first, _FORMAT + nonce + content)

    def open(self, endpoint_id: int, sealed: Sealed, name: str = "secret") -> str:
        """The secret, or what else has this name. Unreadable says why not."""
        key = self._keys.get(sealed.key_id)
        if key is None:
            raise Unreadable(f"the key {sealed.key_id} is not in [encryption] keys")
        content = sealed.content
        if content[:1] != _FORMAT:
            raise Unreadable("it was sealed by a newer version of webhookd")
        nonce, content = content[1 : 1 + _NONCE], content[1 + _NONCE :]
        try:
            return key.decrypt(nonce, content, _bound(sealed.key_id, endpoint_id, name)).decode()
        except (InvalidTag, ValueError):
            raise Unreadable(f"it was changed, or not sealed with the key {sealed.key_id} for this endpoint") from None


def parse_key(text: str) -> bytes:
    """The 32 bytes of a key in base64. ValueError, the end of a sentence, for anything else."""
    try:
        raw = binascii.a2b_base64(text.strip(), strict_mode=True)
    except ValueError:
        raw = b""
    if len(raw) != _KEY:
        raise ValueError("is no key; make one with `webhookd secret key`")
    return raw


def new_key() -> str:
    """A fresh key, in base64."""
    return b64encode(secrets.token_bytes(_KEY)).decode()


def _bound(key_id: str, endpoint_id: int, name: str) -> bytes:
    return b"webhookd %b %d %b" % (name.encode(), endpoint_id, key_id.encode())
