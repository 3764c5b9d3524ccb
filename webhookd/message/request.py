"""From a delivery to the HTTP request that is sent: body, headers, signature."""

from typing import Final

from webhookd.exchange import Request
from webhookd.message.trace import PARENT, STATE, headers_of, trace_of
from webhookd.model import Delivery, Endpoint

HIDDEN: Final = "…"
SHOWN: Final = 16 * 1024  # bytes of a body that people are shown


def build(delivery: Delivery, payload: bytes, timestamp: int, source: str, user_agent: str) -> Request:
    """The request of the delivery's next attempt.

    `timestamp` is in whole seconds of this machine's clock, which is what receivers compare with theirs. The
    signature covers the very bytes that are sent (Standard Webhooks). A header of the endpoint wins over one of the
    format. An event whose metadata names a trace has its request in it, as a span of its own.
    """
    event, endpoint = delivery.event, delivery.endpoint
    body = endpoint.format(event, payload, source)
    headers = {
        "content-type": body.content_type,
        "user-agent": user_agent,
        "accept-encoding": "identity",  # nothing a receiver says is ever unpacked
        "webhook-id": event.event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-attempt": str(delivery.attempts + 1),
    }
    if delivery.trigger is not None:
        headers["webhook-trigger"] = delivery.trigger
    trace = trace_of(event.metadata)
    ours = {} if trace is None else headers_of(trace)
    headers.update(ours)
    headers.update(body.headers)
    for name, value in endpoint.headers:
        headers[name.lower()] = value if isinstance(value, str) else value(event, payload)
    if trace is not None and headers[PARENT] != ours[PARENT]:  # a header of the format or of the endpoint
        trace = None
        if headers.get(STATE) == ours.get(STATE):
            headers.pop(STATE, None)
    headers.update(endpoint.signature(endpoint.secrets, headers, timestamp, body.content))
    return Request(
        endpoint.url,
        headers,
        body.content,
        endpoint.timeout,
        endpoint.tls,
        endpoint.grant,
        by_api=bool(endpoint.sealed_by),
        trace=trace,
    )


def shown(request: Request, endpoint: Endpoint) -> dict[str, object]:
    """The request as people may see it, as JSON has it: without what the endpoint's own headers and its query say.

    Nor is a header shown that has a secret in it, as an API key would be.
    """
    own = {name.lower() for name, _ in endpoint.headers}
    headers = {
        name: HIDDEN if name in own or any(key.raw in value.encode() for key in endpoint.secrets) else value
        for name, value in request.headers.items()
    }
    body = request.content[:SHOWN].decode(errors="replace")
    return {"method": "POST", "url": without_query(request.url), "headers": headers, "body": body}


def without_query(url: str) -> str:
    """The URL without the parts that carry tokens: user, query and fragment."""
    url = url.partition("#")[0].partition("?")[0]
    scheme, separator, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{separator}{place.rpartition('@')[2]}{slash}{path}"
