"""The document says what the table says."""

import json
from pathlib import Path

from webhookd.web import openapi, table
from webhookd.web.table import BASE, OPERATIONS

DOCUMENT = json.loads(openapi.document(OPERATIONS, BASE))
OURS = {"v1.endpoint.test", "v1.endpoint.pause", "v1.endpoint.resume", "v1.message.explain"}  # which they do not have
NEWER = {"v1.endpoint.rotate-secret": {200}}  # as client libraries of now want it, and this document has not
OTHERS = Path(__file__).parents[2] / "vectors" / "svix.json"  # shapes that others made, without their words


def test_what_is_published_is_what_is_served() -> None:
    published = Path(__file__).parents[3] / "docs" / "openapi.json"
    assert published.read_bytes() == table.document(), "run `python -m webhookd.web.table > docs/openapi.json`"
    assert json.loads(published.read_text()) == DOCUMENT


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


def test_what_we_answer_is_what_they_document() -> None:
    theirs = json.loads(OTHERS.read_text())
    roots = ("/app", "/auth", "/event-type", "/health", "/background-task")
    for operation in (each for each in OPERATIONS if each.path.startswith(roots) and each.id not in OURS):
        found = theirs["paths"][BASE + operation.path][operation.method.lower()]
        good = {int(status) for status in found["responses"] if status.startswith("2")}
        assert set(operation.answers) == NEWER.get(operation.id, good) or not good, operation.id
        for status, model in operation.answers.items() if good and operation.id not in NEWER else ():
            content = found["responses"][str(status)].get("content", {}).get("application/json")
            assert (model is None) == (content is None), operation.id
            if model is not None:
                wanted = theirs["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
                ours = {field.alias or name for name, field in model.model_fields.items()}
                assert set(wanted.get("required", ())) <= ours, operation.id
        parameters = {each["name"] for each in found.get("parameters", ()) if each["in"] == "query"}
        assert parameters <= (set(operation.query.model_fields) if operation.query else set()), operation.id
        if operation.body is not None:
            name = found["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            taken = {field.alias or name for name, field in operation.body.model_fields.items()}
            assert set(theirs["components"]["schemas"][name]["properties"]) <= taken, operation.id
