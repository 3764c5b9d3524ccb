"""`webhookd pause` and `resume`, and the states that `webhookd endpoints` shows: one for each row of docs/states.md."""

import pytest

from tests.integration.cli.conftest import Prompt
from tests.integration.conftest import Sql
from webhookd.policy.endpoint_state import EndpointState


@pytest.mark.parametrize(
    ("which", "paused"),
    [
        (("orders",), {"orders"}),
        (("acme/mail", "stock"), {"acme/mail", "stock"}),
        (("--tenant", "acme"), {"acme/mail", "acme/orders"}),
        (("--tenant", ""), {"orders", "stock"}),
        (("--host", "hooks.example.com"), {"orders", "stock", "acme/mail"}),
        (("--host", "hooks.example.com:8443"), {"stock"}),
        (("--all",), {"orders", "stock", "acme/mail", "acme/orders"}),
    ],
)
async def test_whom_a_pause_is_for(prompt: Prompt, which: tuple[str, ...], paused: set[str]) -> None:
    said = await prompt("pause", *which)
    assert said.startswith("paused ")
    assert {name for name, state in (await prompt.states()).items() if state == "paused"} == paused
    again = await prompt.json("pause", *which)
    assert (again["paused"], set(again["unchanged"])) == ([], paused)
    resumed = await prompt.json("resume", "--all")
    assert set(resumed["resumed"]) == paused
    assert set((await prompt.states()).values()) == {"active"}


async def test_what_it_says(prompt: Prompt) -> None:
    assert await prompt("pause", "stock") == "paused stock\n"
    assert await prompt("pause", "stock") == "nothing to do: stock is paused already\n"
    assert await prompt("pause", "--tenant", "") == "paused orders\nstock is paused already\n"
    assert await prompt("resume", "--tenant", "") == "resumed 2 endpoints (orders, stock)\n"
    assert await prompt("resume", "stock") == "nothing to do: stock is not paused\n"
    assert await prompt("enable", "stock") == "nothing to do: stock is not disabled\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "say which endpoints: NAME..., --tenant TENANT, --host HOST or --all"),
        (("orders", "--all"), "say which endpoints: NAME..., --tenant TENANT, --host HOST or --all"),
        (("nobody",), "there is no endpoint"),
        (("--tenant", "nobody"), "there is no such endpoint: `webhookd endpoints list` shows all"),
        (("--host", "example.com"), "there is no such endpoint: `webhookd endpoints list` shows all"),
    ],
)
@pytest.mark.parametrize("command", ["pause", "resume", "enable"])
async def test_a_mistake_is_one_sentence(
    prompt: Prompt, command: str, arguments: tuple[str, ...], sentence: str
) -> None:
    assert (await prompt(command, *arguments, code=1)).startswith(sentence)


PARK = """INSERT INTO webhookd.parked (endpoint_id, from_batch, next_batch, reason, owner, fails, retry_at)
          VALUES (1, 1, 1, '{reason}', 7, {fails}, now() + interval '1 hour')"""
MAKE = {
    "active": ("SELECT 1", "live, from memory"),
    "failing": (PARK.format(reason="failing", fails=3), "(failing), daemon 7 sends to it"),
    "paused": ("SELECT webhookd.pause('{1}')", "nothing is sent; what arrives is kept\n"),
    "disabled": ("SELECT webhookd.disable(1, 'http_410')", "nothing is sent, and what arrives is not owed\n"),
    "inactive": (
        """UPDATE webhookd.endpoint SET spec = spec || '{"active": false}' WHERE id = 1""",
        "not owed: active = false",
    ),
    "removed": (
        "UPDATE webhookd.endpoint SET removed_at = now() WHERE id = 1",
        "not owed: no live daemon's files have it",
    ),
}


