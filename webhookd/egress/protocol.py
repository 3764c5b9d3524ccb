"""A connection's side of HTTP/1.1: when its answer has to be there, how large a head may be, and who spoke unasked."""

import asyncio
import select
from typing import Any

from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError, RawResponseMessage

from webhookd.egress.resolver import Verdict

READ_BUFFER = 16 * 1024
HEAD_MOST = 64 * 1024  # bytes, of a head and all 1xx answers before it
HEADERS_MOST = 1000  # of one answer; each takes 300 bytes beside its own
_NEVER = float("inf")


class Protocol(ResponseHandler):
    """A connection that knows whether it was used before, and whether its peer spoke since it was last given back."""

    used = False
    heard = False
    _poll: "select.poll | None" = None
    _deadline = _NEVER
    _alarm: asyncio.TimerHandle | None = None  # rings at the deadline or before: one timer for many requests
    _alarm_at = _NEVER
    _head_left = _NEVER  # bytes that the head of the answer may still have

    def answer_by(self, deadline: float = _NEVER) -> None:
        """Raise Verdict to whoever reads after that moment of the loop's clock, until the next call."""
        self._deadline = deadline
        if deadline < self._alarm_at:
            self._set_alarm()

    def _set_alarm(self) -> None:
        self._drop_alarm()
        self._alarm_at = self._deadline
        self._alarm = self._loop.call_at(self._alarm_at, self._ring)

    def _drop_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm, self._alarm_at = None, _NEVER

    def _ring(self) -> None:
        self._drop_alarm()
        if self._loop.time() >= self._deadline:
            self.set_exception(Verdict("timeout"))
        elif self._deadline < _NEVER:
            self._set_alarm()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._drop_alarm()
        super().connection_lost(exc)

    def has_unread(self) -> bool:
        """True when the kernel has bytes of the peer, or its end, that the loop has not read yet."""
        if self._poll is None:  # kept, since each delivery asks
            if self.transport is None:
                return True
            self._poll = select.poll()
            self._poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(self._poll.poll(0))

    def set_response_params(self, **params: Any) -> None:
        """Begin to read another answer."""
        self._head_left = HEAD_MOST
        super().set_response_params(
            max_line_size=HEAD_MOST, max_field_size=HEAD_MOST, max_headers=HEADERS_MOST, **params
        )

    def feed_data(self, data: Any, size: int = 0) -> None:
        if is_final(data[0]):
            self._head_left = _NEVER
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        self.heard = True
        end = data.find(b"\r\n\r\n") + 4
        if end >= 4:  # by itself, because aiohttp forgets a head when what follows it is not HTTP
            self._count(end)
            if self._exception is None:
                super().data_received(data[:end])
            data = data[end:]
        if data and self._exception is None:
            super().data_received(data)
            self._count(len(data))
        if self._exception is not None and self._payload is not None and not self._payload.is_eof():
            self._payload.feed_eof()  # aiohttp would leave its reader waiting

    def _count(self, size: int) -> None:
        self._head_left -= size
        if self._head_left < 0 and self._exception is None:
            self.set_exception(HttpProcessingError(message="a head that is larger than any"))
            self.force_close()


def is_final(message: RawResponseMessage) -> bool:
    """True when no other answer comes behind this one."""
    return message.code >= 200 or message.code < 100 or message.code == 101
