"""How a command ends: its exit status, and errors in one line or as a document."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from shared.errors import EveryDreamError, Passing, Refused, SettingsError

FAILED, MISUSED, UNREACHABLE, PENDING, INTERRUPTED = 1, 2, 3, 4, 130
"""Exit statuses besides 0; docs/command-line.md says what they mean."""


class Misused(EveryDreamError):
    """The words of a command do not fit one another."""


def print_json(document: Any) -> None:
    """Print a command's result for programs: one JSON document on stdout."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")


@contextmanager
def errors_in_one_line(*, as_json: bool = False) -> Iterator[None]:
    """Exit with one line, not a traceback, on errors that users can mend.

    With ``as_json`` the result is ``{"error": ...}``.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Misused as error:
        _fail(str(error), MISUSED, as_json=as_json)
    except Passing as error:
        _fail(str(error), UNREACHABLE, as_json=as_json)
    except (Refused, SettingsError) as error:
        _fail(str(error), FAILED, as_json=as_json)
    except BrokenPipeError:
        raise
    except OSError as error:
        _fail(reason_of(error), FAILED, as_json=as_json)


def reason_of(error: OSError) -> str:
    """What the system refuses, with the file if it names one."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def _fail(text: str, status: int, *, as_json: bool) -> NoReturn:
    if as_json:
        print_json({"error": text})
    sys.stderr.write(f"everydream: {text}\n")
    sys.exit(status)
