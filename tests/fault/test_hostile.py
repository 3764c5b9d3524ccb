"""Whatever a receiver answers: it is recorded by a code, nothing else of it is kept, and others do not notice."""

from collections.abc import Mapping, Sequence

import pytest

from tests.fault.attacks import AFTER, BANNER, LOOT, PACKED, TEXT
from tests.fault.siege import Attempt, Besiege, tables_with
from tests.integration.conftest import Sql
from webhookd.egress.sender import CODES

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

# Short where it is what ends the attempt; elsewhere nothing but a busy machine could make it do so.
SOON_MS, LATE_MS = 2000, 15_000
BODY_MS = 1000  # that the body of an answer may take
NOISE_MS = 500  # of ours, in bad moments
KEPT = 1024

TIMED_OUT = {"timeout", "connect_timeout"}

# What each attack comes to: the status of what is delivered, the error of what is not.
GROUPS: Mapping[str, Mapping[str, int | str]] = {
    "silence": {
        "mute": "timeout",
        "head_dripping": "timeout",
        "unaccepted": "connect_timeout",
        "refusing": "connection_refused",
        "reset": "connection_reset",
        "broken_off": "connection_reset",
        "hung_up": "connection_reset",
    },
    "tls": {
        "tls_stall": "connect_timeout",
        "tls_reset": "connection_reset",
        "tls_plain": "tls_error",
        "tls_finite_field": "tls_error",
        "tls_long_chain": "tls_error",
        "tls_expired": "tls_certificate",
        "tls_self_signed": "tls_certificate",
        "tls_wrong_host": "tls_certificate",
        "tls_mute": "timeout",
        "tls_good": 200,
    },
    "bodies": {
        "length": 200,
        "chunked": 200,
        "until_close": 200,
        "length_dripping": 200,
        "chunked_dripping": 200,
        "nine_kilobytes": 200,
        "two_hundred_headers": 200,
        "until_close_dripping": 200,
        "chunk_extension": 200,
        "trailers": 200,
        "bad_chunks": 200,
        "gzip_bomb": 200,
        "brotli": 200,
        "no_content_with_body": 204,
    },
    "no_http": {
        "informational": "malformed_response",
        "early_hints": "malformed_response",
        "status_line": "malformed_response",
        "header": "malformed_response",
        "headers": "malformed_response",
        "wide_head": "malformed_response",
        "length_and_chunks": "malformed_response",
        "two_lengths": "malformed_response",
        "negative_length": "malformed_response",
        "nul_in_a_header": "malformed_response",
        "binary": "malformed_response",
        "ssh_second": "malformed_response",
    },
    "statuses": {
        "switching": "http_101",
        "not_modified": "http_304",
        "zero": "http_000",
        "nines": "http_999",
        "four_digits": "malformed_response",
        "redirect": "http_307",
    },
    "texts": {
        "reason": "http_500",
        "header_values": "http_500",
        "nul_in_the_reason": "http_503",
        "text": "http_500",
        "text_until_close": "http_500",
        "text_packed": "http_500",
        "text_in_bad_chunks": "http_500",
    },
}
KEPT_OF: Mapping[str, bytes] = {
    "text": TEXT[:KEPT],
    "text_until_close": TEXT[:KEPT],
    "text_packed": PACKED,
    "text_in_bad_chunks": LOOT,
}
# What a 429 or a 503 asks for, and the seconds from the attempt until the next one is due: from, and less than.
WAITS: Mapping[str, tuple[float, float]] = {
    "seconds": (4.9, 6.5),
    "date": (4.9, 7.5),  # six seconds, but without the fraction of a second
    "hours": (3599.9, 3601.5),
    "long": (3599.9, 3601.5),
    "year_9999": (3599.9, 3601.5),
}
NO_WAITS = AFTER.keys() - WAITS.keys()


def is_decided(attempts: Sequence[Attempt]) -> bool:
    """Two events have arrived, or one of them was tried again."""
    return len(attempts) >= 2 and (all(each.ok for each in attempts) or any(each.number > 1 for each in attempts))


