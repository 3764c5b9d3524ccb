"""Ids that are made here: a prefix that says of what, and 27 signs that sort as they were made.

Those of several processes sort by the millisecond.
"""

import secrets
import time
from typing import Final

ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # in the order of ASCII
_TWO: Final = tuple(one + other for one in ALPHABET for other in ALPHABET)  # digits, half as often divided
WIDTH: Final = 27  # signs for 20 bytes
_MOMENT, _RANDOM = 6, 14  # bytes: milliseconds since the epoch, and what nobody guesses
_STEP = 96  # bits that nobody guesses, between two of one millisecond


_last = [0]  # the number of the last one, beyond which the next one is, also in its millisecond


def new_id(prefix: str, now: float | None = None) -> str:
    """A fresh one, such as `msg_` and 27 signs; `now` in seconds since the epoch."""
    moment = int((time.time() if now is None else now) * 1000)
    number = int.from_bytes(moment.to_bytes(_MOMENT) + secrets.token_bytes(_RANDOM))
    if now is None:
        if number <= _last[0]:
            number = _last[0] + 1 + secrets.randbits(_STEP)
        _last[0] = number
    return prefix + base62(number.to_bytes(_MOMENT + _RANDOM), WIDTH)


def base62(content: bytes, width: int) -> str:
    """The bytes as one number in so many digits of base 62; the order of the texts is that of the bytes."""
    number, digits = int.from_bytes(content), []
    for _ in range((width + 1) // 2):
        number, two = divmod(number, len(_TWO))
        digits.append(_TWO[two])
    return "".join(reversed(digits))[-width:]
