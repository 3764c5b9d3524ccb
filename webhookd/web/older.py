"""Client libraries that take no key which they do not know: that of Go was made so until its version 1.57."""

import re
from collections.abc import Mapping
from typing import Any, Final

_STRICT: Final = re.compile(r"svix-libs/1\.([0-9]{1,4})\.[0-9]+/go")
_UNTIL: Final = 57
_UNKNOWN: Final = frozenset(
    {
        *("throttleRate", "eventTypes", "featureFlags", "deliverAt", "statusText", "canceled"),  # names that came later
        *("readOnly", "signature", "format", "filter", "timeout", "retry", "webhookd"),  # ours
        *("trigger", "error", "attempt", "state", "reason", "failedAttempts", "latency", "taskId", "missed"),
    }
)


def is_strict(user_agent: str) -> bool:
    """True for one that would break."""
    found = _STRICT.match(user_agent)
    return found is not None and int(found[1]) < _UNTIL


def known(answer: Mapping[str, Any]) -> dict[str, Any]:
    """An answer, or a page of them, without what such a one does not know."""
    shown = {key: value for key, value in answer.items() if key not in _UNKNOWN}
    if "task" in shown:
        shown.pop("updatedAt", None)
    if isinstance(data := shown.get("data"), list):
        shown["data"] = [known(each) if isinstance(each, Mapping) else each for each in data]
    return shown
