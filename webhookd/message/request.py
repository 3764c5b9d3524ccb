"""From a delivery to the HTTP request that is sent: body, headers, signature."""

from webhookd.model import Delivery, Request


def build(delivery: Delivery, payload: bytes, timestamp: int, source: str, user_agent: str) -> Request:
    """The request of the delivery's next attempt.

    `timestamp` is in whole seconds of this machine's clock, which is what receivers compare with theirs. The
    signature covers the very bytes that are sent (Standard Webhooks). A header of the endpoint wins over one of the
    format.
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
    headers.update(body.headers)
    for name, value in endpoint.headers:
        headers[name.lower()] = value if isinstance(value, str) else value(event, payload)
    headers.update(endpoint.signature(endpoint.secrets, event.event_id, timestamp, body.content))
    return Request(endpoint.url, headers, body.content, endpoint.timeout, endpoint.tls, endpoint.grant)
