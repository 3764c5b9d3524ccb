"""The OpenAPI 3.1 document of the operations."""

from collections.abc import Iterable
from typing import Any, Final

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from webhookd import __version__
from webhookd.policy.access import CAPABILITIES, ROLES
from webhookd.web.operation import Operation
from webhookd.web.problem import PROBLEM_TYPE

_REFERENCE: Final = "#/components/schemas/{model}"
_PROBLEM: Final = {
    "type": "object",
    "title": "Problem",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "A word for programs."},
        "detail": {"type": "string", "description": "A sentence for people."},
    },
}
_WRONG: Final = {
    "type": "object",
    "title": "Wrong",
    "required": ["detail"],
    "properties": {
        "detail": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["loc", "msg", "type"],
                "properties": {
                    "loc": {"type": "array", "items": {"type": "string"}},
                    **{key: {"type": "string"} for key in ("msg", "type")},
                },
            },
        }
    },
}
_ERRORS: Final = {
    400: "It cannot be read, or the database does not take it.",
    401: "Nobody said who asks, or the token does not count.",
    403: "The token may not do it.",
    404: "There is no such thing, or the token does not see it.",
    405: "The path has other methods.",
    408: "The body did not come in time.",
    409: "It does not go with what is there.",
    413: "The body is too large.",
    421: "The API is reached by another host.",
    429: "Too much of it is under way; try again after the seconds of Retry-After.",
    500: "A bug.",
    503: "The database is away; try again after the seconds of Retry-After.",
}


def document(operations: Iterable[Operation], base: str) -> bytes:
    """The document as JSON; `base` is the path that all others begin with."""
    operations = list(operations)
    names, schemas = _schemas(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, names)
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {"title": "webhookd", "version": __version__, "license": {"name": "MIT", "identifier": "MIT"}},
            "servers": [{"url": base}],
            "security": [{"token": []}],
            "paths": paths,
            "components": {
                "schemas": {**schemas, "Problem": _PROBLEM, "Wrong": _WRONG},
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


def _schemas(operations: Iterable[Operation]) -> tuple[dict[tuple[type[BaseModel], str], Any], dict[str, Any]]:
    """How each model is referred to, and what all of them are."""
    wanted: dict[tuple[type[BaseModel], Any], None] = {}
    for operation in operations:
        if operation.body is not None:
            wanted[operation.body, "validation"] = None
        for model in operation.answers.values():
            if model is not None:
                wanted[model, "serialization"] = None
    references, definitions = models_json_schema(list(wanted), ref_template=_REFERENCE)
    return dict[Any, Any](references), dict(definitions.get("$defs", {}))


def _operation(operation: Operation, names: dict[tuple[type[BaseModel], str], Any]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": list(operation.tags),
        "parameters": [*_of_path(operation), *_of_query(operation)],
        "responses": {str(status): _answer(model, names) for status, model in operation.answers.items()},
    }
    if operation.writes and operation.method == "POST":
        made["parameters"].append(
            {
                "name": "idempotency-key",
                "in": "header",
                "schema": {"type": "string", "minLength": 1, "maxLength": 256},
                "description": "The same request with the same key is answered the same within 12 hours.",
            }
        )
    if operation.body is not None:
        schema = names[operation.body, "validation"]
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if operation.right is None:
        made["security"] = []
    else:
        roles = [role for role, rights in ROLES.items() if operation.right in rights]
        capability = next((name for name, right in CAPABILITIES.items() if right is operation.right), None)
        made["x-roles"] = roles
        if capability is not None and (operation.of_tenant or operation.for_all):
            made["x-capability"] = capability
    for status, text in _ERRORS.items():
        content = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
        made["responses"].setdefault(str(status), {"description": text, "content": content})
    wrong = {"application/json": {"schema": {"$ref": "#/components/schemas/Wrong"}}}
    made["responses"]["422"] = {"description": "Something in it is not as it should be.", "content": wrong}
    return made


def _of_path(operation: Operation) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _of_query(operation: Operation) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    properties = operation.query.model_json_schema()["properties"]
    return [
        {
            "name": name,
            "in": "query",
            "schema": {key: value for key, value in schema.items() if key not in ("title", "description")},
            **({"description": schema["description"]} if "description" in schema else {}),
        }
        for name, schema in properties.items()
    ]


def _answer(model: type[BaseModel] | None, names: dict[tuple[type[BaseModel], str], Any]) -> dict[str, Any]:
    if model is None:
        return {"description": "Done."}
    return {"description": "Done.", "content": {"application/json": {"schema": names[model, "serialization"]}}}
