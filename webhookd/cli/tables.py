"""Tables and JSON for people, in which nothing that others wrote can act on a terminal.

Event types, URLs, names and answers come from applications and receivers: a character that is not plain text is shown
as its escape, and no text is ever read as markup.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
import typer
from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

MOST = 200  # characters of a cell
WIDE = 10_000  # where no terminal folds lines

# What str.isprintable() lets pass although nobody sees it: the Default_Ignorable_Code_Points of Unicode that are no
# format characters, such as variation selectors and the fillers of Hangul. Text can hide in them.
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


def inert(text: str, most: int | None = MOST) -> str:
    """The text on one line, cut after so many characters, with escapes for all that a terminal would act on."""
    shown = text if most is None or len(text) <= most else text[: most - 1] + "…"
    return _escaped(shown, lambda character: character.encode("unicode_escape").decode())


def inert_json(text: str) -> str:
    """A line of JSON that means the same, with the escapes of JSON where inert() has escapes."""
    return _escaped(text, _unit_escapes)


def document(value: Any, *, indent: bool = True) -> str:
    """The value as JSON, the same for every parser, with escapes where inert() has them.

    A surrogate that belongs to no pair, as Python makes them of bytes that are not UTF-8, is U+FFFD.
    """
    option = orjson.OPT_UTC_Z | (orjson.OPT_INDENT_2 if indent else 0)
    try:
        text = orjson.dumps(value, option=option).decode()
    except orjson.JSONEncodeError:
        text = orjson.dumps(_paired(value), option=option).decode()
    return "\n".join(map(inert_json, text.split("\n")))


def _escaped(text: str, escape: Callable[[str], str]) -> str:
    """With escapes for controls, also C1 ones, for what changes the direction of text, and for what nobody sees."""
    if text.isprintable() and not _UNSEEN.search(text):
        return text
    return "".join(c if c.isprintable() and not _UNSEEN.match(c) else escape(c) for c in text)


def _unit_escapes(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[n : n + 4]}" for n in range(0, len(units), 4))


def _paired(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {_paired(key): _paired(each) for key, each in value.items()}
    return list(map(_paired, value)) if isinstance(value, (list, tuple)) else value


def cell(value: object, style: str = "") -> Text:
    """A value as a table shows it: nothing for None, a moment in UTC to the second."""
    if isinstance(value, datetime):
        return Text(f"{value:%Y-%m-%d %H:%M:%S}", style)
    return Text("" if value is None else inert(str(value)), style)


def counted(number: int, one: str, many: str = "") -> str:
    """The number with its noun."""
    return f"{number} {one}" if number == 1 else f"{number} {many or one + 's'}"


def span(seconds: float) -> str:
    """A duration, as precise as people want it."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table; a head that begins with ">" is of a column of numbers."""
    columns = [
        Column(Text(head.removeprefix(">")), justify="right" if head.startswith(">") else "left", overflow="fold")
        for head in heads
    ]
    made = Table(*columns, box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for row in rows:
        made.add_row(*(each if isinstance(each, Text) else cell(each) for each in row))
    return made


def show(*parts: RenderableType) -> None:
    """Print, with colours and folded lines on a terminal only."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE)
    for part in parts:
        console.print(part)


def say(text: str, *, err: bool = False) -> None:
    """Print lines of text on standard output or standard error, as they are but for what a terminal would act on."""
    typer.echo("\n".join(inert(line, None) for line in text.split("\n")), err=err)


def show_json(value: Any, *, indent: bool = True) -> None:
    """Print one document."""
    say(document(value, indent=indent))
