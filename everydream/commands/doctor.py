"""The command that examines the machine."""

from __future__ import annotations

import asyncio

from everydream.commands.parameters import Json, Url, stdout


def doctor(*, json: Json = False, url: Url = None) -> int:
    """Say what this machine can do, and what is wrong with how to mend it.

    It looks at the card, memory, disk, the base model, and at what the settings name: broker,
    database and store, and at the server that commands ask. The exit status is 1 if something is
    wrong. Nothing is changed.
    """
    from everydream.outcome import FAILED, errors_in_one_line, print_json  # noqa: PLC0415
    from everydream.this_machine.doctor import examine, print_findings  # noqa: PLC0415
    from everydream.this_machine.machine import read_settings  # noqa: PLC0415

    with errors_in_one_line(as_json=json):
        examined = asyncio.run(examine(read_settings(), url))
        if json:
            print_json(examined)
        else:
            print_findings(stdout(), examined)
        return 0 if examined["healthy"] else FAILED
