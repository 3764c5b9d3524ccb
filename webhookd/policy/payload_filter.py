"""Filters on what a payload says, by dotted path; evaluated when it is at hand, and looked into once for all.

A path is a member's name, or names with dots between them that lead down; of a list, any item. What is compared keeps
its kind: a number is like a number, a text like a text.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from operator import ge, gt, le, lt
from types import MappingProxyType
from typing import Any, Final

import orjson

from webhookd.model import Condition, Scalar

MOST_BYTES: Final = 1024 * 1024  # of a payload that is looked into; it takes some milliseconds
UNSEEN: Final = f"the payload is larger than {MOST_BYTES // 1024} KiB, or too deep, so that it passes no filter"
_DIGITS: Final = 400  # from which on a whole number is beyond a float
MOST_FOUND: Final = 1_000  # values of a path, in lists
COMPARED: Final[Mapping[str, Callable[[Any, Any], bool]]] = MappingProxyType({"gt": gt, "gte": ge, "lt": lt, "lte": le})

# What a path leads to: scalars, and True where there is anything.
Found = Mapping[str, tuple[bool, Sequence[Scalar | None]]]


def compiled(written: Mapping[str, object]) -> tuple[Condition, ...]:
    """The conditions of a table, by path, all of which have to hold. Raises ValueError, one sentence, for others."""
    if not written:
        raise ValueError("wants at least one path")
    return tuple(_condition(path, said) for path, said in written.items())


def spelled(conditions: Iterable[Condition]) -> dict[str, Any]:
    """The same as JSON has it, of which `compiled` makes the same again."""
    return {
        path: {
            **({} if among is None else {"in": list(among)}),
            **({} if exists is None else {"exists": exists}),
            **dict(bounds),
        }
        for path, among, exists, bounds in conditions
    }


def look_up(payload: bytes, paths: Collection[str]) -> Found | None:
    """What these paths lead to, or None where the payload is too large or too deep to be looked into."""
    if len(payload) > MOST_BYTES:
        return None
    try:
        root = _parsed(payload)
    except (ValueError, RecursionError):  # deeper than anybody goes, as Postgres has checked the syntax
        return None
    return {path: _at(root, path) for path in paths}


def passes(conditions: Iterable[Condition], found: Found | None) -> bool:
    """True when all of them hold of what their paths lead to."""
    return found is not None and all(_holds(condition, *found[condition.path]) for condition in conditions)


def weight(found: Found) -> int:
    """The bytes of memory that these values take, about."""
    return sum(64 + (len(value) if isinstance(value, str) else 0) for _, values in found.values() for value in values)


def mistake(conditions: Iterable[Condition], payload: bytes) -> str | None:
    """What keeps a payload from passing, in a sentence, or None when it does."""
    conditions = tuple(conditions)
    found = look_up(payload, [condition.path for condition in conditions])
    if found is None:
        return UNSEEN
    for condition in conditions:
        there, values = found[condition.path]
        if not _holds(condition, there, values):
            shown = ", ".join(map(json.dumps, values[:3])) if values else "there" if there else "missing"
            wants = json.dumps(spelled([condition])[condition.path])
            return f"{json.dumps(condition.path)} of the payload is {shown}, it wants {wants}"
    return None


def _parsed(payload: bytes) -> object:
    try:
        return orjson.loads(payload)
    except ValueError:  # halves of a surrogate pair, and numbers beyond a float, pass Postgres
        return json.loads(payload, parse_int=_whole)


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < _DIGITS else float(digits)


def _condition(path: str, said: object) -> Condition:
    if not path or len(path) > 255 or "\0" in path or any(not name for name in path.split(".")):
        raise ValueError(f"{json.dumps(path[:80])} is no path; write names with dots between them")
    if not isinstance(said, Mapping):
        return Condition(path, _among(path, said), None, ())
    among, exists, bounds = None, None, []
    if not said:
        raise ValueError(f"{json.dumps(path)} wants a value, or gt, gte, lt, lte, in or exists")
    for word, value in said.items():
        if word == "in":
            among = _among(path, value)
        elif word == "exists" and isinstance(value, bool):
            exists = value
        elif word in COMPARED and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            bounds.append((word, _scalar(path, value)))
        else:
            known = "gt, gte, lt and lte with a number or a text, in with a list, exists with true or false"
            raise ValueError(f"{json.dumps(path)} has {json.dumps(word)} that means nothing there; known are {known}")
    return Condition(path, among, exists, tuple(bounds))


def _among(path: str, value: object) -> tuple[Scalar, ...]:
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values:
        raise ValueError(f"{json.dumps(path)} wants at least one value, as nothing would pass")
    return tuple(_scalar(path, each) for each in values)


def _scalar(path: str, value: object) -> Scalar:
    if isinstance(value, str) and "\0" not in value:
        return value
    if isinstance(value, int) and not -(2**63) <= value < 2**64:  # beyond it, payloads have the nearest float
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{json.dumps(path)} has a number that is too large") from None
    if isinstance(value, (bool, int)) or (isinstance(value, float) and abs(value) != float("inf") and value == value):
        return value
    raise ValueError(f"{json.dumps(path)} wants a text, a number, true or false, or a list of them")


def _at(root: object, path: str) -> tuple[bool, Sequence[Scalar | None]]:
    """Whether there is something, and the scalars of it."""
    if isinstance(root, dict) and path in root:
        nodes = [root[path]]
    else:
        nodes = [root]
        for name in path.split("."):
            nodes = [node[name] for node in _items(nodes) if isinstance(node, dict) and name in node]
    return bool(nodes), [node for node in _items(nodes) if not isinstance(node, (dict, list))]


def _items(nodes: Sequence[Any]) -> Iterator[Any]:
    """These, and instead of lists what is in them: of all no more than the first thousand."""
    left = MOST_FOUND
    for node in nodes:
        for each in node[:left] if isinstance(node, list) else (node,):
            yield each
            left -= 1
        if left <= 0:
            return


def _holds(condition: Condition, there: bool, values: Sequence[Scalar | None]) -> bool:
    if condition.exists is not None and condition.exists is not there:
        return False
    if condition.among is None and not condition.bounds:
        return True
    return any(_fits(condition, value) for value in values)


def _fits(condition: Condition, value: Scalar | None) -> bool:
    if condition.among is not None and not any(_alike(value, each) and value == each for each in condition.among):
        return False
    return all(_alike(value, bound) and COMPARED[word](value, bound) for word, bound in condition.bounds)


def _alike(one: object, other: object) -> bool:
    return _kind(one) is _kind(other)


def _kind(value: object) -> type:
    return float if type(value) is int else type(value)
