"""The endpoint of tests that want any."""

from webhookd.message.formats import FORMATS
from webhookd.message.signing import SCHEMES
from webhookd.model import Endpoint, RetryPolicy

HOOK = Endpoint(
    id=1,
    tenant="",
    name="hook",
    url="https://hooks.example.com/",
    events=("*",),
    format=FORMATS["raw"],
    signature=SCHEMES["none"],
    secrets=(),
    retry=RetryPolicy(),
    timeout=20.0,
    max_in_flight=10,
)
