"""What is known for a second is not known for longer, and not without a bound."""

import time

import pytest

from webhookd.web import recent
from webhookd.web.recent import Recent


def test_it_is_known_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    known = Recent[int]()
    known.keep("a", 1)
    now = 100.9
    assert (known.get("a"), known.get("b")) == (1, None)
    now = 101.0
    assert known.get("a") is None
    known.keep("a", 2)
    known.clear()
    assert known.get("a") is None


def test_there_is_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MOST", 3)
    known = Recent[int]()
    for number in range(4):
        known.keep(str(number), number)
    assert [known.get(str(number)) for number in range(4)] == [None, None, None, 3]
