"""Tables and JSON for people, in which nothing that others wrote can act on a terminal.

Event types, URLs, names and answers come from applications and receivers: a character that is not plain text is shown
as its escape, and no text is ever read as markup.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from typing import Any, NamedTuple

import orjson
import typer
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from webhookd.cli.width import breaks, columns, hanging, wrapped

MOST = 200  # characters of a cell
WIDE = 10_000  # where there is no terminal
GAP, INDENT = "  ", "    "  # between columns; before the further lines of a row

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


def cell(value: object, style: str = "", most: int | None = MOST) -> Text:
    """A value as a table shows it: nothing for None, a moment in UTC to the second."""
    if isinstance(value, datetime):
        return Text(f"{value:%Y-%m-%d %H:%M:%S}", style)
    return Text("" if value is None else inert(str(value), most), style)


def counted(number: int, one: str, many: str = "") -> str:
    """The number with its noun."""
    return f"{number} {one}" if number == 1 else f"{number} {many or one + 's'}"


def span(seconds: float) -> str:
    """A duration, as precise as people want it."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


class Layout(NamedTuple):
    """A table as lines for a terminal: those of its heads, those of each row, and the heads that were left out."""

    heads: list[Text]
    rows: list[list[Text]]
    left_out: list[str]


class Table:
    """Rows under heads; a head that begins with ">" is of a column of numbers.

    No cell is ever broken, since it may be an id that somebody copies. Of the columns named in `least`, the least
    important first, those are left out for which a terminal has no room. Where the others alone are too wide, a few
    cells that are have lines of their own; where those are many, all columns are there and a row takes several lines.
    """

    def __init__(self, heads: Sequence[str], rows: Iterable[Sequence[object]], least: Sequence[str] = ()) -> None:
        self._right = [head.startswith(">") for head in heads]
        self._heads = [Text(head.removeprefix(">"), "bold") for head in heads]
        self._rows = [[each if isinstance(each, Text) else cell(each) for each in row] for row in rows]
        self._columns = [
            [text.cell_len for text in column] for column in zip(self._heads, *self._rows, strict=True)
        ]  # how wide their cells are
        names = [head.plain for head in self._heads]
        self._least = [names.index(name) for name in least]

    def layout(self, width: int) -> Layout:
        """How it looks on a terminal so wide."""
        kept = [column for column in range(len(self._heads)) if column not in self._least]
        widths = self._lowered(kept, width)
        if widths is None:
            widths, kept = list(map(max, self._columns)), list(range(len(self._heads)))
            lines = self._lines(widths, width)
        else:
            for column in reversed(self._least):
                if _wide(widths, [*kept, column]) <= width:
                    kept.append(column)
            lines = [sorted(kept)]
        left_out = [head.plain for column, head in enumerate(self._heads) if column not in kept]
        heads, *rows = (self._row(row, lines, widths) for row in (self._heads, *self._rows))
        return Layout(heads, rows, left_out)

    def _lowered(self, kept: Sequence[int], width: int) -> list[int] | None:
        """How wide columns are so that these fit, and few rows have a cell that is wider; or None."""
        widths = list(map(max, self._columns))
        while _wide(widths, kept) > width:
            widest = max(kept, key=lambda column: widths[column])
            lower = [each for each in self._columns[widest] if each < widths[widest]]
            if not lower or widths[widest] == self._columns[widest][0]:  # its head would have no room
                return None
            widths[widest] = max(*lower, self._columns[widest][0])
        spilled = sum(
            any(cells[column] > widths[column] for column in kept) for cells in zip(*self._columns, strict=True)
        )
        return widths if spilled * 2 < max(len(self._rows), 1) else None

    def _lines(self, widths: Sequence[int], width: int) -> list[list[int]]:
        """The columns, so many to a line as fit."""
        lines: list[list[int]] = [[]]
        for column in range(len(self._heads)):
            if lines[-1] and _wide(widths, [*lines[-1], column]) + (len(INDENT) if lines[1:] else 0) > width:
                lines.append([])
            lines[-1].append(column)
        return lines

    def _row(self, cells: Sequence[Text], lines: Sequence[Sequence[int]], widths: Sequence[int]) -> list[Text]:
        row: list[Text] = []
        for number, line_columns in enumerate(lines):
            padded, spilled = [], []
            for column in line_columns:
                text = cells[column]
                if text.cell_len > widths[column]:
                    spilled.append(text if column == 0 else Text(INDENT) + text)
                    text = Text()
                blanks = " " * (widths[column] - text.cell_len)
                padded.append(Text.assemble(blanks, text) if self._right[column] else Text.assemble(text, blanks))
            line = Text(INDENT if number else "") + Text(GAP).join(padded)
            line.rstrip()
            above = [spilled.pop(0)] if spilled and cells[0].cell_len > widths[0] else []
            row += [*above, line, *spilled]
        return [line for line in row if line] or row[:1]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        heads, rows, left_out = self.layout(options.max_width)
        yield from heads
        for row in rows:
            yield from row
        if left_out:
            yield from folded(Text(hint(left_out), "dim"), options.max_width)


