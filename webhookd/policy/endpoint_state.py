"""What of all that may be true of an endpoint its state says."""

from enum import StrEnum


class EndpointState(StrEnum):
    """What an endpoint is owed, and whether it is sent to; the documentation has a row for each."""

    ACTIVE = "active"
    INACTIVE = "inactive"  # by its file: new events are not owed
    PAUSED = "paused"  # by an operator: owed and kept, and the clock stands still
    FAILING = "failing"  # its breaker is open: owed and probed
    DISABLED = "disabled"  # by its receiver, or since it failed for too long: new events are not owed
    REMOVED = "removed"  # gone from the files: what it was owed is kept until it returns

    @classmethod
    def of(cls, *, active: bool, removed: bool, disabled: bool, paused: bool, failing: bool) -> "EndpointState":
        """The state of an endpoint. Several may be true of it; the one that keeps the most from it counts.

        `active`: its file says so. `removed`: no file names it any longer. `failing`: its breaker is not closed.
        """
        if removed:
            return cls.REMOVED
        if not active:
            return cls.INACTIVE
        if disabled:
            return cls.DISABLED
        if paused:
            return cls.PAUSED
        return cls.FAILING if failing else cls.ACTIVE
