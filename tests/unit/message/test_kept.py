"""What a daemon makes of an endpoint that the API has made."""

from typing import Any

import pytest

from webhookd.message.kept import HEADER, URL, Defaults, Kept, endpoint_of_kept
from webhookd.message.sealing import Keyring, SealingKey, Unreadable
from webhookd.message.signing import new_secret
from webhookd.model import DisableAfter, Endpoint, RetryPolicy
from webhookd.web.endpoints.specs import NEW

DAY = 86_400.0
KEYRING = Keyring([SealingKey("one", bytes(32)), SealingKey("two", bytes(range(32)))])
DEFAULTS = Defaults(20.0, 10, RetryPolicy(schedule=(5.0, 60.0)), DisableAfter(100, 5 * DAY), give_up_most=6 * DAY)


def made(values: dict[str, str] | None = None, secrets: int = 1, **spec: Any) -> Endpoint:
    whole = {**NEW, "url": "https://hooks.example.com/", "headers": [], **spec}
    signed = [(KEYRING.seal(7, new_secret()), None) for _ in range(secrets)]
    sealed = {name: KEYRING.seal(7, text, name) for name, text in (values or {}).items()}
    return endpoint_of_kept(Kept(7, "shop", "ep_1", "api", False, whole, signed, sealed), KEYRING, DEFAULTS)


def test_what_it_does_not_say_is_as_others_have_it() -> None:
    found = made()
    assert (found.timeout, found.max_in_flight, found.retry, found.disable_after) == DEFAULTS[:4]
    assert found.sealed_by == {"one"}


def test_what_it_says_counts() -> None:
    found = made(timeout=7.5, max_in_flight=2, disable_after={"failures": 3, "seconds": 60.0}, retry={"first": 9.0})
    assert (found.timeout, found.max_in_flight, found.disable_after) == (7.5, 2, DisableAfter(3, 60.0))
    assert (found.retry.first, found.retry.schedule) == (9.0, ()), "waits of its own end the schedule of others"
    assert made(retry={"schedule": [1.0, 2.0]}).retry.schedule == (1.0, 2.0)
    assert made(retry={"give_up_after": 60.0}).retry == RetryPolicy(schedule=(5.0, 60.0), give_up_after=60.0)


def test_nothing_is_tried_for_longer_than_events_are_kept() -> None:
    assert made(retry={"give_up_after": 7 * DAY}).retry.give_up_after == 6 * DAY


def test_the_first_wait_is_no_longer_than_the_longest() -> None:
    assert made(retry={"first": 60.0, "max_interval": 30.0}).retry.first == 30.0


def test_what_is_sealed_is_opened() -> None:
    values = {URL: "https://hooks.example.com/?token=fake", HEADER + "X-A": "1"}
    found = made(values, headers=["X-A"])
    assert (found.url, found.headers) == (values[URL], (("X-A", "1"),))


def test_one_without_a_secret_is_none_of_ours() -> None:
    """It would be taken for one of a file, which may reach what a tenant's may not."""
    with pytest.raises(Unreadable, match="no secret"):
        made(secrets=0)


@pytest.mark.parametrize("spec", [{"retry": {"fist": 1}}, {"headers": ["X-Missing"]}])
def test_one_of_another_version_is_left_to_that(spec: dict[str, Any]) -> None:
    with pytest.raises(Unreadable, match="another version"):
        made(**spec)


def test_one_whose_format_is_in_no_file_here_is_left_to_another_daemon() -> None:
    with pytest.raises(Unreadable, match="no format shop"):
        made(format="shop")
