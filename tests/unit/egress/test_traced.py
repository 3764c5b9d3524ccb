"""A span for each attempt, as the semantic conventions have it, in the trace that the receiver is told."""

import asyncio
import logging
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from webhookd.egress.traced import NowAndThen, SpanIds, Traced
from webhookd.exchange import NoResponse, Request, Response, Trace

ID, PARENT, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "b7ad6b7169203331"
HEADERS = {"webhook-id": "evt_1", "webhook-attempt": "3", "traceparent": f"00-{ID}-{SPAN}-01"}
REQUEST = Request(
    "https://a:b@hooks.example.com/in?token=visibly-fake#x",
    HEADERS,
    b"{}",
    20.0,
    trace=Trace(ID, PARENT, SPAN, 1, "a=1"),
)


class Sender:
    def __init__(self, answer: Response | NoResponse | BaseException) -> None:
        self.answer = answer
        self.got: list[Request] = []

    async def send(self, request: Request) -> Response | NoResponse:
        self.got.append(request)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class Told:
    """A tracer whose spans are kept."""

    def __init__(self) -> None:
        self.ids = SpanIds()
        self._kept = InMemorySpanExporter()
        provider = TracerProvider(id_generator=self.ids, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.tracer = provider.get_tracer("test")

    async def of(self, sender: Sender, request: Request = REQUEST) -> tuple[Any, Any]:
        """The answer, and the span of it."""
        answer = await Traced(sender, self.tracer, self.ids).send(request)
        return answer, self.spans()[-1]

    def spans(self) -> Any:
        return self._kept.get_finished_spans()


async def test_a_span_is_the_one_that_its_receiver_is_told_of() -> None:
    sender, told = Sender(Response(204)), Told()
    answer, span = await told.of(sender)
    assert answer == Response(204)
    assert sender.got == [REQUEST]
    assert (f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}", f"{span.parent.span_id:016x}") == (
        ID,
        SPAN,
        PARENT,
    )
    assert span.context.trace_state.to_header() == "a=1"
    assert (span.name, span.kind) == ("POST", SpanKind.CLIENT)
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.request.body.size": 2,
        "http.request.resend_count": 2,
        "http.response.status_code": 204,
        "server.address": "hooks.example.com",
        "server.port": 443,
        "url.full": "https://hooks.example.com/in",
        "webhookd.event.id": "evt_1",
    }
    assert span.status.status_code is StatusCode.UNSET


async def test_what_belongs_to_no_trace_begins_one_and_its_receiver_is_told() -> None:
    sender, told = Sender(Response(200)), Told()
    for _ in range(2):
        await told.of(sender, REQUEST._replace(trace=None, headers={"webhook-id": "evt_1"}))
    first, second = told.spans()
    assert first.context.trace_id != second.context.trace_id
    assert first.parent is None
    for span, got in zip((first, second), sender.got, strict=True):
        assert (
            got.headers["traceparent"]
            == f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"
        )


@pytest.mark.parametrize(
    ("answer", "error"), [(Response(503), "503"), (Response(404), "404"), (NoResponse("timeout"), "timeout")]
)
async def test_what_failed_says_why(answer: Response | NoResponse, error: str) -> None:
    _, span = await Told().of(Sender(answer))
    assert span.attributes["error.type"] == error
    assert span.status.status_code is StatusCode.ERROR


async def test_a_redirect_is_no_error_of_a_client() -> None:
    _, span = await Told().of(Sender(Response(302)))
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("error", [ValueError("a bug"), asyncio.CancelledError()])
async def test_whatever_happens_the_span_ends(error: BaseException) -> None:
    told = Told()
    with pytest.raises(type(error)):
        await told.of(Sender(error))
    (span,) = told.spans()
    assert span.status.status_code is StatusCode.ERROR


async def test_what_the_application_does_not_sample_is_not_told() -> None:
    told = Told()
    await Traced(Sender(Response(200)), told.tracer, told.ids).send(REQUEST._replace(trace=Trace(ID, PARENT, SPAN, 0)))
    assert told.spans() == ()


@pytest.mark.parametrize("said", ["mine", "", "-1", "٣"])
async def test_a_header_of_the_endpoint_breaks_no_span(said: str) -> None:
    _, span = await Told().of(Sender(Response(200)), REQUEST._replace(headers={**HEADERS, "webhook-attempt": said}))
    assert span.attributes.get("http.request.resend_count", 2) == 2


async def test_a_traceparent_of_the_endpoint_itself_is_left_as_it_was_signed() -> None:
    sender, told = Sender(Response(200)), Told()
    mine = REQUEST._replace(trace=None, headers={**HEADERS, "traceparent": "mine"})
    await told.of(sender, mine)
    assert sender.got == [mine]


async def test_a_receiver_is_told_whether_its_span_has_a_parent_that_is_kept() -> None:
    sender = Sender(Response(200))
    ids = SpanIds()
    provider = TracerProvider(sampler=ALWAYS_OFF, id_generator=ids, shutdown_on_exit=False)
    await Traced(sender, provider.get_tracer("test"), ids).send(REQUEST)
    assert sender.got[0].headers["traceparent"] == f"00-{ID}-{SPAN}-00"


async def test_nothing_is_told_where_the_sdk_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    provider = TracerProvider(shutdown_on_exit=False)
    sender = Sender(Response(200))
    traced = Traced(sender, provider.get_tracer("test"), SpanIds())
    for request in (REQUEST, REQUEST._replace(trace=None, headers={"webhook-id": "evt_1"})):
        assert await traced.send(request) == Response(200)
        assert sender.got[-1] == request


def test_a_collector_that_is_away_is_a_line_a_minute() -> None:
    now_and_then = NowAndThen()
    record = logging.makeLogRecord({"msg": "Failed to export"})
    assert [now_and_then.filter(record) for _ in range(3)] == [True, False, False]
