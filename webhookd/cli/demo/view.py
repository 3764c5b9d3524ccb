"""What the demo shows: a live table on a terminal, plain lines elsewhere, nothing beside JSON."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import NamedTuple, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from webhookd.cli.demo.accounts import Line, Summary
from webhookd.cli.tables import counted, lines, tell
from webhookd.store.reports import Pulse

LINE_SECONDS = 2.0  # between two plain lines


class Seen(NamedTuple):
    """How the demo stands."""

    seconds: float
    doing: str
    events: int
    endpoints: list[tuple[str, str, Pulse]]  # label, description


class View(Protocol):
    """Where it is shown."""

    def __call__(self, seen: Seen) -> None:
        """Show it."""


@contextmanager
def view(quiet: bool) -> Iterator[View]:
    """The view that fits standard output."""
    if quiet:
        yield lambda _: None
    elif sys.stdout.isatty():
        with Live(console=Console(), auto_refresh=False) as live:
            yield lambda seen: live.update(_table(seen), refresh=True)
    else:
        yield _lines()


def _headline(seen: Seen) -> str:
    pulses = [pulse for _, _, pulse in seen.endpoints]
    delivered, failed, retrying = (
        sum(pulse.delivered for pulse in pulses),
        sum(pulse.failed for pulse in pulses),
        sum(pulse.retrying for pulse in pulses),
    )
    return (
        f"{seen.seconds:.0f} s  {counted(seen.events, 'event')}, {delivered} delivered, "
        f"{counted(failed, 'failed attempt')}, {retrying} to be retried  {seen.doing}"
    )


def _table(seen: Seen) -> Table:
    table = Table(title=_headline(seen), title_justify="left", title_style="bold")
    table.add_column("endpoint", style="cyan", no_wrap=True)
    table.add_column("its receiver", style="dim")
    for heading in ("delivered", "failed", "retrying", "last", "p50"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, description, pulse in seen.endpoints:
        table.add_row(
            Text(label),
            Text(description),
            Text(str(pulse.delivered), style="green"),
            Text(str(pulse.failed), style="red" if pulse.failed else "dim"),
            Text(str(pulse.retrying), style="yellow" if pulse.retrying else "dim"),
            _last(pulse),
            "" if pulse.p50 is None else f"{pulse.p50:.0f} ms",
        )
    return table


def _last(pulse: Pulse) -> Text:
    if pulse.code is None:
        return Text(pulse.error or "", style="red")
    return Text(str(pulse.code), style="green" if pulse.code < 300 else "red")


def _lines() -> View:
    shown = -LINE_SECONDS

    def show(seen: Seen) -> None:
        nonlocal shown
        if seen.seconds - shown < LINE_SECONDS:
            return
        shown = seen.seconds
        parts = [f"{label} {p.delivered}/{p.failed}/{p.retrying}" for label, _, p in seen.endpoints]
        tell(_headline(seen).rstrip())
        tell(f"  delivered/failed/retrying: {', '.join(parts)}")

    return show


_RARE = {
    "retrying": "failed so far, and tried again by the next start",
    "waiting": "not tried yet: the next start does",
    "exhausted": "failed until its time was over",
    "rejected": "never to be sent, such as one that is too large",
    "unverified": "requests whose signature the receiver could not verify",
    "duplicates": "events that the receiver got once more, as it may",
}  # shown only where there is something to show, with what it means


def summary_table(summary: Summary) -> str:
    """A line for each endpoint, on 80 columns unless much went wrong."""
    rows = [(label, *(str(getattr(line, key)) for key in _keys(summary))) for label, line in summary.endpoints.items()]
    heads = ("endpoint", *(f">{key.removesuffix('_attempts')}" for key in _keys(summary)))
    return "\n".join(["", *lines(heads, rows), ""])


def summary_text(summary: Summary) -> str:
    """What the table's words mean, as far as it has them, and whether it adds up."""
    still = sum(line.retrying + line.waiting for line in summary.endpoints.values())
    told = [f"owed         the deliveries that {counted(summary.events, 'event')} meant for an endpoint"]
    told += [f"{key:<13}{_RARE[key]}" for key in _keys(summary) if key in _RARE]
    if summary.unaccounted:
        said = f"{summary.unaccounted} unaccounted for: this is a bug of webhookd, please report it"
    else:
        said = f"{counted(summary.events, 'event')}; every delivery is accounted for"
    if still:
        said += f"; {still} still owed"
    return "\n".join([*told, "", f"{said}."])


def _keys(summary: Summary) -> list[str]:
    found = summary.endpoints.values()
    return [key.name for key in fields(Line) if key.name not in _RARE or any(getattr(line, key.name) for line in found)]
