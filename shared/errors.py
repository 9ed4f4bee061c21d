"""The errors of the project, and what each means for the job it strikes.

EveryDreamError
├── Refused            permanent, or the user's to mend: the job ends FAILED with this reason
├── Passing            may go away by itself: counts one failure, the stage is tried again
│   ├── Unavailable    a broker, a store or a database does not answer
│   │   └── Full       a disk has no room
│   └── Stalled        a worker's child said nothing for longer than its patience
├── Interrupted        the worker was asked to stop: another gets the stage, nothing is counted
├── NotFound           an object store or a job store does not hold this key
├── Unroutable         nobody listens for a message that needs a listener
└── SettingsError      an environment variable holds what it may not
"""


class EveryDreamError(Exception):
    """Base of all errors raised on purpose by this project."""


class Refused(EveryDreamError):
    """Permanent or the user's to mend; the user sees the text, which names file, field or URL."""


class Passing(EveryDreamError):
    """May go away by itself; the stage is tried again after a backoff."""


class Unavailable(Passing):
    """A server that we need does not answer, or refuses to for now."""


class Full(Unavailable):
    """A disk has no room for what is to be written; nothing of it stays."""


class Stalled(Passing):
    """A child process said nothing for longer than its patience."""


class Interrupted(EveryDreamError):
    """The worker was asked to stop before the work was done."""


class NotFound(EveryDreamError):
    """No such key."""


class Unroutable(EveryDreamError):
    """A message that needs a listener reached no queue."""


class SettingsError(EveryDreamError):
    """An environment variable holds what it may not; the text names it and what it takes."""


def shorten(text: str, limit: int = 3000) -> str:
    """A reason that fits into a record, its middle left out."""
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 2 :]}"


def reason_of(error: BaseException) -> str:
    """An error as a reason for people: its text, with its kind when that is not one of ours.

    What a user's file says stands in it, so it is shortened, and half a surrogate pair, which no
    message could carry, becomes a question mark.
    """
    text = str(error) if isinstance(error, EveryDreamError) else f"{type(error).__name__}: {error}"
    return shorten(text).encode(errors="replace").decode()
