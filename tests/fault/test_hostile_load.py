"""However much a receiver says, or how slow its name is: the loop runs, others flow, and memory stays flat."""

import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import psutil
import pytest
from aiohttp import web

from tests.fault.attacks import ATTACKS
from tests.fault.siege import Besiege, others_flow
from tests.integration.conftest import Got, Receiver, Running, Sql, configuration, eventually, insert_many
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

MOST_LAG = 0.05  # seconds
ROUNDS = 3  # what only a busy machine has done does not come each time
FIVE = ("informational", "early_hints", "chunk_extension")
ONCE = {"retry": {"first": "1h"}}
MANY: Final = (  # answered at once, so that many fit into a second
    ("length", "chunked", "until_close", "gzip_bomb", "brotli", "bad_chunks", "no_content_with_body", "forged_at_once"),
    (20, 20, 20, 20),
)
LONG: Final = (  # the body may take a second; a breaker opens after ten failures
    (
        "chunk_extension",
        "trailers",
        "text_until_close",
        "informational",
        "early_hints",
        "headers",
        "header",
        "wide_head",
    ),
    (3, 6),
)
MOST_GROWTH = 24.0  # MiB from before the first answer; 5 to 11 were measured
MOST_LATER_GROWTH = 6.0  # MiB after the first volley; 0 to 3 were measured
DEAD = 200


@pytest.mark.parametrize("attacks", [*([attack] * 5 for attack in FIVE), [*ATTACKS]], ids=[*FIVE, "everything"])
async def test_what_never_ends_holds_up_neither_the_loop_nor_the_others(
    besiege: Besiege, attacks: Sequence[str]
) -> None:
    lags: list[float] = []
    async with besiege(*attacks, timeout="1500ms", **ONCE) as siege:
        while len(lags) < ROUNDS and not (lags and min(lags) < MOST_LAG):
            async with siege.others() as others:
                await siege.attack()
                await siege.met(lambda attempts: len(attempts) > len(lags), "an attempt of each event")
            print(others)  # noqa: T201 - the figures, if it fails
            lags.append(others.lag)
        found = await siege.attempts()
    if attacks[0] in FIVE:
        verdict = 200 if attacks[0] == "chunk_extension" else "malformed_response"
        assert {each.verdict for attempts in found.values() for each in attempts} == {verdict}
    assert min(lags) < MOST_LAG


@pytest.mark.parametrize(("attacks", "volleys"), [MANY, LONG], ids=["many", "long"])
async def test_memory_is_flat_whatever_is_answered(
    besiege: Besiege, attacks: tuple[str, ...], volleys: Sequence[int]
) -> None:
    before, answers, peaks = psutil.Process().memory_info().rss / 2**20, 0, []
    async with besiege(*attacks * 3, timeout="2s", **ONCE) as siege:
        for count in volleys:
            answers += count
            async with siege.others() as others:
                await siege.attack(count)
                await siege.met(lambda attempts: len(attempts) >= answers, "all attempts")  # noqa: B023
            peaks.append(others.memory)
    print(f"{3 * len(attacks) * answers} answers, {before:.1f} MiB before, then {peaks}")  # noqa: T201 - the figures
    assert max(peaks) - before < MOST_GROWTH
    assert max(peaks) - peaks[0] < MOST_LATER_GROWTH


class Names:
    """What the system's resolver says: `good.example` is here.

    Of the others some hang, some hang from the second time on, and some fail at once, as their names begin.
    """

    def __init__(self) -> None:
        self.over = threading.Event()
        self.asked: Counter[str] = Counter()

    def getaddrinfo(self, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        """As socket.getaddrinfo."""
        self.asked[host] += 1
        if host == "good.example":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        if host.startswith("hangs") or (host.startswith("later") and self.asked[host] > 1):
            self.over.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    """These names, and no others, for a test."""
    made = Names()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.over.set()


@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
async def test_200_dead_names_do_not_delay_a_good_one(
    sql: Sql, dsn: str, receiver: Receiver, daemon: Running, names: Names, known: bool
) -> None:
    """Also not one that is as new as they are, as after a start."""

    async def once(_: Got) -> web.Response:
        answer = web.Response()
        answer.force_close()  # each event has to look the name up
        return answer

    receiver.scripts["good"] = once
    url = f"http://good.example:{receiver.port}/good"
    endpoints: dict[str, dict[str, Any]] = {"good": {"url": url, "events": ["good"]}}
    for number in range(DEAD):
        # Those that hang later come first: they have failed when the others hang, and hang beside them.
        kind = "later" if number < DEAD // 4 else ("fails", "hangs")[number % 2]
        kind = kind if known else "hangs"
        url = f"http://{kind}.dead-{number}.example/"
        endpoints[f"dead-{number:03}"] = {"url": url, "events": ["attack"], "timeout": "500ms"}
    config = configuration(endpoints, retry={"first": "50ms", "max_interval": "200ms", "factor": 2})
    async with daemon(config):
        if known:
            await insert_many(sql, 1, "good")
            await until(lambda: receiver.events("good"), "the good name is known")
        else:
            await insert_many(sql, 1, "attack")
            await until(lambda: len(names.asked) == DEAD, "all dead names are being looked up")
        async with others_flow(dsn, receiver) as others:
            await insert_many(sql, 2, "attack")  # as many attempts as the daemon has slots would be another matter
            tried = "SELECT count(DISTINCT endpoint_id) FROM webhookd.attempt WHERE NOT ok AND attempt > 1"

            async def all_tried() -> bool:
                return bool(await sql.fetchval(tried) == DEAD)

            await eventually(all_tried, "each dead name is tried twice")
        codes = {row["error"] for row in await sql.fetch("SELECT DISTINCT error FROM webhookd.attempt WHERE NOT ok")}
        names.over.set()
    print(others, codes)  # noqa: T201 - the figures
    assert codes <= {"dns_error", "dns_timeout", "connect_timeout"}
    assert names.asked["good.example"] >= len(others.latencies), "each was looked up"
