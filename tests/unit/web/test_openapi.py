"""The document says what the table says."""

import json
from pathlib import Path

import pytest

from webhookd.web import openapi
from webhookd.web.table import BASE, OPERATIONS

DOCUMENT = json.loads(openapi.document(OPERATIONS, BASE))
OTHERS = Path(__file__).parents[4] / "shared" / "reference" / "svix" / "openapi.json"


def test_each_operation_is_in_it() -> None:
    found = {
        (method.upper(), path, operation["operationId"])
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
    }
    assert found == {(each.method, each.path, each.id) for each in OPERATIONS}


def test_every_reference_leads_somewhere() -> None:
    names = set(DOCUMENT["components"]["schemas"])

    def references(value: object) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    assert {each.removeprefix("#/components/schemas/") for each in references(DOCUMENT)} <= names


def test_names_are_those_of_the_wire() -> None:
    assert {"eventType", "payload", "eventId", "deliverAt"} <= set(
        DOCUMENT["components"]["schemas"]["MessageIn"]["properties"]
    )


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each.path.startswith(("/app", "/event-type"))])
def test_a_path_of_ours_is_one_of_theirs(operation: object) -> None:
    """Where the reference is at hand, which is no part of the project."""
    if not OTHERS.exists():
        return
    theirs = json.loads(OTHERS.read_text())["paths"]
    found = theirs[BASE + operation.path]  # type: ignore[attr-defined]
    assert operation.method.lower() in found  # type: ignore[attr-defined]