@pytest.mark.parametrize("group", GROUPS)
async def test_a_hostile_answer_is_recorded_by_its_code_and_others_flow(
    besiege: Besiege, sql: Sql, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, group: str
) -> None:
    expected = GROUPS[group]
    timeout_ms = SOON_MS if TIMED_OUT & {*expected.values()} else LATE_MS
    async with besiege(*expected, timeout=f"{timeout_ms}ms") as siege:
        async with siege.others() as others:
            events = await siege.attack(2)
            await siege.met(is_decided, "a delivery, or a second attempt")
        found = await siege.attempts()
        backlog = await sql.fetch(
            "SELECT DISTINCT p.name, b.state, b.last_error FROM webhookd.backlog b"
            " JOIN webhookd.endpoint p ON p.id = b.endpoint_id WHERE b.attempts > 0"
        )
    print(others)  # noqa: T201 - the figures, if it fails
    assert {name: {each.verdict for each in attempts} for name, attempts in found.items()} == {
        name: {verdict} for name, verdict in expected.items()
    }
    owed = {(name, "retry", verdict) for name, verdict in expected.items() if isinstance(verdict, str)}
    assert {tuple(row) for row in backlog} == owed, "what failed is owed, and what was delivered is not"
    for name, attempts in found.items():
        if isinstance(expected[name], int):
            assert sorted(each.event_id for each in attempts) == sorted(events), f"{name} has each event once"
        for each in attempts:
            check(each, timeout_ms, siege.noise)
    said = capsys.readouterr()
    logged = said.out + said.err + caplog.text
    assert ("attempt_failed" in logged) == any(isinstance(verdict, str) for verdict in expected.values())
    assert "Traceback" not in logged
    for text in (LOOT, BANNER.strip()):
        assert text.decode() not in logged
        assert await tables_with(sql, text, but="response") == set()
    assert await tables_with(sql, BANNER.strip()) == set()
    assert await tables_with(sql, LOOT) == ({"webhookd.attempt"} if group == "texts" else set())


def check(attempt: Attempt, timeout_ms: int, noise: float) -> None:
    """Hold an attempt against what is promised of every one; `noise` are seconds of other work on this machine."""
    late = timeout_ms if attempt.error in TIMED_OUT else BODY_MS
    assert attempt.ms < late + NOISE_MS + noise * 1000, attempt
    if attempt.ok:
        assert attempt.error is None
    elif attempt.code is None:
        assert attempt.error in CODES
    else:
        assert attempt.error == f"http_{attempt.code:03}"
    kept = KEPT_OF.get(attempt.endpoint)
    assert attempt.response == (kept or None), attempt


async def test_what_greets_before_it_is_asked_is_stored_and_logged_nowhere(
    besiege: Besiege, sql: Sql, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with besiege(*["ssh"] * 5, timeout=f"{LATE_MS}ms") as siege:
        async with siege.others():
            await siege.attack(2)
            await siege.met(is_decided, "a second attempt")
        found = await siege.attempts()
    # Whether its greeting or our request comes first is a matter of luck, and all the same.
    assert {each.verdict for attempts in found.values() for each in attempts} == {"malformed_response"}
    assert await tables_with(sql, BANNER.strip()) == set()
    said = capsys.readouterr()
    assert "attempt_failed" in said.out
    assert BANNER.strip().decode() not in said.out + said.err + caplog.text


async def test_an_endpoint_that_asks_for_less_waits_within_bounds(besiege: Besiege, sql: Sql) -> None:
    patient = {f"after_{status}_{name}": bounds for status in (429, 503) for name, bounds in WAITS.items()}
    others = {f"after_{status}_{name}" for status in (429, 503) for name in NO_WAITS}
    async with besiege(*patient, *others) as siege:
        async with siege.others():
            (first,) = await siege.attack()
            await siege.met(bool, "an attempt")
            (second,) = await siege.attack()
            await siege.met(
                lambda attempts: attempts[0].endpoint in patient or {(first, 3), (second, 3)} <= numbers(attempts),
                "two more attempts of each event where no pause was asked for",
            )
        found = await siege.attempts()
        due = await sql.fetch(
            "SELECT p.name, extract(epoch FROM b.due - a.at)::float8 AS seconds FROM webhookd.backlog b"
            " JOIN webhookd.endpoint p ON p.id = b.endpoint_id"
            " JOIN webhookd.attempt a ON (a.endpoint_id, a.outbox_id) = (b.endpoint_id, b.outbox_id)"
            " WHERE b.state = 'retry' AND p.name = ANY ($1)",
            list(patient),
        )
        requests = {name: len((await siege.asked(name)).requests) for name in patient}
        noise = siege.noise
    assert {each.verdict for attempts in found.values() for each in attempts} == {"http_429", "http_503"}
    assert requests == dict.fromkeys(patient, 1), "a pause is one of the endpoint, whatever else it is owed"
    waits = {row["name"]: row["seconds"] for row in due}
    assert waits.keys() == patient.keys()
    outside = {name: waits[name] for name, (least, most) in patient.items() if not least <= waits[name] < most + noise}
    assert not outside


def numbers(attempts: Sequence[Attempt]) -> set[tuple[str, int]]:
    """Which attempts of which events there were."""
    return {(each.event_id, each.number) for each in attempts}
