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
    "tests/end_to_end/test_learning.py",
    "tests/faults/test_soak.py",
    "tests/clients/test_clients.py",
    "tests/end_to_end/test_main_job.py",
    "tests/end_to_end/test_documents.py",
    "tests/end_to_end/test_secrets.py",
    "tests/end_to_end/test_all_in_one.py",
    "tests/end_to_end/test_compose.py",
    "tests/end_to_end/test_samples.py",
    "tests/security/test_broker_rights.py",
    "tests/integration/shared/test_rabbitmq_faults.py",
    "tests/end_to_end/test_direct_producer.py",
    "tests/integration/gateway/test_degradation.py",
    "tests/integration/inferencer/test_schedulers_on_tiny.py",
    "tests/integration/gateway/test_cancel_race.py",
    "tests/end_to_end/test_demo.py",
    "tests/integration/trainer/test_train.py",
    "tests/end_to_end/test_command_line.py",
    "tests/integration/everydream/test_make_tiny_model.py",
    "tests/integration/gateway/test_any_request.py",
    "tests/integration/gateway/test_story.py",
    "tests/integration/trainer/test_options.py",
    "tests/integration/fetcher/test_single_file_kinds.py",
    "tests/contract/test_job_store.py",
    "tests/integration/trainer/test_work.py",
    "tests/integration/shared/test_single_file.py",
    "tests/contract/test_object_store.py",
    "tests/contract/test_bus.py",
    "tests/integration/inferencer",
    "tests/integration/trainer",
    "tests/integration",
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
