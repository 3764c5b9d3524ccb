"""Svix' client library for Python has a method for nearly each of our operations; every one of these is asked for."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from svix.api import (
    ApplicationIn,
    ApplicationPatch,
    ApplicationTokenExpireIn,
    AppPortalAccessIn,
    BulkReplayIn,
    EndpointHeadersIn,
    EndpointHeadersPatchIn,
    EndpointIn,
    EndpointPatch,
    EndpointSecretRotateIn,
    EndpointUpsertIn,
    EventExampleIn,
    EventTypeIn,
    EventTypePatch,
    EventTypeUpsertIn,
    MessageIn,
    PollingEndpointConsumerSeekIn,
    RecoverIn,
    ReplayIn,
    Svix,
)

from tests.integration.conftest import Receiver, Sql, eventually, finished
from tests.integration.web.test_python_client import Served, blocking, client, polled, served
from tests.waiting import until
from webhookd.web.operation import Operation
from webhookd.web.router import Router
from webhookd.web.table import OPERATIONS

__all__ = ["served"]
NONE = {  # for which it has no method
    "v1.health.get", "v1.endpoint.test", "v1.endpoint.pause", "v1.endpoint.resume", "v1.message.explain",
    "v1.authentication.get-poller-token", "v1.authentication.rotate-poller-token",
    "v1.status.get", "v1.audit.list", "v1.token.list", "v1.token.create", "v1.token.revoke",
}  # fmt: skip
DAY = timedelta(days=1)
Calls = Mapping[str, Callable[[Svix], Any]]


def calls(receiver: Receiver, ids: Mapping[str, str]) -> Calls:
    """Each once; what takes something away comes last."""
    since, msg, attempt, task = datetime.now(UTC) - DAY, ids["message"], ids["attempt"], ids["task"]
    url = receiver.url("hook")
    return {
        "application.create": lambda api: api.application.create(ApplicationIn(name="x", uid="more")),
        "application.list": lambda api: api.application.list(),
        "application.get": lambda api: api.application.get("shop"),
        "application.update": lambda api: api.application.upsert("more", ApplicationIn(name="y")),
        "application.patch": lambda api: api.application.patch("more", ApplicationPatch(name="z")),
        "endpoint.create": lambda api: api.endpoint.create("more", EndpointIn(url=url, uid="hook")),
        "endpoint.list": lambda api: api.endpoint.list("shop"),
        "endpoint.get": lambda api: api.endpoint.get("shop", "hook"),
        "endpoint.update": lambda api: api.endpoint.upsert("more", "hook", EndpointUpsertIn(url=url)),
        "endpoint.patch": lambda api: api.endpoint.patch("more", "hook", EndpointPatch(description="x")),
        "endpoint.get-secret": lambda api: api.endpoint.get_secret("shop", "hook"),
        "endpoint.rotate-secret": lambda api: api.endpoint.rotate_secret("more", "hook", EndpointSecretRotateIn()),
        "endpoint.get-headers": lambda api: api.endpoint.get_headers("shop", "hook"),
        "endpoint.update-headers": lambda api: api.endpoint.set_headers("more", "hook", EndpointHeadersIn(headers={})),
        "endpoint.patch-headers": lambda api: api.endpoint.patch_headers(
            "more", "hook", EndpointHeadersPatchIn(headers={"X-A": "1"})
        ),
        "endpoint.get-stats": lambda api: api.endpoint.get_stats("shop", "hook"),
        "endpoint.send-example": lambda api: api.endpoint.send_example("shop", "hook", EventExampleIn(event_type="a")),
        "endpoint.recover": lambda api: api.endpoint.recover("more", "hook", RecoverIn(since=since)),
        "endpoint.replay-missing": lambda api: api.endpoint.replay_missing("other", "hook", ReplayIn(since=since)),
        "endpoint.bulk-replay": lambda api: api.endpoint.bulk_replay("third", "hook", BulkReplayIn(since=since)),
        "event-type.create": lambda api: api.event_type.create(EventTypeIn(name="b", description="")),
        "event-type.list": lambda api: api.event_type.list(),
        "event-type.get": lambda api: api.event_type.get("b"),
        "event-type.update": lambda api: api.event_type.upsert("b", EventTypeUpsertIn(description="x")),
        "event-type.patch": lambda api: api.event_type.patch("b", EventTypePatch(deprecated=True)),
        "message.create": lambda api: api.message.create("more", MessageIn(event_type="a", payload={})),
        "message.list": lambda api: api.message.list("shop"),
        "message.get": lambda api: api.message.get("shop", msg),
        "message.poller.poll": lambda api: api.message.poller.poll("shop", "polled"),
        "message.poller.consumer-poll": lambda api: api.message.poller.consumer_poll("shop", "polled", "one"),
        "message.poller.consumer-seek": lambda api: api.message.poller.consumer_seek(
            "shop", "polled", "one", PollingEndpointConsumerSeekIn(after=since)
        ),
        "message-attempt.list-by-endpoint": lambda api: api.message_attempt.list_by_endpoint("shop", "hook"),
        "message-attempt.list-by-msg": lambda api: api.message_attempt.list_by_msg("shop", msg),
        "message-attempt.list-attempted-messages": lambda api: api.message_attempt.list_attempted_messages(
            "shop", "hook"
        ),
        "message-attempt.list-attempted-destinations": lambda api: api.message_attempt.list_attempted_destinations(
            "shop", msg
        ),
        "message-attempt.get": lambda api: api.message_attempt.get("shop", msg, attempt),
        "message-attempt.resend": lambda api: api.message_attempt.resend("shop", msg, "hook"),
        "background-task.list": lambda api: api.background_task.list(),
        "background-task.get": lambda api: api.background_task.get(task),
        "authentication.app-portal-access": lambda api: api.authentication.app_portal_access(
            "shop", AppPortalAccessIn()
        ),
        "authentication.expire-all": lambda api: api.authentication.expire_all("shop", ApplicationTokenExpireIn()),
        "message-attempt.expunge-content": lambda api: api.message_attempt.expunge_content("shop", msg, attempt),
        "message.expunge-content": lambda api: api.message.expunge_content("shop", msg),
        "event-type.delete": lambda api: api.event_type.delete("b"),
        "endpoint.delete": lambda api: api.endpoint.delete("shop", "hook"),
        "application.delete": lambda api: api.application.delete("shop"),
    }


async def test_every_route_that_it_has_a_method_for(
    served: Served, receiver: Receiver, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    find = Router.find

    def noted(self: Router, method: str, path: str) -> tuple[Operation, dict[str, str]]:
        found = find(self, method, path)
        asked.append(found[0].id)
        return found

    with client(served) as api:
        for uid in ("shop", "other", "third"):
            await blocking(lambda uid=uid: api.application.create(ApplicationIn(name=uid, uid=uid)))  # type: ignore[misc]
            given = EndpointIn(url=receiver.url("hook"), uid="hook")
            await blocking(lambda uid=uid, given=given: api.endpoint.create(uid, given))  # type: ignore[misc]
        await polled(served, "shop")
        message = await blocking(lambda: api.message.create("shop", MessageIn(event_type="a", payload={"n": 1})))
        await until(lambda: bool(receiver.got), "it")
        await finished(sql)
        listed = await blocking(lambda: api.message_attempt.list_by_msg("shop", message.id))
        task = await blocking(lambda: api.endpoint.recover("shop", "hook", RecoverIn(since=datetime.now(UTC) - DAY)))
        ids = {"message": message.id, "attempt": listed.data[0].id, "task": task.id}
        monkeypatch.setattr(Router, "find", noted)
        answers = {}
        for name, call in calls(receiver, ids).items():
            answers[name] = await blocking(lambda call=call: call(api))  # type: ignore[misc]
            assert asked[-1] == f"v1.{name}"
    assert {each.id for each in OPERATIONS} - set(asked) == NONE
    assert answers["message-attempt.get"].response_status_code == 200
    assert answers["message-attempt.list-attempted-messages"].data[0].id == message.id
    assert answers["message-attempt.list-attempted-destinations"].data[0].status == 0
    assert answers["endpoint.get-stats"].pending == 0
    assert [each.id for each in answers["message.poller.poll"].data] == [message.id]
    assert answers["message.poller.consumer-poll"].data == answers["message.poller.poll"].data
    assert answers["background-task.get"].id == task.id
    await eventually(
        lambda: sql.fetchval("SELECT NOT EXISTS (SELECT FROM webhookd.shot WHERE done_at IS NULL)"), "the end"
    )
