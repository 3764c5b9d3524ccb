"""What the dispatcher is told of the configuration."""

from typing import Protocol


class Settings(Protocol):
    """What can be told to the dispatcher, also while it runs: `[delivery]` of the configuration."""

    @property
    def max_in_flight(self) -> int: ...
    @property
    def max_in_flight_per_host(self) -> int: ...
    @property
    def max_payload(self) -> int: ...
    @property
    def source(self) -> str: ...
    @property
    def response_body(self) -> str: ...
