"""Who is let into a portal, and what is seen there."""

import pytest

from tests.integration.conftest import Sql
from tests.integration.web.conftest import Client


async def let_in(api: Client, **body: object) -> Client:
    made = await api("POST", "/auth/app-portal-access/shop", body)
    assert made.status == 200, made
    assert made.body["url"] == f"{api.url}/portal#key={made.body['token']}"
    return api.with_token(made.body["token"])


@pytest.fixture
async def shop(api: Client) -> Client:
    await api("POST", "/app", {"name": "Shop", "uid": "shop"})
    return api


async def test_one_sees_its_own_and_no_more(shop: Client, sql: Sql) -> None:
    portal = await let_in(shop)
    assert (await portal("GET", "/app/shop/endpoint")).status == 200
    assert (await portal("GET", "/app/default/endpoint")).status == 404
    assert (await portal("GET", "/app")).status == 403
    assert (await portal("POST", "/auth/app-portal-access/shop", {})).status == 403
    assert (await portal("POST", "/app/shop/msg", {"eventType": "a", "payload": {}})).status == 403
    days = await sql.fetchval(
        "SELECT extract(epoch FROM expires_at - now()) / 86400 FROM webhookd.token WHERE role = 'portal'"
    )
    assert 6.9 < days <= 7


async def test_it_may_do_what_it_is_let(shop: Client) -> None:
    body = {"url": "https://hooks.example.com/"}
    for given, status in (
        ({"read_only": True}, 403),
        ({"readOnly": True}, 403),
        ({"capabilities": ["ViewBase"]}, 403),
        ({}, 409),
    ):
        portal = await let_in(shop, **given)
        assert (await portal("GET", "/app/shop/endpoint")).status == 200
        assert (await portal("POST", "/app/shop/endpoint", body)).status == status  # 409: there is no key to seal with
    portal = await let_in(shop, capabilities=[])
    assert (await portal("GET", "/app/shop/endpoint")).status == 403


@pytest.mark.parametrize("wrong", [{"expiry": 3_599}, {"expiry": 604_801}, {"expiry": "1d"}, {"capabilities": ["All"]}])
async def test_what_makes_no_sense_is_refused(shop: Client, wrong: dict[str, object]) -> None:
    assert (await shop("POST", "/auth/app-portal-access/shop", wrong)).status == 422


async def test_the_application_may_be_made_on_the_way(shop: Client) -> None:
    assert (await shop("POST", "/auth/app-portal-access/new", {})).status == 404
    made = await shop("POST", "/auth/app-portal-access/new", {"application": {"name": "New"}})
    assert made.status == 200
    assert (await shop("GET", "/app/new")).body["name"] == "New"


async def test_the_same_request_twice_gets_a_token_that_counts(shop: Client) -> None:
    for _ in range(2):
        made = await shop("POST", "/auth/app-portal-access/shop", {}, idempotency_key="k")
        assert (await shop.with_token(made.body["token"])("GET", "/app/shop")).status == 200


async def test_types_with_flags_are_for_those_who_have_one(shop: Client) -> None:
    for name, flags in (("all", None), ("beta", ["beta", "late"]), ("late", ["late"])):
        await shop("POST", "/event-type", {"name": name, "description": "", "featureFlags": flags})
    for flags, seen in ((["beta"], ["all", "beta"]), ([], ["all"]), (["late", "other"], ["all", "beta", "late"])):
        portal = await let_in(shop, featureFlags=flags)
        assert [each["name"] for each in (await portal("GET", "/event-type")).body["data"]] == seen
        for name in ("all", "beta", "late"):
            assert (await portal("GET", f"/event-type/{name}")).status == (200 if name in seen else 404)
    assert len((await shop("GET", "/event-type")).body["data"]) == 3
