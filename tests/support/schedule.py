"""Which tests run first, and which stay together: the slow ones must not be left for the end.

A worker of pytest-xdist gets a whole file at a time, so that what a file's tests share is made
once; of the files below it gets one function at a time.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

SLOW = (
    "tests/faults/test_faults.py",
    "tests/end_to_end/test_console.py",
    "tests/end_to_end/test_main_job.py",
    "tests/clients/test_clients.py",
    "tests/end_to_end/test_learning.py",
    "tests/end_to_end/test_terminal.py",
    "tests/integration/shared/test_rabbitmq_faults.py",
    "tests/integration/gateway/test_all_events.py",
    "tests/faults/test_soak.py",
    "tests/end_to_end/test_command_line.py",
    "tests/end_to_end/test_documents.py",
    "tests/end_to_end/test_secrets.py",
    "tests/end_to_end/test_all_in_one.py",
    "tests/end_to_end",
    "tests/integration/gateway/test_degradation.py",
    "tests/integration/gateway/test_story.py",
    "tests/integration/trainer/test_train.py",
    "tests/integration/trainer/test_work.py",
    "tests/contract/test_job_store.py",
    "tests/security/test_process.py",
    "tests/security/test_broker_rights.py",
    "tests/integration/fetcher/test_hub.py",
    "tests/integration/fetcher/test_single_file_kinds.py",
    "tests/integration/inferencer",
    "tests/integration/trainer",
    "tests/integration",
    "tests/contract/test_bus.py",  # its many queues, though idle, keep a node busy from then on
    "tests/contract",
    "tests/security",
)
"""The first are begun first: from some minutes down to some seconds; all others take less."""
APART = (
    "tests/faults/test_faults.py",
    "tests/integration/trainer/test_train.py",
    "tests/integration/gateway/test_degradation.py",
)


class SlowFirst(LoadScopeScheduling):  # type: ignore[misc]
    """Hands the tests out in their order, a file or a function at a time."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def scope_of(nodeid: str) -> str:
    """The tests with this in common go to one worker."""
    path, _, test = nodeid.partition("::")
    return f"{path}::{test.partition('[')[0]}" if path in APART else path


def rank(nodeid: str) -> int:
    """The place of a test in the order: the slower, the earlier."""
    return next((place for place, begin in enumerate(SLOW) if nodeid.startswith(begin)), len(SLOW))
