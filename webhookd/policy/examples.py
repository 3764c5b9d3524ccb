"""Which example an endpoint is sent to test it, and what is made up where nobody has given one."""

from collections.abc import Iterable, Sequence

from webhookd.policy.matching import matches_type


def subscribed(patterns: Sequence[str], types: Iterable[str]) -> list[str]:
    """Of these types those that fit one of the patterns."""
    return [type_ for type_ in types if any(matches_type(pattern, type_) for pattern in patterns)]


def stand_in(patterns: Sequence[str]) -> str:
    """A type that fits the first pattern, for who knows of none."""
    first = patterns[0] if patterns else "*"
    if first == "*":
        return "webhookd.test"
    return first.removesuffix("*") + "test" if first.endswith("*") else first


def made_up(type_: str, where: str) -> dict[str, object]:
    """A payload for a type that has no example there."""
    return {"test": True, "message": f"This was made up by `webhookd test`: {where} has no example of {type_}."}
