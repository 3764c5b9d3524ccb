"""What can go wrong in a way that its caller is expected to meet. Anything else is a bug."""


class WebhookdError(Exception):
    """Trouble with one clear sentence for a person: what is wrong, and what to do."""


class ConfigError(WebhookdError):
    """The configuration cannot be used. `mistakes` holds every mistake that was found, one sentence each."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class StoreUnavailable(WebhookdError):
    """Postgres did not answer, or refused for a reason that passes. Nothing is known about the statement's effect."""


class DsnUnusable(StoreUnavailable):
    """What says where the database is has a mistake, which stays unless it is in a file that is written anew."""


class StoreConflict(StoreUnavailable):
    """Postgres ended a transaction for another one. It had no effect, and may be tried again at once."""


class StoreForbidden(StoreUnavailable):
    """Postgres does not let this role do it. That passes when somebody grants what is missing."""


class StoreDamaged(StoreUnavailable):
    """Postgres could not read or write its own files: at one row, or at all."""

    passes = True


class StoreRefused(WebhookdError):
    """Postgres refused a value, or gave one that cannot be read: it lies in the data.

    Repeating it will not help, unless `passes` is true: then it may have been the moment.
    """

    def __init__(self, sentence: str, *, passes: bool = False) -> None:
        super().__init__(sentence)
        self.passes = passes


class StoreTaken(StoreRefused):
    """Postgres refused a value that another row has, and only one may have."""


class SchemaMismatch(WebhookdError):
    """The schema is missing or old, which a migration mends.

    `final` is true where none does: it is too new for this binary, or the database has another encoding than UTF8.
    """

    def __init__(self, sentence: str, *, final: bool = False) -> None:
        super().__init__(sentence)
        self.final = final


class Moved(WebhookdError):
    """The database is not the one that was joined any longer: what is in memory means nothing there."""


class OtherPlace(WebhookdError):
    """The database is bound to another server or environment: what it owes may not be ours to send."""


class EmbeddedUnavailable(WebhookdError):
    """A Postgres of our own cannot be started on this machine."""
