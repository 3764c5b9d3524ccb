"""The text format of Prometheus 0.0.4, written a slice at a time, so that ten thousand endpoints stall nobody.

Source: prometheus.io, "Exposition formats".
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final, Literal, NamedTuple

from webhookd.tally import Histogram

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
AT_A_TIME: Final = 250  # lines, before others have their turn on the loop: half a millisecond, or two where it is slow

_ESCAPES: Final = {ord("\\"): "\\\\", ord('"'): '\\"', ord("\n"): "\\n"}

Sample = tuple[str, float]  # what stands behind the name, such as `{code="500"}`, and the value


class Family(NamedTuple):
    """All that goes by one name; its samples are made as they are written."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: Iterable[Sample]


def labels(**values: str) -> str:
    """Labels as they stand behind a name; an empty value is as good as none."""
    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in values.items()) + "}"


def escaped(value: str) -> str:
    """What may stand within the quotes of a label."""
    return value.translate(_ESCAPES).encode(errors="replace").decode()


def one(value: float | None) -> Iterable[Sample]:
    """The only sample of a family; none where there is no value."""
    return () if value is None else (("", value),)


def by(label: str, values: Mapping[str, float]) -> Iterable[Sample]:
    """A sample for each value of a label."""
    return [(labels(**{label: key}), value) for key, value in values.items()]


def histogram(name: str, help_: str, of: Histogram) -> Family:
    """The family of a histogram."""
    upto = list(accumulate(of.counts))
    samples = [(f'_bucket{{le="{bound:g}"}}', count) for bound, count in zip(of.bounds, upto, strict=False)]
    return Family(
        name, "histogram", help_, [*samples, ('_bucket{le="+Inf"}', upto[-1]), ("_sum", of.sum), ("_count", upto[-1])]
    )


def lines(families: Iterable[Family]) -> Iterator[str]:
    """The lines, each with its end."""
    for name, kind, help_, samples in families:
        yield f"# HELP {name} {help_}\n# TYPE {name} {kind}\n"
        for behind, value in samples:
            yield f"{name}{behind} {value}\n"


async def pieces(families: Iterable[Family]) -> list[bytes]:
    """All of it, in pieces of some 30 KiB; others have their turn meanwhile."""
    written: list[bytes] = []
    some: list[str] = []
    for line in lines(families):
        some.append(line)
        if len(some) >= AT_A_TIME:
            written.append("".join(some).encode())
            some.clear()
            await asyncio.sleep(0)
    return [*written, "".join(some).encode()] if some else written
