"""Numbers as texts that say nothing of them: not how many there are, nor which came when."""

import hashlib
import struct
from functools import lru_cache
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from webhookd.ids import ALPHABET, WIDTH, base62

_WIDTH: Final = 22  # signs for 16 bytes
_SHAPE: Final = struct.Struct(">BxxxxxxxQ")  # seven bytes of nothing, by which what we gave is told from anything else
_DIGITS: Final = {sign: digit for digit, sign in enumerate(ALPHABET)}
WIDE: Final = 20  # bytes
_ROUNDS: Final = range(6)


@lru_cache(8)
def marks(key: bytes) -> "Marks":
    """Those of a key of 16 bytes."""
    return Marks(key)


class Marks:
    """A number of some kind is one block of AES (FIPS 197) with a key of 16 bytes: the same is always the same."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305  # one block, of which no two are the same

    def mark(self, kind: int, number: int) -> str:
        """The text for a number of this kind, both not negative."""
        encryptor = self._cipher.encryptor()
        return base62(encryptor.update(_SHAPE.pack(kind, number)), _WIDTH)

    def number(self, kind: int, mark: str) -> int | None:
        """The number again; None for a text that is none of this kind."""
        block = _bytes(mark, _WIDTH, 16)
        if block is None:
            return None
        plain = self._cipher.decryptor().update(block)
        found, number = _SHAPE.unpack(plain)
        return number if found == kind and _SHAPE.pack(found, number) == plain and number < 1 << 63 else None

    def wide(self, kind: int, content: bytes) -> str:
        """The text for 20 bytes of this kind: 27 signs. A Feistel network of two halves (Luby and Rackoff, 1988)."""
        left, right = content[: WIDE // 2], content[WIDE // 2 :]
        for turn in _ROUNDS:
            left, right = right, self._mixed(kind, turn, left, right)
        return base62(left + right, WIDTH)

    def content(self, kind: int, mark: str) -> bytes | None:
        """The 20 bytes again; None for what is no such text, and others than were ever given for one of our own making.

        There is nothing in it by which what we gave is known: that shows when there is nothing at the place it names.
        """
        block = _bytes(mark, WIDTH, WIDE)
        if block is None:
            return None
        left, right = block[: WIDE // 2], block[WIDE // 2 :]
        for turn in reversed(_ROUNDS):
            left, right = self._mixed(kind, turn, right, left), left
        return left + right

    def _mixed(self, kind: int, turn: int, half: bytes, other: bytes) -> bytes:
        mask = hashlib.blake2b(other, digest_size=WIDE // 2, key=self._key, person=bytes((kind, turn))).digest()
        return bytes(one ^ another for one, another in zip(half, mask, strict=True))


def _bytes(mark: str, width: int, size: int) -> bytes | None:
    """The number that a text of so many signs is, in so many bytes."""
    if len(mark) != width or not _DIGITS.keys() >= set(mark):
        return None
    whole = 0
    for sign in mark:
        whole = whole * 62 + _DIGITS[sign]
    return whole.to_bytes(size) if whole < 1 << (8 * size) else None
