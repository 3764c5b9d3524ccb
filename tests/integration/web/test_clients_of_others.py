"""The tests of Svix' own client libraries, unmodified, at a daemon. `.ci/run` fetches them."""

import os
import re
from pathlib import Path

import pytest

from tests.integration.web.test_python_client import Served, served
from tests.programs import said_by

CLIENTS = Path(os.environ.get("WEBHOOKD_CLIENTS", "/nowhere"))
__all__ = ["served"]  # the fixture

pytestmark = pytest.mark.skipif(not CLIENTS.is_dir(), reason="no clients of others: .ci/run fetches them")


async def run(served: Served, *command: str) -> tuple[int | None, str]:
    """Its exit code and all that it says."""
    environ = {**os.environ, "SVIX_TOKEN": served.token, "SVIX_SERVER_URL": served.url}
    return await said_by(*command, cwd=CLIENTS, env=environ)


async def test_javascript(served: Served) -> None:
    code, said = await run(served, "node", "--test", "--test-reporter=tap", "built/KitchenSink.test.js")
    assert code == 0, said
    assert "endpoint crud" in said
    assert re.search(r"^# pass [1-9]", said, re.MULTILINE)
    assert re.search(r"^# skipped 0$", said, re.MULTILINE)


async def test_go(served: Served) -> None:
    code, said = await run(served, "./svix.test", "-test.v", "-test.count=1")
    assert code == 0, said
    assert "--- PASS: TestKitchenSink" in said
    assert "--- SKIP" not in said
