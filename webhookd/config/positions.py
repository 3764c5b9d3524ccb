"""Where the keys of a TOML document stand, which tomllib does not say."""

import re
import tomllib
from collections.abc import Mapping
from typing import Final

Path = tuple[str, ...]

_TOKEN: Final = re.compile(
    r'''"""(?:[^"\\]++|\\.|"(?!""))*+"{3,5}'''  # up to two quotes may stand before the three that end it
    r"""|'''(?:[^']++|'(?!''))*+'{3,5}"""
    r'''|"(?:[^"\\\n]++|\\.)*+"'''
    r"""|'[^'\n]*+'"""
    r"""|\#[^\n]*+|\n|[][{}=,.]|[^][{}=,.#"'\s]++""",
    re.DOTALL,
)


MOST_PARTS: Final = 32  # of a key, between its dots; the longest of ours has 5
MOST_DEPTH: Final = 32  # of arrays and inline tables in each other
_PIECE: Final = 64 * 1024
_MANY_DOTS: Final = re.compile(rf"^(?:[^.\n]*+\.){{{MOST_PARTS}}}", re.MULTILINE)


def may_be_endless(text: str) -> bool:
    """True when a key may have more parts than any needs, each of which costs tomllib as much as all before it."""
    at = 0
    while at < len(text):  # piece by piece, or no other thread had its turn for a fifth of a second
        end = text.find("\n", at + _PIECE) + 1 or len(text)
        if _MANY_DOTS.search(text, at, end):
            return True
        at = end
    return False


def excess(text: str) -> tuple[int, str] | None:
    """The line, and the rest of a sentence, of the first key or value that goes deeper than any setting needs."""
    scanner = _Scanner()
    line = 1
    for found in _TOKEN.finditer(text):
        scanner.take(found[0], line)
        if scanner.parts > MOST_PARTS:
            return line, f"has a key of more than {MOST_PARTS} parts; no setting has so many"
        if scanner.depth > MOST_DEPTH:
            return line, f"has more than {MOST_DEPTH} arrays or tables in each other; no setting has so many"
        line += found[0].count("\n")
    return None


def lines(text: str) -> Mapping[Path, int]:
    """The line, from 1, of each key and table of a document that tomllib accepts, by its path from the top.

    A table without a line of its own stands where it is first named; what an array repeats, where it is first written.
    """
    scanner = _Scanner()
    line = 1
    for found in _TOKEN.finditer(text):
        scanner.take(found[0], line)
        line += found[0].count("\n")
    return scanner.found


class _Scanner:
    """Tells keys from values, token by token."""

    def __init__(self) -> None:
        self.found: dict[Path, int] = {}
        self._table: Path = ()  # of the last header
        self._path: Path = ()  # of the value that is being read
        self._open: list[tuple[str, Path]] = []  # brackets of values that are not closed, and whose value each is
        self._keys: list[str] = []
        self._in_header = False
        self._in_value = False  # or in what is left of a line

    @property
    def parts(self) -> int:
        """Of the key that is being read."""
        return len(self._keys)

    @property
    def depth(self) -> int:
        """Brackets of values that are open."""
        return len(self._open)

    def take(self, word: str, line: int) -> None:
        if word == "\n":
            if not self._open:
                self._keys, self._in_header, self._in_value = [], False, False
        elif word.startswith("#"):
            pass
        elif self._in_value:
            self._value(word)
        else:
            self._key(word, line)

    def _key(self, word: str, line: int) -> None:
        match word:
            case "=":
                self._path = self._name(self._open[-1][1] if self._open else self._table, line)
            case "[":
                self._in_header = True
            case "]" if self._in_header:
                self._table = self._name((), line)
            case "]" | "}":
                self._close()
            case "." | "," | "{":
                pass
            case _:
                self._keys.append(_plain(word))

    def _value(self, word: str) -> None:
        match word:
            case "[" | "{":
                self._open.append((word, self._path))
                self._in_value = word == "["
            case "]" | "}":
                self._close()
            case "," if self._open and self._open[-1][0] == "{":
                self._in_value = False

    def _name(self, above: Path, line: int) -> Path:
        """Notes the line of what the keys name, and of each table on the way to it."""
        for key in self._keys:
            above = (*above, key)
            self.found.setdefault(above, line)
        self._keys, self._in_value = [], True
        return above

    def _close(self) -> None:
        if self._open:
            _, self._path = self._open.pop()
        self._in_value = True


def _plain(key: str) -> str:
    if key.startswith("'"):
        return key[1:-1]
    if not key.startswith('"'):
        return key
    return str(tomllib.loads(f"k={key}")["k"]) if "\\" in key else key[1:-1]
