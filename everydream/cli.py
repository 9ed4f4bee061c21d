"""The command ``everydream``: its commands, and how errors end it.

A command's module is imported when it is called, and what it needs when it runs.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Literal

import cyclopts
from cyclopts import Group, Parameter

from everydream.outcome import FAILED, INTERRUPTED, reason_of
from everydream.terminal.wrong_words import panel_of
from everydream.this_machine.machine import package_version
from shared.errors import SettingsError, Unavailable

app = cyclopts.App(
    name="everydream",
    help="Fine-tune Stable Diffusion: a drop-in for RunPod's EveryDream endpoint.",
    version=package_version,
    default_parameter=Parameter(negative=()),
    error_formatter=panel_of,
)

PHOTOS = Group("Train and draw", sort_key=1)
JOBS = Group("Jobs", sort_key=2)
SERVER = Group("The server", sort_key=3)
COMMANDS: dict[Group, dict[str, dict[str, str]]] = {
    PHOTOS: {
        "training": {
            "run": "Train on a folder of images: upload, check, submit, watch, fetch.",
            "draw": "Draw with a finished model; nothing is trained.",
            "check": "Report on a folder of images: what is used, what is left out and why.",
            "follow": "Watch a job that was submitted before, and fetch its results.",
            "fetch": "Fetch a job's results again.",
        },
    },
    JOBS: {
        "jobs": {
            "jobs": "List your jobs, newest first.",
            "show": "Show a job as it is now.",
            "sample": "Draw a row of samples of a running training now.",
            "save": "Save a checkpoint of a running training now.",
            "stop": "End a running training now and keep what it has learnt.",
            "cancel": "End a job and throw away what it has learnt.",
            "retry": "Run a job that FAILED or TIMED_OUT again, from where it stopped.",
            "delete": "Remove a job, its model and all its files for good.",
        },
        "editing": {"edit": "Change captions of a check's pictures, or leave some out."},
    },
    SERVER: {
        "serving": {
            "serve": "Run the five services in one process.",
            "service": "Run one service against RabbitMQ, as the containers do.",
            "demo": "Train the tiny model and draw with it, through the real endpoint.",
            "webhook-secret": "Print the secret that signs webhooks.",
        },
        "maintenance": {
            "migrate": "Bring the database to this version's tables.",
            "backup": "Copy database and store into a folder, while the services run.",
            "restore": "Fill an empty database and an empty store from a backup.",
        },
        "doctor": {"doctor": "Say what this machine can do, what is wrong and how to mend it."},
    },
}
"""By group: modules of ``everydream.commands``, their functions, and a line on each."""
GROUPS = {
    "uploads": (JOBS, "List your uploads, or delete one."),
    "keys": (SERVER, "The keys that clients send; the settings name the database."),
    "models": (SERVER, "The models that training starts from."),
}

for group, modules in COMMANDS.items():
    for module, functions in modules.items():
        for name, line in functions.items():
            function = f"everydream.commands.{module}:{name.replace('-', '_')}"
            app.command(function, name=name, group=group, help=line)
for name, (group, line) in GROUPS.items():
    app.command(f"everydream.commands.{name}:app", name=name, group=group, help=line)


@app.command
def completion(shell: Literal["bash", "zsh", "fish"], /, *, install: Annotated[
    bool, Parameter(help="Put it where the shell finds it, and name it in the shell's start file.")
] = False) -> None:  # fmt: skip
    """Print the script that completes words in a shell, or install it."""
    if install:
        print(f"written to {app.install_completion(shell=shell)}; open a new shell")  # noqa: T201
    else:
        print(app.generate_completion(shell=shell))  # noqa: T201


def main() -> None:
    """Entry point; errors of services that users can mend are reported in one line."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal may know fewer letters than a caption
    try:
        app()
        sys.stdout.flush()
    except* BrokenPipeError:  # whoever reads it has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except* (SettingsError, Unavailable) as group:
        sys.exit(f"everydream: {first_of(group)}")
    except* (PermissionError, NotADirectoryError) as group:
        error = first_of(group)
        reason = reason_of(error) if isinstance(error, OSError) else str(error)
        sys.exit(f"everydream: {reason}; EVERYDREAM_HOME names the folder that is written to")
    except* KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group, at any depth."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first
