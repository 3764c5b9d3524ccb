"""Where the log goes and what it looks like: one line of JSON an event, or lines for people.

loop ── a line ──▶ queue of 10,000 ──▶ thread ──▶ stderr, which may block or fail as long as it likes
         └── no room: counted ──────────▶ `log_lines_dropped`, once it flows again
"""

import logging
import os
import select
import sys
import traceback
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from itertools import accumulate
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import Processor

from webhookd.cli.tables import inert
from webhookd.errors import WebhookdError

MOST_LINES: Final = 10_000
FLUSH_SECONDS: Final = 1.0
_AT_ONCE = 256  # lines a write


class Output(logging.Handler):
    """Writes lines to a file descriptor on a thread of its own; nobody waits, and what is lost is counted."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._fd = os.dup(number)  # whoever owns the other one may close it while lines are under way
        self._waiting: SimpleQueue[str | Event] = SimpleQueue()
        # Two counters, so that each has one thread that changes it, and neither waits for the other.
        self._refused = self._failed = self._told = 0
        self._torn = False  # the last line that was written has no end
        self._closed = False
        Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put a line into the queue, or count it."""
        if self._waiting.qsize() >= MOST_LINES:
            self._refused += 1
            return
        try:
            line = self.format(record)
        except Exception:  # a value that cannot be shown must not reach the caller
            self._refused += 1
        else:
            self._waiting.put(line + "\n")

    @property
    def lost(self) -> int:
        """Lines that were not written."""
        return self._refused + self._failed

    def flush(self) -> None:
        """Wait until what was logged so far is written, for at most a second; `logging` does it at exit."""
        written = Event()
        self._waiting.put(written)
        written.wait(FLUSH_SECONDS)

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._waiting.put(Event())
        super().close()

    def _run(self) -> None:
        while not self._closed or not self._waiting.empty():
            taken = [self._waiting.get()]
            while len(taken) < _AT_ONCE and not self._waiting.empty():
                taken.append(self._waiting.get())
            lines = [each for each in taken if isinstance(each, str)]
            written = self._write(lines)
            self._failed += len(lines) - written
            if written == len(lines):
                self._confess()
            for each in taken:
                if isinstance(each, Event):
                    each.set()
        os.close(self._fd)

    def _confess(self) -> None:
        lost = self._refused + self._failed - self._told
        if lost:
            level = {"levelno": logging.ERROR, "levelname": "ERROR"}
            record = {"name": "webhookd.log", **level, "msg": "log_lines_dropped", "count": lost}
            self._told += lost * self._write([self.format(logging.makeLogRecord(record)) + "\n"])

    def _write(self, lines: Sequence[str]) -> int:
        """How many of these lines could be written whole."""
        encoded = [line.encode(errors="backslashreplace") for line in lines]
        if encoded and self._torn:
            encoded[0] = b"\n" + encoded[0]
        rest = memoryview(b"".join(encoded))
        size = len(rest)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # somebody who shares the pipe or terminal has made it so
                select.select([], [self._fd], [])
            except OSError:
                break
        done = size - len(rest)
        ends = list(accumulate(map(len, encoded)))
        if done:
            self._torn = done not in ends
        return sum(end <= done for end in ends)


def configure(level: str, form: Literal["auto", "json", "console"], stream: TextIO | None = None) -> None:
    """Log our events, and what libraries say through `logging`, from `level` on to `stream` (stderr)."""
    _fill_standard_streams()
    stream = stream or sys.stderr
    on_terminal = stream is not None and stream.isatty()
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    ending: list[Processor] = (
        [
            _harmless,  # JSON is ASCII
            structlog.dev.ConsoleRenderer(
                colors=on_terminal, exception_formatter=structlog.dev.plain_traceback, pad_event_to=24
            ),
        ]
        if form == "console" or (form == "auto" and on_terminal)
        else [structlog.processors.JSONRenderer()]
    )
    handler = Output(2 if stream is None else stream.fileno())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(["count"])],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.ExceptionRenderer(lambda info: "".join(_traceback(info[1], set())).rstrip()),
                *ending,
            ],
        )
    )
    root = logging.getLogger()
    for replaced in root.handlers:
        if isinstance(replaced, Output):
            replaced.close()
    root.handlers = [handler]
    root.setLevel(max(number, logging.WARNING))  # libraries say more than anybody wants to know
    logging.getLogger("webhookd").setLevel(number)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        cache_logger_on_first_use=True,
    )


def lines_dropped() -> int:
    """Lines that were logged and are not written, since this was configured."""
    return sum(handler.lost for handler in logging.getLogger().handlers if isinstance(handler, Output))


def _harmless(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """What is logged, with nothing in it that acts on a terminal; a traceback keeps its lines."""
    return {
        key: "\n".join(inert(line, None) for line in (value.split("\n") if key == "exception" else [value]))
        if isinstance(value, str)
        else value
        for key, value in event.items()
    }


def _fill_standard_streams() -> None:
    """Open what was started closed (`2>&-`): a socket would get its number, and be written to in place of stderr."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one


def _traceback(error: BaseException, seen: set[int]) -> Iterator[str]:
    """The lines of a traceback without local variables, and without the texts of exceptions that are not ours.

    Those quote what they stumbled over: a payload, a URL with its token, a row of the database.
    """
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        yield from _traceback(before, seen)
        yield "\nwhich led to:\n\n"
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(error.__traceback__)
    yield f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    if isinstance(error, WebhookdError):
        yield f": {error}"
    elif isinstance(error, OSError) and error.errno:
        yield f": {os.strerror(error.errno)}"
    yield "\n"
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield "\none of which:\n\n"
            yield from _traceback(one, seen)
