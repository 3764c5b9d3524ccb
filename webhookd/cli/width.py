"""How wide what people read may be, and where its lines break: between words, so that what is copied stays whole."""

import os
import re
from collections.abc import Iterator
from typing import IO, Final

from rich.cells import cell_len

USUAL: Final = 80  # columns of a terminal that does not know how wide it is
SECOND: Final = 24  # a second column that begins before this is where the further lines of it begin, too
LEAST: Final = 20  # columns that are left of an indented line

# What is quoted is one word, with its blanks: a command, a text of the files.
_WORD: Final = re.compile(r'(?:`[^`]*`|"(?:[^"\\]|\\.)*"|\S)+')
_PART: Final = re.compile(r"\S+")
# What mistakes begin with is one, too: a file may lie in a folder with blanks.
_FILE: Final = re.compile(r"(?:webhookd: )?(/[^:]*|(?<=^webhookd: )[^:]*?\.toml)(?=:(?:[0-9]+:)? )")
_COLUMN: Final = re.compile(r"(?! )\S.*?  +(?=\S)")


def columns(stream: IO[str]) -> int | None:
    """How wide the terminal is that it leads to; elsewhere what $COLUMNS says; None where nothing does."""
    said = os.environ.get("COLUMNS", "")
    elsewhere = int(said) if re.fullmatch(r"[1-9][0-9]{0,4}", said) else None
    if not stream.isatty():
        return elsewhere
    try:
        return os.get_terminal_size(stream.fileno()).columns or elsewhere or USUAL
    except (OSError, ValueError):  # it is closed, or says that it is one and is none
        return elsewhere or USUAL


def breaks(text: str, width: int) -> list[tuple[int, int]]:
    """Where its lines begin and end; the further ones are indented by `hanging`. A word that is too long is a line."""
    room, lines, first, last = width, list[tuple[int, int]](), 0, 0
    for start, end in _words(text, width - hanging(text, width)):
        if last and cell_len(text[first:end]) > room:
            lines.append((first, last))
            first, room = start, width - hanging(text, width)
        last = end
    return [*lines, (first, last)]


def hanging(text: str, width: int) -> int:
    """How far the further lines of a text are indented: to its second column, if it has one, else a little."""
    column = _COLUMN.match(text)
    indent = column.end() if column and column.end() <= SECOND else len(text) - len(text.lstrip(" ")) + 2
    return max(min(indent, width - LEAST), 0)


def wrapped(text: str, width: int) -> str:
    """The line as several that are no wider, but for words that are."""
    parts = [text[start:end] for start, end in breaks(text, width)]
    return ("\n" + " " * hanging(text, width)).join(parts)


def _words(text: str, room: int) -> Iterator[tuple[int, int]]:
    """Where words begin and end; one with blanks that has no room on a line is several."""
    held = _held(text)
    for word in _WORD.finditer(held):
        if cell_len(word[0]) <= room:
            yield word.span()
        else:
            yield from (part.span() for part in _PART.finditer(held, *word.span()))


def _held(text: str) -> str:
    """The text with no blanks in its file, nor wherever else it names the folder of that."""
    if not (found := _FILE.match(text)) or " " not in found[1]:
        return text
    for name in (found[1], found[1].rpartition("/")[0]):
        if " " in name:
            text = text.replace(name, name.replace(" ", "_"))
    return text
