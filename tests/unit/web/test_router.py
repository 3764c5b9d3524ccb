"""Which operation a method and a path mean."""

import pytest

from webhookd.web.problem import Problem
from webhookd.web.router import Router
from webhookd.web.table import OPERATIONS

ROUTER = Router(OPERATIONS)


@pytest.mark.parametrize("end", ["", "/"])
@pytest.mark.parametrize(
    ("method", "path", "id_", "parts"),
    [
        ("GET", "/health", "v1.health.get", {}),
        ("GET", "/app", "v1.application.list", {}),
        ("PUT", "/app/shop-1", "v1.application.update", {"app_id": "shop-1"}),
        ("GET", "/app/a%2Fb", "v1.application.get", {"app_id": "a/b"}),
        ("GET", "/app/shop/msg/msg_1", "v1.message.get", {"app_id": "shop", "msg_id": "msg_1"}),
    ],
)
def test_it_finds_an_operation(method: str, path: str, id_: str, parts: dict[str, str], end: str) -> None:
    operation, found = ROUTER.find(method, path + end)
    assert (operation.id, found) == (id_, parts)


def test_every_operation_is_found_by_its_own_path() -> None:
    for operation in OPERATIONS:
        assert ROUTER.find(operation.method, operation.path)[0] is operation


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/nothing",
        "/app/a/nothing",
        "/app//msg/x/y",
        "/" + "/x" * 1_000,
        "/app/%ff",
        "/app/a%00b",
        "/app/%ed%a0%80",
        "/app/\udce9",
    ],
)
def test_nothing_is_404(path: str) -> None:
    with pytest.raises(Problem) as found:
        ROUTER.find("GET", path)
    assert found.value.status == 404


def test_another_method_is_405_and_says_which_there_are() -> None:
    with pytest.raises(Problem) as found:
        ROUTER.find("DELETE", "/app")
    assert (found.value.status, found.value.headers["allow"]) == (405, "GET, HEAD, OPTIONS, POST")


def test_ids_are_given_once() -> None:
    assert len({operation.id for operation in OPERATIONS}) == len(OPERATIONS)
    with pytest.raises(ValueError, match="twice"):
        Router([OPERATIONS[0], OPERATIONS[0]])
