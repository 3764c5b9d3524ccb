"""Numbers as texts that say nothing of them: not how many there are, nor which came when."""

import struct
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from webhookd.ids import ALPHABET, base62

_WIDTH: Final = 22  # signs for 16 bytes
_SHAPE: Final = struct.Struct(">BxxxxxxxQ")  # seven bytes of nothing, by which what we gave is told from anything else
_DIGITS: Final = {sign: digit for digit, sign in enumerate(ALPHABET)}


class Marks:
    """A number of some kind is one block of AES (FIPS 197) with a key of 16 bytes: the same is always the same."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305  # one block, of which no two are the same

    def mark(self, kind: int, number: int) -> str:
        """The text for a number of this kind, both not negative."""
        encryptor = self._cipher.encryptor()
        return base62(encryptor.update(_SHAPE.pack(kind, number)), _WIDTH)

    def number(self, kind: int, mark: str) -> int | None:
        """The number again; None for a text that is none of this kind."""
        if len(mark) != _WIDTH or not _DIGITS.keys() >= set(mark):
            return None
        whole = 0
        for sign in mark:
            whole = whole * 62 + _DIGITS[sign]
        if whole >= 1 << 128:
            return None
        plain = self._cipher.decryptor().update(whole.to_bytes(16))
        found, number = _SHAPE.unpack(plain)
        return number if found == kind and _SHAPE.pack(found, number) == plain and number < 1 << 63 else None
