"""What a new configuration changes about the endpoints, and which change is too large to be meant."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from webhookd.model import label

Specs = Mapping[tuple[str, str], Mapping[str, Any]]  # (tenant, name) -> what was written, without secrets

ACCEPT: Final = "webhookd reload --accept-removals"

_FEW: Final = 5  # that many may always go
_SMALL: Final = 0.01  # and that share of all
_SHOWN: Final = 5


class Difference(NamedTuple):
    """Endpoints by label, `tenant/name`, in order."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


def difference(before: Specs, after: Specs) -> Difference:
    """What has to be done to the endpoints of `before` to have those of `after`; a renamed one is removed and added."""
    return Difference(
        _labels(after.keys() - before.keys()),
        _labels(before.keys() - after.keys()),
        _labels(key for key in before.keys() & after.keys() if before[key] != after[key]),
    )


def refusal(difference: Difference, before: int, command: str = ACCEPT) -> str | None:
    """Why a reload that finds `before` endpoints must not do this without an operator's command; or None."""
    removed = difference.removed
    if len(removed) <= _FEW or len(removed) <= before * _SMALL:
        return None
    more = f" and {len(removed) - _SHOWN} more" if len(removed) > _SHOWN else ""
    return (
        f"{len(removed)} of {before} endpoints are gone from the files ({', '.join(removed[:_SHOWN])}{more}), and all "
        f"of them stay as they were; if that is meant, run `{command}`"
    )


def _labels(keys: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(label(*key) for key in sorted(keys))
