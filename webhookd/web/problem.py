"""What is answered where something is wrong: a problem document (RFC 9457), or the list of a 422.

Client libraries parse every body as JSON, and a 422 as a list of what is wrong with which part of the request.
"""

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)

PROBLEM_TYPE: Final = "application/problem+json"
MOST_TOLD: Final = 100  # mistakes of one request


class Problem(Exception):
    """The request is answered with this status; `detail` is a sentence for a person, `code` a word for a program."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = {"content-type": PROBLEM_TYPE, **(headers or {})}

    @property
    def body(self) -> bytes:
        """The document."""
        title = HTTPStatus(self.status).phrase
        return orjson.dumps(
            {"type": "about:blank", "title": title, "status": self.status, "code": self.code, "detail": self.detail}
        )


class Wrong(NamedTuple):
    """What is wrong with a part of the request, which `loc` leads to."""

    loc: tuple[str, ...]
    msg: str
    type: str = "value_error"


class Invalid(Problem):
    """422, with all that is wrong."""

    def __init__(self, wrong: Iterable[Wrong]) -> None:
        self.wrong = list(wrong)
        super().__init__(422, "validation_error", "; ".join(each.msg for each in self.wrong))
        self.headers["content-type"] = "application/json"

    @property
    def body(self) -> bytes:
        """The list."""
        return orjson.dumps({"detail": [each._asdict() for each in self.wrong]})


def invalid(where: str, error: ValidationError) -> Invalid:
    """What pydantic found wrong in a part of the request: its path, query or body. Nothing of the values is shown."""
    return Invalid(
        Wrong((where, *map(str, each["loc"])), _sentence(each), each["type"])
        for each in error.errors(include_url=False, include_input=False, include_context=True)[:MOST_TOLD]
    )


def _sentence(error: Any) -> str:
    message = str(error["msg"])
    return message.removeprefix("Value error, ")


def parsed(model: type[M], raw: bytes) -> M:
    """The body as the model has it. Invalid when it is none."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise invalid("body", error) from None


def not_found(what: str) -> Problem:
    """404: there is none, or none that this caller sees."""
    return Problem(404, "not_found", f"There is no such {what}, or you may not see it.")


def conflict(detail: str, code: str = "conflict") -> Problem:
    """409: it does not go with what is there."""
    return Problem(409, code, detail)
