"""The entry of the command line."""

import io

from webhookd.cli.main import unclipped


class Narrow(io.RawIOBase):
    """Takes a few bytes at a time, as a terminal may."""

    def __init__(self) -> None:
        self.taken = b""

    def writable(self) -> bool:
        return True

    def write(self, content: "bytes | memoryview") -> int:  # type: ignore[override]
        part = bytes(content[:7])
        self.taken += part
        return len(part)


def test_nothing_is_lost_of_what_is_not_taken_at_once() -> None:
    raw = Narrow()
    stream = unclipped(io.TextIOWrapper(raw, "utf-8", "replace", write_through=True))  # type: ignore[type-var]
    stream.write("a line of some length\n" * 9)
    stream.flush()
    assert raw.taken == b"a line of some length\n" * 9
    assert (stream.encoding, stream.errors) == ("utf-8", "replace")


def test_what_is_buffered_stays_as_it_is() -> None:
    for stream in (io.TextIOWrapper(io.BytesIO()), io.StringIO()):
        assert unclipped(stream) is stream
