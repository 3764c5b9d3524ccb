"""Everything that our document allows, and that of Svix for what is here, by schemathesis. `.ci/run` fetches it."""

import json
import os
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from aiohttp import ClientSession

from tests.integration.conftest import Sql
from tests.integration.web.conftest import Client, a_token
from tests.programs import said_by
from webhookd.config.schema import Api as Settings
from webhookd.message.sealing import Keyring, SealingKey, new_key, parse_key
from webhookd.policy.access import CAPABILITIES, EVERYBODYS, ROLES
from webhookd.store.database import Database
from webhookd.store.tokens import hash_of
from webhookd.web import openapi
from webhookd.web.api import Api
from webhookd.web.operation import Around
from webhookd.web.redoing import sending
from webhookd.web.server import serve
from webhookd.web.table import BASE, OPERATIONS

PROGRAM: Final = Path(os.environ.get("WEBHOOKD_CLIENTS", "/nowhere")) / "schemathesis" / "bin" / "schemathesis"
OTHERS: Final = Path(__file__).parents[2] / "vectors" / "svix.json"
CHECKS: Final = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
METHODS: Final = ("get", "post", "put", "patch", "delete")
# What of the parts of paths is to be there, so that more is asked for than what is not.
THERE: Final = {
    "app_id": "default", "endpoint_id": "mine", "event_type_name": "order.created", "msg_id": "mine",
    "consumer_id": "one",
}  # fmt: skip
TRIED: Final = """INSERT INTO webhookd.attempt (outbox_id, endpoint_id, attempt, ok, code, ms, response)
 SELECT o.id, e.id, 1, false, 500, 3, 'no' FROM webhookd.outbox o, webhookd.endpoint e"""

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="no schemathesis: .ci/run fetches it")


class Scene(NamedTuple):
    url: str
    tokens: Mapping[str, str]  # by role
    folder: Path
    there: Mapping[str, str]


@pytest.fixture
async def scene(dsn: str, sql: Sql, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    """An API with a key to seal with, and something of each kind."""
    settings = Settings()
    monkeypatch.setattr(sending, "TEST_SECONDS", 0.1)  # nobody sends here
    # Of a file, since what asks for everything also revokes tokens that it has seen.
    tokens = {role: f"of-a-file-{role}-0000000000" for role in EVERYBODYS}
    object.__setattr__(settings, "tokens_file", {hash_of(token): role for role, token in tokens.items()})
    tokens["poll"] = await a_token(dsn, "poll", endpoint=1)
    tokens["portal"] = await a_token(dsn, "portal", "app_" + "0" * 27, tuple(CAPABILITIES))
    keyring = Keyring([SealingKey("one", parse_key(new_key()))])
    async with (
        Database(dsn, size=4) as database,
        serve(Api(database, Around(settings, keyring=keyring)).answer, "127.0.0.1:0", {}, "[api]") as url,
        ClientSession() as session,
    ):
        admin = Client(session, url, tokens["admin"])
        await admin("PUT", "/app/default/endpoint/mine", {"url": "https://hooks.example.com/"})
        await admin("POST", "/event-type", {"name": "order.created", "description": ""})
        await admin("POST", "/app/default/msg", {"eventType": "order.created", "payload": {}, "eventId": "mine"})
        await sql.execute(TRIED)
        await sql.execute("INSERT INTO webhookd.daemon (id, beat_at) VALUES (1, now() + interval '1 hour')")
        (tried,) = (await admin("GET", "/app/default/attempt/msg/mine")).body["data"]
        task = await admin("POST", "/app/default/endpoint/mine/recover", {"since": "2020-01-01T00:00:00Z"})
        there = {**THERE, "attempt_id": tried["id"], "task_id": task.body["id"]}
        yield Scene(url, tokens, tmp_path, there)


async def asked(scene: Scene, document: Mapping[str, Any], url: str, token: str, examples: int) -> str:
    """What it says of an API that is to be as this document has it; it asks so many times for each thing."""
    file, config = scene.folder / "document.json", scene.folder / "schemathesis.toml"
    file.write_text(json.dumps(document))
    config.write_text("[parameters]\n" + "".join(f'"path.{part}" = "{id_}"\n' for part, id_ in scene.there.items()))
    code, text = await said_by(
        PROGRAM, "--config-file", config, "run", file, "--url", url, "-H", f"Authorization: Bearer {token}",
        "--checks", CHECKS, "-n", str(examples), "--phases", "coverage,fuzzing", "--generation-deterministic",
        "--continue-on-failure", "--no-color", "--warnings", "off", cwd=scene.folder,
    )  # fmt: skip
    assert code == 0, text
    tested = re.search(r"Tested: +([0-9]+)", text)
    assert tested is not None
    assert int(tested[1]) == sum(method in METHODS for path in document["paths"].values() for method in path), text
    return text


@pytest.mark.timeout(300)
@pytest.mark.parametrize("role", ROLES)
async def test_it_does_what_its_document_says(scene: Scene, role: str) -> None:
    document = json.loads(openapi.document(OPERATIONS, BASE))
    await asked(scene, document, scene.url + BASE, scene.tokens[role], 8 if role == "admin" else 2)


def _errors_are_problems(operation: dict[str, Any]) -> None:
    for status, answer in operation["responses"].items():
        if status.startswith("4") and status != "422":
            answer["content"] = {"application/problem+json": {"schema": {}}}


def _more_is_refused(operation: dict[str, Any]) -> None:
    for status in ("400", "405", "408", "413", "421"):
        operation["responses"].setdefault(
            status, {"description": "", "content": {"application/problem+json": {"schema": {}}}}
        )


def _what_is_forgotten_is_answered(operation: dict[str, Any]) -> None:
    if not any(status.startswith("2") for status in operation["responses"]):
        operation["responses"]["204"] = {"description": ""}


def _who_rotates_is_told(operation: dict[str, Any]) -> None:
    if operation["operationId"] == "v1.endpoint.rotate-secret":
        operation["responses"]["200"] = {"description": "", "content": {"application/json": {"schema": {}}}}


# What is meant to differ from their document, and why.
DIFFERENCES: Final = {
    "problem documents (RFC 9457) have a type of their own, which client libraries read as JSON": _errors_are_problems,
    "requests that are no HTTP, too large, slow, or for another host are told so": _more_is_refused,
    "the new secret is answered, as client libraries of now want it": _who_rotates_is_told,
    "what expunges has no good answer in theirs, and client libraries take 204": _what_is_forgotten_is_answered,
}


@pytest.mark.timeout(300)
async def test_it_does_what_others_document(scene: Scene) -> None:
    theirs = json.loads(OTHERS.read_text())
    for path, methods in theirs["paths"].items():
        methods.pop("head", None)  # of /health, for which theirs has no good answer
        for method in methods.keys() & METHODS:
            for differ in DIFFERENCES.values():
                differ(methods[method])
            named = {each["name"] for each in methods[method].get("parameters", ())}
            for part in set(re.findall(r"{(\w+)}", path)) - named:  # which theirs leaves out now and then
                own = {"name": part, "in": "path", "required": True, "schema": {"type": "string"}}
                methods[method].setdefault("parameters", []).append(own)
    await asked(scene, theirs, scene.url, scene.tokens["admin"], 8)
