"""Parameters that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import CycloptsError, Group, Parameter

from shared.presets import Preset

if TYPE_CHECKING:
    from rich.console import Console

    from everydream.access import Access
    from everydream.terminal.display import Display

GATEWAY = Group("The gateway", sort_key=2)

Url = Annotated[
    str | None,
    Parameter(env_var="EVERYDREAM_URL", group=GATEWAY, help="Where it is: host:port, or a URL."),
]
Key = Annotated[
    str | None,
    Parameter(env_var="EVERYDREAM_API_KEY", group=GATEWAY, help="A key that it lets in."),
]
Json = Annotated[
    bool,
    Parameter(
        name="--json",
        show_default=False,
        help="Print one JSON document on stdout, all else on stderr.",
    ),
]
Results = Annotated[
    Path | None,
    Parameter(help="Where the results go; everydream-results/JOB if none is given."),
]
Yes = Annotated[bool, Parameter(show_default=False, help="Do not ask.")]


def _expect_values(_type: object, changes: tuple[str, ...]) -> None:
    """Refuse a name without its value, which after a space is else called a word too many."""
    from everydream.job_spec import EXPECTED_CHANGE  # noqa: PLC0415

    for change in changes:
        if "=" not in change:
            raise CycloptsError(msg=f"--set {change}: {EXPECTED_CHANGE}")


Set = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set", metavar="NAME=VALUE", show_default=False, validator=_expect_values,
        help="A field of train, such as max_epochs=100.",
    ),
]  # fmt: skip
Data = str | Path
"""Never a path, but a shell offers files for it."""
Config = Annotated[
    Path | None,
    Parameter(help="A JSON file: a whole request, its input, or the fields of its train."),
]
PresetOption = Annotated[
    Preset | None,
    Parameter(
        name="--preset", help="A few fields of train that suit a purpose, each with its source."
    ),
]
Detach = Annotated[
    bool,
    Parameter(name="--no-wait", show_default=False, help="Print the job's id, and go."),
]


def gateway_of(url: str | None, key: str | None) -> Access:
    """The gateway that a command talks to, by its flags, the environment or the home folder.

    Raises:
        Refused: there is no key, or the URL is none.
        SettingsError: a setting is invalid.
    """
    from everydream.access import access  # noqa: PLC0415
    from everydream.this_machine.machine import read_settings  # noqa: PLC0415

    return access(url, key, read_settings())


def stderr() -> Console:
    """The console for people while a command works, whatever becomes of its result."""
    from rich.console import Console  # noqa: PLC0415

    return Console(stderr=True, highlight=False)


def stdout() -> Console:
    """The console for a command's result."""
    from rich.console import Console  # noqa: PLC0415

    return Console(highlight=False)


def display() -> Display:
    """What shows how a job gets on."""
    from everydream.terminal.display import Display  # noqa: PLC0415

    return Display(stderr())
