"""The table of operations: all that can be asked for by HTTP, and who may.

Ids and paths are those of the Svix API where it has the operation, so that its client libraries work as they are.
"""

import json
import sys
from typing import Final

from webhookd.policy.access import Right
from webhookd.web import applications, event_types, openapi, operators, portal, tokens
from webhookd.web.attempts import deliveries
from webhookd.web.attempts import reading as attempts
from webhookd.web.attempts import shapes as attempt
from webhookd.web.endpoints import operations as endpoints
from webhookd.web.endpoints import shapes, signing, statistics
from webhookd.web.messages import creation, reading
from webhookd.web.messages import shapes as message
from webhookd.web.operation import Answer, Call, Operation
from webhookd.web.polling import access as pollers
from webhookd.web.polling import reading as polling
from webhookd.web.polling import shapes as poll
from webhookd.web.redoing import replaying, sending, tasks
from webhookd.web.redoing import shapes as redo
from webhookd.web.shapes import Ordered

BASE: Final = "/api/v1"
APP, ENDPOINT, TYPE, MESSAGE, TOKEN = ("Application",), ("Endpoint",), ("Event Type",), ("Message",), ("Token",)
ATTEMPT, TASK, OPERATOR = ("Message Attempt",), ("Background Task",), ("Operator",)
ONE: Final = "/app/{app_id}/endpoint/{endpoint_id}"
MSG: Final = "/app/{app_id}/msg/{msg_id}"
POLLER: Final = "/app/{app_id}/poller/{endpoint_id}"
CONSUMER: Final = POLLER + "/consumer/{consumer_id}"


async def _healthy(call: Call) -> Answer:
    return Answer(204)