def _wide(widths: Sequence[int], kept: Sequence[int]) -> int:
    return sum(widths[column] for column in kept) + len(GAP) * (len(kept) - 1)


class Fitted:
    """Lines, and as much of a table below them as a terminal has room for, with how many rows it has none for."""

    def __init__(self, above: Sequence[Text], table: Table | None = None, noun: str = "row") -> None:
        self._above, self._table, self._noun = above, table, noun

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        above = [line for text in self._above for line in folded(text, options.max_width)]
        yield from above
        if self._table is None:
            return
        found = self._table.layout(options.max_width)
        note = folded(Text(hint(found.left_out), "dim"), options.max_width) if found.left_out else []
        room = options.size.height - self._height([*above, *found.heads, *note], console, options)
        heights = [self._height(row, console, options) for row in found.rows]
        fit = len(heights)
        if sum(heights) > room:
            room -= self._height([self._unfit(fit)], console, options)
            fit = sum(height <= room for height in accumulate(heights))
        yield from found.heads
        for row in found.rows[:fit]:
            yield from row
        yield from note
        if fit < len(heights):
            yield self._unfit(len(heights) - fit)

    def _unfit(self, rows: int) -> Text:
        return Text(f"no room for {counted(rows, f'more {self._noun}')}; without --watch all are shown", "dim")

    @staticmethod
    def _height(texts: Sequence[Text], console: Console, options: ConsoleOptions) -> int:
        return sum(len(console.render_lines(text, options, pad=False)) for text in texts)


def hint(left_out: Sequence[str]) -> str:
    """Where to find what a terminal has no room for."""
    return f"no room for {', '.join(left_out)}: a wider terminal or --json has {'it' if len(left_out) == 1 else 'them'}"


def lines(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """A table as plain text, as wide as it is."""
    found = Table(heads, rows).layout(WIDE)
    yield from (line.plain for line in (*found.heads, *(line for row in found.rows for line in row)))


BAR = "  | "  # before each line of what receivers answered, so that none looks like ours


def folded(text: Text, width: int) -> list[Text]:
    """The text as lines that are no wider, but for words that are, and no answer of a receiver."""
    if text.plain.startswith(BAR):
        room = max(width - len(BAR), 1)
        return [Text(BAR) + part for part in text[len(BAR) :].wrap(Console(width=room), room)]
    lines = []
    for part in text.split("\n", allow_blank=True):
        indent = Text(" " * hanging(part.plain, width))
        lines += [
            indent + part[start:end] if n else part[start:end]
            for n, (start, end) in enumerate(breaks(part.plain, width))
        ]
    return lines


def show(*parts: RenderableType) -> None:
    """Print, no wider than the terminal or $COLUMNS, and with colours on a terminal only."""
    width = columns(sys.stdout)
    console = Console(highlight=False, width=width or WIDE)
    for part in parts:
        lines = folded(part, width) if isinstance(part, Text) and width else [part]
        for line in lines:
            console.print(line, soft_wrap=True)  # what is wider nevertheless is left to the terminal


def live_console() -> Console:
    """One that is as wide as the terminal is at each moment, whatever $COLUMNS says."""
    environ = {name: text for name, text in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return Console(highlight=False, _environ=environ)


def say(text: str, *, err: bool = False) -> None:
    """Print lines of text on standard output or standard error, as they are but for what a terminal would act on."""
    typer.echo("\n".join(inert(line, None) for line in text.split("\n")), err=err)


def tell(text: str, *, err: bool = False) -> None:
    """Print sentences, no wider than the terminal; on standard output also no wider than $COLUMNS."""
    stream = sys.stderr if err else sys.stdout
    wraps = stream.isatty() or not err  # whoever keeps the errors has a line of each
    width = columns(stream) if wraps else None
    lines = (inert(line, None) for line in text.split("\n"))
    typer.echo("\n".join(wrapped(line, width) if width else line for line in lines), err=err)


def show_json(value: Any, *, indent: bool = True) -> None:
    """Print one document."""
    say(document(value, indent=indent))
