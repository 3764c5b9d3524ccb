"""The page and the schema are those of the models, and the schema describes what is shipped."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from webhookd.config.named import NAMED
from webhookd.config.reference import json_schema, page
from webhookd.config.schema import SECTIONS

REPOSITORY = Path(__file__).parents[3]
SHIPPED = [REPOSITORY / "config" / "webhookd.toml", *sorted((REPOSITORY / "config").glob("*/*.toml"))]


def test_the_page_is_up_to_date() -> None:
    written = (REPOSITORY / "docs" / "configuration.md").read_text()
    assert written == page(), "run: python -m webhookd.config.reference > docs/configuration.md"


@pytest.mark.parametrize("model", [*SECTIONS.values(), *NAMED.values()])
def test_every_key_is_described(model: Any) -> None:
    assert all(field.description for field in model.model_fields.values())
    assert set(json_schema()["$defs"][model.__name__]["properties"]) == set(model.model_fields)


def test_the_schema_is_written_as_toml_is() -> None:
    schema = json_schema()
    delivery = schema["$defs"]["Delivery"]["properties"]
    assert delivery["timeout"]["default"] == "20s"
    assert re.search(delivery["timeout"]["pattern"], "500ms")
    assert not re.search(delivery["timeout"]["pattern"], "20 sec")
    assert delivery["max_payload"]["default"] == "1MiB"
    endpoint = schema["$defs"]["EndpointTable"]
    assert (endpoint["required"], endpoint["properties"]["events"]["minItems"]) == (["events"], 1)
    assert endpoint["properties"]["timeout"]["pattern"] == delivery["timeout"]["pattern"]
    assert endpoint["additionalProperties"] is False
    assert "null" not in json.dumps(schema)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_the_schema_accepts_what_is_shipped(file: Path) -> None:
    schema = json_schema()
    _accept(tomllib.loads(file.read_text()), schema, schema["$defs"])


def _accept(value: object, schema: dict[str, Any], models: dict[str, Any]) -> None:
    """As much of JSON Schema as the schema has."""
    if "$ref" in schema:
        schema = models[schema["$ref"].rpartition("/")[2]]
    if isinstance(value, dict):
        assert schema.get("type", "object") == "object"
        assert set(schema.get("required", ())) <= value.keys()
        for key, each in value.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties", {}))
            assert inner is not False, key
            _accept(each, inner, models)
    elif isinstance(value, list) and "items" in schema:
        for each in value:
            _accept(each, schema["items"], models)
    elif isinstance(value, str):
        assert re.search(schema.get("pattern", ""), value)
        assert value in schema.get("enum", [value])
