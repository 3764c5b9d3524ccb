"""Which operation a method and a path mean."""

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote

from webhookd.web.operation import Operation
from webhookd.web.problem import Problem

MOST_SEGMENTS: Final = 20
FOUND_MOST: Final = 1_000  # paths that are remembered
_UNSTORABLE: Final = re.compile(r"[\x00\ud800-\udfff]")


class _Node:
    """A place in the tree of paths: what a further segment leads to, and what is asked for here by method."""

    __slots__ = ("by_method", "by_name", "parameter")

    def __init__(self) -> None:
        self.by_name: dict[str, _Node] = {}
        self.parameter: _Node | None = None  # any segment that has no name here
        self.by_method: dict[str, Operation] = {}


class Router:
    """Finds operations by their paths, with or without a slash at the end."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._root = _Node()
        self._found: dict[tuple[str, str], tuple[Operation, dict[str, str]]] = {}
        for operation in operations:
            node = self._root
            for segment in operation.path.strip("/").split("/"):
                if segment.startswith("{"):
                    node.parameter = node.parameter or _Node()
                    node = node.parameter
                else:
                    node = node.by_name.setdefault(segment, _Node())
            if operation.method in node.by_method:
                raise ValueError(f"{operation.method} {operation.path} stands twice in the table")
            node.by_method[operation.method] = operation
            if operation.method == "GET":
                node.by_method["HEAD"] = operation  # the same without a body (RFC 9110, 9.3.2)

    def find(self, method: str, path: str) -> tuple[Operation, dict[str, str]]:
        """The operation and the parts of the path by their names. Problem 404 or 405 where there is none.

        `path` is as it stands in the request, with its escapes.
        """
        if (known := self._found.get((method, path))) is not None:
            return known
        node, segments = self._find(path)
        operation = node.by_method.get(method)
        if operation is None:
            allowed = ", ".join(sorted({*node.by_method, "OPTIONS"}))
            raise Problem(405, "method_not_allowed", f"Here you can use {allowed}.", {"allow": allowed})
        names = (part[1:-1] for part in operation.path.split("/") if part.startswith("{"))
        if len(self._found) >= FOUND_MOST:
            self._found.clear()
        found = self._found[method, path] = operation, dict(zip(names, segments, strict=True))
        return found

    def methods(self, path: str) -> list[str]:
        """What can be asked for at this path. Problem 404 where nothing can."""
        return sorted(self._find(path)[0].by_method)

    def _find(self, path: str) -> tuple[_Node, list[str]]:
        node, values = self._root, list[str]()
        for segment in _segments(path):
            if (named := node.by_name.get(segment)) is not None:
                node = named
            elif node.parameter is not None:
                node = node.parameter
                values.append(segment)
            else:
                raise _nowhere()
        if not node.by_method:
            raise _nowhere()
        return node, values


def _segments(path: str) -> list[str]:
    parts = path.strip("/").split("/")
    if len(parts) > MOST_SEGMENTS:
        raise _nowhere()
    if "%" not in path and path.isascii() and "\0" not in path:
        return parts
    try:
        found = [unquote(part, errors="strict") for part in parts]
    except UnicodeDecodeError:
        raise _nowhere() from None
    if any(_UNSTORABLE.search(part) for part in found):  # which no id has, and Postgres does not take
        raise _nowhere()
    return found


def _nowhere() -> Problem:
    return Problem(404, "not_found", "There is nothing at this path; /api/v1/openapi.json has all that there is.")
