"""Pages of lists by key: an iterator is the last thing of a page, or the first behind a tilde to go back."""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar

from webhookd.web.problem import Invalid, Wrong
from webhookd.web.shapes import Listed

T = TypeVar("T")
_KEY: Final = re.compile(r"~?[a-zA-Z0-9\-_.]{1,260}")


class Place(NamedTuple):
    """Where a page begins: behind this key, or at the end; `back` when it is the one before."""

    after: str | None
    back: bool


class Iterators(NamedTuple):
    """What leads from a page to the next and to the one before; `done` when there is no next."""

    iterator: str | None
    before: str | None
    done: bool


def place(query: Listed) -> Place:
    """Where the page begins. Invalid when the iterator is none that we gave."""
    if query.iterator is None:
        return Place(None, back=False)
    if not _KEY.fullmatch(query.iterator):
        raise bad_iterator()
    back = query.iterator.startswith("~")
    return Place(query.iterator[1:] if back else query.iterator, back)


def bad_iterator() -> Invalid:
    """422: it did not come from us."""
    return Invalid([Wrong(("query", "iterator"), "is none that a page of this list gave", "invalid_iterator")])


def page(found: Sequence[T], limit: int, at: Place) -> tuple[list[T], bool]:
    """What is on the page, in the order of the list, of what was found: up to one more. True when there is more."""
    rows = list(found[:limit])
    if at.back:
        rows.reverse()
    return rows, len(found) > limit


def iterators(keys: Sequence[str], more: bool, at: Place, edge: str | None = None) -> Iterators:
    """For a page of these keys. `more`: in the direction in which it was looked for, behind `edge` or the last key."""
    first, last = (keys[0], keys[-1]) if keys else (None, None)
    if at.back:  # there is a next: the one that it was come from
        before = edge or first
        return Iterators(last or at.after, f"~{before}" if before and more else None, done=False)
    after = edge if more and edge else last
    return Iterators(after or at.after, f"~{first}" if first and at.after else None, done=not more)