# fmt: off
OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        "GET", "/health", "v1.health.get", "Whether the API answers", None, _healthy, {204: None}, tags=("Health",)
    ),
    # Applications
    Operation(
        "GET", "/app", "v1.application.list", "List applications", Right.LOOK, applications.all_of,
        {200: applications.ApplicationPage}, query=Ordered, tags=APP
    ),
    Operation(
        "POST", "/app", "v1.application.create", "Create an application", Right.TENANTS, applications.create,
        {200: applications.ApplicationOut, 201: applications.ApplicationOut}, query=applications.Creation,
        body=applications.ApplicationIn, again=applications.again, tags=APP
    ),
    Operation(
        "GET", "/app/{app_id}", "v1.application.get", "Get an application", Right.LOOK, applications.get,
        {200: applications.ApplicationOut}, tags=APP
    ),
    Operation(
        "PUT", "/app/{app_id}", "v1.application.update", "Create or replace an application", Right.TENANTS,
        applications.upsert, {200: applications.ApplicationOut, 201: applications.ApplicationOut},
        body=applications.ApplicationIn, again=applications.again, tags=APP, may_be_new=True
    ),
    Operation(
        "PATCH", "/app/{app_id}", "v1.application.patch", "Change an application", Right.TENANTS,
        applications.patch, {200: applications.ApplicationOut}, body=applications.ApplicationPatch,
        again=applications.again, tags=APP
    ),
    Operation(
        "DELETE", "/app/{app_id}", "v1.application.delete", "Delete an application", Right.TENANTS,
        applications.delete, {204: None}, tags=APP
    ),
    # Endpoints
    Operation(
        "GET", "/app/{app_id}/endpoint", "v1.endpoint.list", "List endpoints", Right.LOOK, endpoints.all_of,
        {200: shapes.EndpointPage}, query=Ordered, tags=ENDPOINT
    ),
    Operation(
        "POST", "/app/{app_id}/endpoint", "v1.endpoint.create", "Create an endpoint", Right.ENDPOINTS,
        endpoints.create, {201: shapes.EndpointOut}, body=shapes.EndpointIn, again=endpoints.again, tags=ENDPOINT
    ),
    Operation(
        "GET", ONE, "v1.endpoint.get", "Get an endpoint", Right.LOOK, endpoints.get, {200: shapes.EndpointOut},
        tags=ENDPOINT
    ),
    Operation(
        "PUT", ONE, "v1.endpoint.update", "Create or replace an endpoint", Right.ENDPOINTS, endpoints.upsert,
        {200: shapes.EndpointOut, 201: shapes.EndpointOut}, body=shapes.EndpointUpdate, again=endpoints.again,
        tags=ENDPOINT
    ),
    Operation(
        "PATCH", ONE, "v1.endpoint.patch", "Change an endpoint", Right.ENDPOINTS, endpoints.patch,
        {200: shapes.EndpointOut}, body=shapes.EndpointPatch, again=endpoints.again, tags=ENDPOINT
    ),
    Operation(
        "DELETE", ONE, "v1.endpoint.delete", "Delete an endpoint", Right.ENDPOINTS, endpoints.delete, {204: None},
        tags=ENDPOINT
    ),
    Operation(
        "GET", ONE + "/secret", "v1.endpoint.get-secret", "Get the secret of an endpoint", Right.SEE_SECRETS,
        signing.secret, {200: shapes.SecretOut}, tags=ENDPOINT
    ),
    Operation(
        "POST", ONE + "/secret/rotate", "v1.endpoint.rotate-secret", "Rotate the secret of an endpoint",
        Right.CHANGE_SECRETS, signing.rotate, {200: shapes.SecretOut}, body=shapes.RotationIn, again=signing.rotated,
        tags=ENDPOINT
    ),
    Operation(
        "GET", ONE + "/headers", "v1.endpoint.get-headers", "Get the headers of an endpoint", Right.LOOK,
        signing.headers, {200: shapes.HeadersOut}, tags=ENDPOINT
    ),
    Operation(
        "PUT", ONE + "/headers", "v1.endpoint.update-headers", "Replace the headers of an endpoint",
        Right.ENDPOINTS, signing.set_headers, {204: None}, body=shapes.HeadersIn, tags=ENDPOINT
    ),
    Operation(
        "PATCH", ONE + "/headers", "v1.endpoint.patch-headers", "Change headers of an endpoint", Right.ENDPOINTS,
        signing.patch_headers, {204: None}, body=shapes.HeadersPatch, tags=ENDPOINT
    ),
    Operation(
        "GET", ONE + "/stats", "v1.endpoint.get-stats", "Get statistics of an endpoint", Right.LOOK, statistics.get,
        {200: statistics.StatisticsOut}, query=statistics.StatisticsSpan, tags=ENDPOINT
    ),
    Operation(
        "POST", ONE + "/send-example", "v1.endpoint.send-example", "Send an example to an endpoint", Right.ATTEMPT,
        sending.send_example, {200: message.MessageOut}, body=redo.ExampleIn, again=sending.example_again, tags=ENDPOINT
    ),
    Operation(
        "POST", ONE + "/test", "v1.endpoint.test", "Test an endpoint, and say what it answered", Right.ATTEMPT,
        sending.test, {200: redo.TestOut, 202: redo.TaskOut}, body=redo.TestIn, again=sending.again,
        afterwards=sending.tested, tags=ENDPOINT
    ),
    Operation(
        "POST", ONE + "/recover", "v1.endpoint.recover", "Send again what failed", Right.ATTEMPT, replaying.recover,
        {202: redo.BegunOut}, body=redo.SpanIn, again=replaying.again, tags=ENDPOINT
    ),
    Operation(
        "POST", ONE + "/replay-missing", "v1.endpoint.replay-missing", "Send what was missed", Right.ATTEMPT,
        replaying.replay_missing, {202: redo.BegunOut}, body=redo.SpanIn, again=replaying.again, tags=ENDPOINT
    ),
    Operation(
        "POST", ONE + "/bulk-replay", "v1.endpoint.bulk-replay", "Send again what is chosen", Right.ATTEMPT,
        replaying.bulk_replay, {202: redo.BegunOut}, body=redo.BulkReplayIn, again=replaying.again, tags=ENDPOINT
    ),
    Operation(
        "POST", ONE + "/pause", "v1.endpoint.pause", "Pause an endpoint", Right.TENANTS, operators.pause, {204: None},
        tags=ENDPOINT
    ),
    Operation(
        "POST", ONE + "/resume", "v1.endpoint.resume", "Resume an endpoint", Right.TENANTS, operators.resume,
        {204: None}, tags=ENDPOINT
    ),
    # Event types
    Operation(
        "GET", "/event-type", "v1.event-type.list", "List event types", Right.LOOK, event_types.all_of,
        {200: event_types.EventTypePage}, query=event_types.Listing, tags=TYPE, for_all=True
    ),
    Operation(
        "POST", "/event-type", "v1.event-type.create", "Create an event type", Right.TENANTS, event_types.create,
        {201: event_types.EventTypeOut}, body=event_types.EventTypeIn, upto=event_types.LARGEST,
        again=event_types.again, tags=TYPE
    ),
    Operation(
        "GET", "/event-type/{event_type_name}", "v1.event-type.get", "Get an event type", Right.LOOK,
        event_types.get, {200: event_types.EventTypeOut}, tags=TYPE, for_all=True
    ),
    Operation(
        "PUT", "/event-type/{event_type_name}", "v1.event-type.update", "Create or replace an event type",
        Right.TENANTS, event_types.upsert, {200: event_types.EventTypeOut, 201: event_types.EventTypeOut},
        body=event_types.EventTypeUpdate, upto=event_types.LARGEST, again=event_types.again, tags=TYPE
    ),
    Operation(
        "PATCH", "/event-type/{event_type_name}", "v1.event-type.patch", "Change an event type", Right.TENANTS,
        event_types.patch, {200: event_types.EventTypeOut}, body=event_types.EventTypePatch,
        upto=event_types.LARGEST, again=event_types.again, tags=TYPE
    ),
    Operation(
        "DELETE", "/event-type/{event_type_name}", "v1.event-type.delete", "Archive or delete an event type",
        Right.TENANTS, event_types.delete, {204: None}, query=event_types.Deletion, tags=TYPE
    ),
    # Messages
    Operation(
        "GET", "/app/{app_id}/msg", "v1.message.list", "List messages", Right.LOOK, reading.all_of,
        {200: message.MessagePage}, query=reading.Listing, tags=MESSAGE
    ),
    Operation(
        "POST", "/app/{app_id}/msg", "v1.message.create", "Create a message", Right.EMIT, creation.create,
        {202: message.MessageOut}, query=message.Content, body=message.MessageIn, again=creation.again,
        at_once=creation.create_at_once, upto=creation.AROUND, whole=False, tags=MESSAGE, may_be_new=True
    ),
    Operation(
        "GET", "/app/{app_id}/msg/{msg_id}", "v1.message.get", "Get a message", Right.LOOK, reading.get,
        {200: message.MessageOut}, query=message.Content, tags=MESSAGE
    ),
    Operation(
        "DELETE", "/app/{app_id}/msg/{msg_id}/content", "v1.message.expunge-content", "Erase a message", Right.ERASE,
        reading.expunge, {204: None}, tags=MESSAGE
    ),
    # Polling
    Operation(
        "GET", POLLER, "v1.message.poller.poll", "Poll an endpoint", Right.POLL, polling.poll, {200: poll.PolledOut},
        query=poll.Polling, waits=True, tags=MESSAGE
    ),
    Operation(
        "GET", CONSUMER, "v1.message.poller.consumer-poll", "Poll an endpoint as a consumer", Right.POLL,
        polling.consume, {200: poll.PolledOut}, query=poll.Consuming, waits=True, tags=MESSAGE
    ),
    Operation(
        "POST", CONSUMER + "/seek", "v1.message.poller.consumer-seek", "Let a consumer begin elsewhere", Right.POLL,
        polling.seek, {200: poll.SeekOut}, body=poll.SeekIn, again=polling.sought, tags=MESSAGE
    ),
    # Attempts
    Operation(
        "GET", "/app/{app_id}/attempt/endpoint/{endpoint_id}", "v1.message-attempt.list-by-endpoint",
        "List attempts of an endpoint", Right.LOOK, attempts.of_endpoint, {200: attempt.AttemptPage},
        query=attempt.AttemptListing, tags=ATTEMPT
    ),
    Operation(
        "GET", "/app/{app_id}/attempt/msg/{msg_id}", "v1.message-attempt.list-by-msg", "List attempts of a message",
        Right.LOOK, attempts.of_message, {200: attempt.AttemptPage}, query=attempt.AttemptListing, tags=ATTEMPT
    ),
    Operation(
        "GET", ONE + "/msg", "v1.message-attempt.list-attempted-messages", "List messages of an endpoint", Right.LOOK,
        deliveries.messages_of, {200: attempt.DeliveryPage}, query=attempt.DeliveryListing, tags=ATTEMPT
    ),
    Operation(
        "GET", MSG + "/endpoint", "v1.message-attempt.list-attempted-destinations", "List endpoints of a message",
        Right.LOOK, deliveries.endpoints_of, {200: attempt.DestinationPage}, query=attempt.DestinationListing,
        tags=ATTEMPT
    ),
    Operation(
        "GET", MSG + "/attempt/{attempt_id}", "v1.message-attempt.get", "Get an attempt", Right.LOOK, attempts.get,
        {200: attempt.AttemptOut}, tags=ATTEMPT
    ),
    Operation(
        "DELETE", MSG + "/attempt/{attempt_id}/content", "v1.message-attempt.expunge-content", "Erase an answer",
        Right.ERASE, attempts.expunge, {204: None}, tags=ATTEMPT
    ),
    Operation(
        "POST", MSG + "/endpoint/{endpoint_id}/resend", "v1.message-attempt.resend", "Resend a message", Right.ATTEMPT,
        sending.resend, {202: redo.ResentOut}, again=sending.resent, tags=ATTEMPT
    ),
    # What goes on, and what an operator asks
    Operation(
        "GET", "/background-task", "v1.background-task.list", "List tasks", Right.LOOK, tasks.all_of,
        {200: redo.TaskPage}, query=redo.TaskListing, tags=TASK
    ),
    Operation(
        "GET", "/background-task/{task_id}", "v1.background-task.get", "Get a task", Right.LOOK, tasks.get,
        {200: redo.TaskOut}, tags=TASK, for_all=True
    ),
    Operation(
        "GET", MSG + "/explain", "v1.message.explain", "Explain who gets a message", Right.TENANTS, operators.explain,
        {200: operators.Explanations}, tags=OPERATOR
    ),
    Operation(
        "GET", "/status", "v1.status.get", "How things stand", Right.LOOK, operators.status, {200: operators.Document},
        tags=OPERATOR
    ),
    Operation(
        "GET", "/audit", "v1.audit.list", "Who has done what", Right.LOOK, operators.audit, {200: operators.DeedPage},
        query=operators.Deeds, tags=OPERATOR
    ),
    Operation(
        "GET", "/auth" + POLLER + "/token", "v1.authentication.get-poller-token", "Get the token of a poller",
        Right.TOKENS, pollers.get, {200: poll.PollerTokenOut}, tags=("Authentication",)
    ),
    Operation(
        "POST", "/auth" + POLLER + "/token/rotate", "v1.authentication.rotate-poller-token",
        "Give a poller another token", Right.TOKENS, pollers.rotate, {201: poll.PollerTokenOut},
        body=poll.PollerTokenIn, again=pollers.again, tags=("Authentication",)
    ),
    # Tokens
    Operation(
        "POST", "/auth/app-portal-access/{app_id}", "v1.authentication.app-portal-access",
        "Let somebody into the portal", Right.TOKENS, portal.access, {200: portal.AccessOut}, body=portal.AccessIn,
        again=portal.again, tags=("Authentication",), may_be_new=True
    ),
    Operation(
        "POST", "/auth/app/{app_id}/expire-all", "v1.authentication.expire-all", "Let nobody into the portal any more",
        Right.TOKENS, operators.expire_all, {204: None}, body=operators.ExpiryIn, tags=("Authentication",)
    ),
    Operation(
        "GET", "/token", "v1.token.list", "List tokens", Right.TOKENS, tokens.all_of, {200: tokens.TokenList},
        query=tokens.Listing, tags=TOKEN
    ),
    Operation(
        "POST", "/token", "v1.token.create", "Create a token", Right.TOKENS, tokens.create, {201: tokens.TokenMade},
        body=tokens.TokenIn, again=tokens.again, tags=TOKEN
    ),
    Operation(
        "DELETE", "/token/{token_id}", "v1.token.revoke", "Revoke a token", Right.TOKENS, tokens.revoke,
        {204: None}, tags=TOKEN
    ),
)
# fmt: on


def document() -> bytes:
    """The OpenAPI document of all of them, as docs/openapi.json has it: `python -m webhookd.web.table`."""
    found = json.loads(openapi.document(OPERATIONS, BASE))
    return json.dumps(found, indent=1, sort_keys=True).encode() + b"\n"


if __name__ == "__main__":
    sys.stdout.buffer.write(document())
