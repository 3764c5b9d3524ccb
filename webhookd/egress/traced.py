"""A span of OpenTelemetry for each attempt, where `[traces]` says where to; it wants the extra `webhookd[otel]`.

Source: OpenTelemetry semantic conventions 1.27 and later, HTTP client spans.
"""

import asyncio
import logging
import os
import time
from collections.abc import Coroutine
from threading import Thread
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    set_span_in_context,
)

from webhookd import __version__
from webhookd.exchange import NoResponse, Request, Response, Trace
from webhookd.message.request import without_query
from webhookd.message.trace import PARENT

EXPORT_SECONDS: Final = 5.0  # of one export
LAST_SECONDS: Final = 2.0  # for what is left at the end
TOLD_SECONDS: Final = 60.0  # between two lines of the log about a collector that is away
FAILED: Final = 400  # and above: statuses that are errors of a client's span

Answer = Response | NoResponse


class Sender(Protocol):
    """What sends."""

    def send(self, request: Request) -> Coroutine[Any, Any, Answer]:
        """The answer."""


class SpanIds(RandomIdGenerator):
    """Gives the next span the id that its receiver is told."""

    def __init__(self) -> None:
        self.next = ""

    def generate_span_id(self) -> int:
        """A random one, unless it is known."""
        known, self.next = self.next, ""
        return int(known, 16) if known else super().generate_span_id()


class Traced:
    """Sends as `sender` does, and tells of it."""

    def __init__(self, sender: Sender, tracer: Tracer, ids: SpanIds) -> None:
        self._sender = sender
        self._tracer = tracer
        self._ids = ids

    async def send(self, request: Request) -> Answer:
        """The answer; the span has ended then. A request that belongs to no trace begins one."""
        self._ids.next = "" if request.trace is None else request.trace.span_id
        about = _attributes(request)
        span = self._tracer.start_span("POST", _context(request.trace), SpanKind.CLIENT, attributes=about)
        try:
            answer = await self._sender.send(_told(request, span.get_span_context()))
            _tell(span, answer)
        except BaseException as error:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
        finally:
            span.end()
        return answer


class Spans:
    """Makes spans, and sends them to a collector in a thread of its own, which drops what is too many."""

    def __init__(self, endpoint: str) -> None:
        self._ids = SpanIds()
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        about = {"service.version": __version__} | ({} if named else {"service.name": "webhookd"})
        provider = TracerProvider(resource=Resource.create(about), id_generator=self._ids, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=EXPORT_SECONDS)))
        self._provider = provider
        self._tracer = provider.get_tracer("webhookd", __version__)
        now_and_then = NowAndThen()
        for name in list(logging.root.manager.loggerDict):
            if name.startswith("opentelemetry"):
                logging.getLogger(name).addFilter(now_and_then)

    def traced(self, sender: Sender) -> Traced:
        """The same sender, with a span for each request."""
        return Traced(sender, self._tracer, self._ids)

    async def close(self) -> None:
        """Send what is left, for two seconds: a thread that hangs on a dead collector is left to the end of us."""
        closing = Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, LAST_SECONDS)


class NowAndThen(logging.Filter):
    """Lets a line pass, and none for a minute then: a collector that is away would have one for each export."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is to be written."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + TOLD_SECONDS
        return True


def _context(trace: Trace | None) -> Context:
    if trace is None:
        return Context()
    state = TraceState.from_header([trace.state] if trace.state else [])
    numbers = int(trace.trace_id, 16), int(trace.parent_id, 16)
    parent = SpanContext(*numbers, is_remote=True, trace_flags=TraceFlags(trace.flags), trace_state=state)
    return set_span_in_context(NonRecordingSpan(parent), Context())


def _told(request: Request, context: SpanContext) -> Request:
    """The request that tells its receiver of this span, unless its endpoint has a header of its own."""
    if not context.is_valid or (request.trace is None and PARENT in request.headers):
        return request
    if request.trace is not None and context.span_id != int(request.trace.span_id, 16):  # it is switched off
        return request
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    if request.headers.get(PARENT) == parent:
        return request
    return request._replace(headers={**request.headers, PARENT: parent})


def _attributes(request: Request) -> dict[str, str | int]:
    url = urlsplit(request.url)
    about: dict[str, str | int] = {
        "http.request.method": "POST",
        "url.full": without_query(request.url),
        "server.address": url.hostname or "",
        "server.port": url.port or (80 if url.scheme == "http" else 443),
        "http.request.body.size": len(request.content),
    }
    said = request.headers.get("webhook-attempt", "")  # which a header of the endpoint may have replaced
    if said.isdecimal() and (again := int(said) - 1) > 0:
        about["http.request.resend_count"] = again
    if event_id := request.headers.get("webhook-id"):
        about["webhookd.event.id"] = event_id
    return about


def _tell(span: Span, answer: Answer) -> None:
    if isinstance(answer, NoResponse):
        span.set_attribute("error.type", answer.code)
        span.set_status(Status(StatusCode.ERROR, answer.code))
        return
    span.set_attribute("http.response.status_code", answer.status)
    if answer.status >= FAILED:
        span.set_attribute("error.type", str(answer.status))
        span.set_status(Status(StatusCode.ERROR))
