"""The trace of an event goes on at its receiver, and a collector is told of each attempt, whatever becomes of it."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.integration.conftest import Receiver, Running, Sql, configuration, insert, settled
from tests.waiting import HANGS, until
from webhookd.daemon.daemon import Daemon
from webhookd.errors import ConfigError

ID, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
METADATA = f'{{"traceparent": "00-{ID}-{SPAN}-01", "tracestate": "a=1"}}'


class Collector:
    """Takes spans by OTLP over HTTP, on loopback; `status` is what it answers."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.hangs = False
        self.service: dict[str, str] = {}
        self.spans: list[Any] = []

    async def handle(self, request: web.Request) -> web.Response:
        told = ExportTraceServiceRequest.FromString(await request.read())
        for resource in told.resource_spans:
            self.service |= {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += scope.spans
        if self.hangs:
            await asyncio.sleep(HANGS)
        return web.Response(status=self.status)


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    there = Collector()
    application = web.Application()
    application.router.add_post("/v1/traces", there.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    there.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
    yield there
    await runner.cleanup()


async def test_each_attempt_is_a_span_of_the_trace_of_its_event(
    sql: Sql, receiver: Receiver, daemon: Running, collector: Collector
) -> None:
    receiver.answers("hook", 500, 200)
    table = {"url": receiver.url("hook") + "?token=visibly-fake", "retry": {"schedule": ["50ms"]}}
    async with daemon(configuration({"hook": table}, traces={"endpoint": collector.url})):
        event_id = await insert(sql, metadata=METADATA)
        await settled(sql, event_id, {"hook": "delivered"})
        await until(lambda: len(collector.spans) == 2, "both spans")
    first, second = sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
    for span, got in zip((first, second), receiver.got, strict=True):
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (ID, SPAN)
        assert got.headers["traceparent"] == f"00-{ID}-{span.span_id.hex()}-01"
        assert got.headers["tracestate"] == "a=1"
    about = {each.key: each.value for each in first.attributes}
    assert about["http.response.status_code"].int_value == 500
    assert about["url.full"].string_value == receiver.url("hook")
    assert about["webhookd.event.id"].string_value == event_id
    assert collector.service["service.name"] == "webhookd"


@pytest.mark.parametrize("status", [None, 503, 0])
async def test_a_collector_that_is_away_holds_up_nothing(
    status: int | None, sql: Sql, receiver: Receiver, daemon: Running, collector: Collector
) -> None:
    collector.status = status or 200
    collector.hangs = status == 0
    url = "http://127.0.0.1:1/v1/traces" if status is None else collector.url
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}}, traces={"endpoint": url})):
        for _ in range(3):
            await settled(sql, await insert(sql), {"hook": "delivered"})
    assert len(receiver.got) == 3


async def test_without_a_collector_the_trace_goes_on_all_the_same(
    sql: Sql, receiver: Receiver, daemon: Running
) -> None:
    async with daemon(configuration({"hook": {"url": receiver.url("hook")}})):
        await settled(sql, await insert(sql, metadata=METADATA), {"hook": "delivered"})
        await settled(sql, await insert(sql), {"hook": "delivered"})
    with_trace, without = receiver.got
    assert with_trace.headers["traceparent"].startswith(f"00-{ID}-")
    assert SPAN not in with_trace.headers["traceparent"]
    assert "traceparent" not in without.headers


async def test_what_opentelemetry_cannot_be_is_a_mistake_of_the_configuration(
    dsn: str, receiver: Receiver, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1000000")
    hook = {"hook": {"url": receiver.url("hook")}}
    with pytest.raises(ConfigError, match=r"\[traces\] endpoint: OpenTelemetry cannot be set up: "):
        await Daemon(configuration(hook, traces={"endpoint": collector.url}), dsn).run()


async def test_nothing_of_opentelemetry_is_loaded_without_one() -> None:
    code = "import sys, webhookd.daemon.daemon; print(any('opentelemetry' in name for name in sys.modules))"
    found = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout == "False\n"