@pytest.mark.parametrize("state", EndpointState)
async def test_each_state_is_shown(prompt: Prompt, sql: Sql, state: EndpointState) -> None:
    statement, fed = MAKE[state]
    await sql.execute(statement)
    assert (await prompt.states())["orders"] == state
    shown = await prompt("endpoints", "show", "orders")
    assert f"state        {state}\n" in shown
    assert fed in shown
    assert ("breaker      open, 2 probes failed, next probe in " in shown) == (state == "failing")
    assert ("`webhookd resume` ends it" in shown) == (state == "paused")
    assert ("`webhookd enable` ends it" in shown) == (state == "disabled")


async def test_who_resumes_one_that_fails_hears_that_it_is_probed(prompt: Prompt, sql: Sql) -> None:
    await sql.execute(MAKE["failing"][0])
    assert await prompt("resume", "orders") == (
        "nothing to do: orders is not paused\n"
        "orders fails, and is probed without that: `webhookd endpoints show NAME` says when\n"
    )
    assert await prompt("pause", "orders") == "paused orders\n"
    assert await prompt("resume", "orders") == "resumed orders\n"


@pytest.mark.parametrize(
    ("stronger", "weaker"),
    [("removed", "inactive"), ("inactive", "disabled"), ("disabled", "paused"), ("paused", "failing")],
)
async def test_the_state_that_keeps_the_most_from_it_is_shown(
    prompt: Prompt, sql: Sql, stronger: str, weaker: str
) -> None:
    await sql.execute(MAKE[weaker][0])
    await sql.execute(MAKE[stronger][0])
    assert (await prompt.states())["orders"] == stronger


async def test_it_may_be_disabled_resumed_and_parked_without_an_event_between(prompt: Prompt, sql: Sql) -> None:
    for _ in range(2):
        assert await sql.fetchval("SELECT webhookd.disable(1, 'http_410')")
        assert not await sql.fetchval("SELECT webhookd.disable(1, 'http_410')")
        assert await prompt("enable", "orders") == "enabled orders\n"
        assert await prompt("pause", "orders") == "paused orders\n"
        assert await prompt("resume", "orders") == "resumed orders\n"


async def test_a_pause_and_a_disable_leave_each_other_alone(prompt: Prompt, sql: Sql) -> None:
    parked = (
        "SELECT reason, from_batch, to_batch FROM webhookd.parked WHERE endpoint_id = 1 ORDER BY from_batch, to_batch"
    )
    await prompt("pause", "orders")
    await sql.execute("SELECT webhookd.disable(1, 'http_410')")
    assert await prompt("resume", "orders") == "resumed orders\n"
    assert (await prompt.states())["orders"] == "disabled"
    assert await prompt("resume", "orders") == (
        "nothing to do: orders is not paused\norders is disabled: `webhookd enable` ends that\n"
    )
    await prompt("pause", "orders")
    await sql.execute("SELECT webhookd.emit('order.created', '{}'); SELECT webhookd.cut(100, 500, 1)")
    assert await prompt("enable", "orders") == "enabled orders\n"
    assert (await prompt.states())["orders"] == "paused"
    assert [tuple(row) for row in await sql.fetch(parked)][-1] == ("paused", 2, None)
    assert [tuple(row) for row in await sql.fetch("SELECT from_batch, to_batch, reason FROM webhookd.missed")] == [
        (1, 2, "disabled")
    ]


async def test_status_tells_who_is_live_and_how_far_a_cursor_is_behind(prompt: Prompt, sql: Sql) -> None:
    await sql.execute("SELECT webhookd.pause('{1}')")
    await sql.execute("SELECT webhookd.emit('order.created', '{}')")
    await sql.execute("SELECT webhookd.cut(100, 500, 1)")
    await sql.execute("UPDATE webhookd.batch SET cut_at = now() - interval '1 hour'")
    found = {f"{each['tenant']}/{each['name']}": each for each in (await prompt.json("status"))["endpoints"]}
    assert (found["/orders"]["state"], found["/orders"]["fed"]) == ("paused", "parked")
    assert 3599 < found["/orders"]["behind_seconds"] < 3700
    assert (found["/stock"]["fed"], found["/stock"]["behind_seconds"]) == ("live", None)
    shown = await prompt("endpoints", "show", "orders")
    assert "owed         1 parked" in shown
