"""Who may do what."""

import pytest

from webhookd.policy.access import CAPABILITIES, ROLES, Caller, Right


def test_an_administrator_may_do_all_and_an_operator_all_but_tokens_secrets_and_erasing() -> None:
    assert ROLES["admin"] == frozenset(Right)
    left = {Right.TOKENS, Right.SEE_SECRETS, Right.CHANGE_SECRETS, Right.ERASE}
    assert ROLES["operator"] == frozenset(Right) - left
    assert ROLES["read"] == {Right.LOOK}
    assert ROLES["producer"] == {Right.EMIT}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_portal_may_do_what_its_capabilities_say(capability: str) -> None:
    assert Caller("t", "n", "portal", "app", (capability,)).rights == {CAPABILITIES[capability]}


def test_who_is_nobody_may_do_nothing() -> None:
    assert not Caller("", "", "").rights
    assert not Caller("t", "n", "portal", "app", ("Unheard",)).rights
    assert not Caller("t", "n", "of another version").rights
    assert not Caller("t", "n", "poll").rights  # of which endpoint?
    assert Caller("t", "n", "poll", "app", endpoint=1).rights == {Right.POLL}


@pytest.mark.parametrize("role", ROLES)
def test_what_is_the_operators_is_nobodys_of_one_tenant(role: str) -> None:
    everybodys, ones = Caller("t", "n", role), Caller("t", "n", role, "app")
    assert ones.rights == everybodys.rights - {Right.TENANTS, Right.TOKENS, Right.ERASE}
