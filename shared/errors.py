"""The errors of the project, and what each means for the job.

EveryDreamError
├── Refused            permanent, or for the user to fix: the job ends FAILED with this reason
│   └── Unpublishable  the broker refuses a message for good, such as one that is too large
├── Passing            temporary: counts one failure, the stage is retried
│   └── Unavailable    a broker, a store or a database does not answer
│       └── Full       a disk has no room
├── Interrupted        the worker is stopping: another takes the stage, no failure is counted
├── NotFound           no such key in an object store or a job store
├── Unroutable         a mandatory message reached no queue
└── SettingsError      an environment variable has an invalid value
"""


class EveryDreamError(Exception):
    """Base of all errors raised on purpose by this project."""

    public: str | None = None
    """What users read in place of a text that names an address or a folder of ours."""


class Refused(EveryDreamError):
    """Permanent, or for the user to fix; users see the text, which names file, field or URL."""


class Unpublishable(Refused):
    """The broker refuses a message for good, such as one that is too large; the text says why."""


class Passing(EveryDreamError):
    """Temporary; the stage is retried after a backoff."""


class Unavailable(Passing):
    """A broker, store or database does not answer, or refuses for now."""


class Full(Unavailable):
    """A disk has no room; what was partly written is removed."""


class Interrupted(EveryDreamError):
    """The worker was stopped before the work was done."""


class NotFound(EveryDreamError):
    """No such key."""


class Unroutable(EveryDreamError):
    """A mandatory message reached no queue."""


class SettingsError(EveryDreamError):
    """An environment variable has an invalid value; the text names it and what it accepts.

    ``reason`` is what is wrong, ``mend`` what to do, if that can be told apart.
    """

    def __init__(self, reason: str, mend: str = "") -> None:
        super().__init__(f"{reason}; {mend}" if mend else reason)
        self.reason = reason
        self.mend = mend


def not_for_users(error: Unavailable) -> Unavailable:
    """The error of a store of ours, of which users read only that it does not answer."""
    error.public = "the service's own store does not answer as it should"
    return error


def shorten(text: str, limit: int = 3000) -> str:
    """Cut the middle out of a text that is too long for a record."""
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}"


def reason_of(error: BaseException) -> str:
    """An error as a reason for people: its text, with its type if it is not one of ours.

    Users read it: a text that is not for them is replaced by its public one. It may quote a user's
    file: it is shortened, and lone surrogates, which no message can carry, become question marks.
    """
    if isinstance(error, EveryDreamError):
        text = error.public or str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    return shorten(text).encode(errors="replace").decode()
