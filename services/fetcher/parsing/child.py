"""The parsing child: the orders of one job.

``python -m services.fetcher.parsing.child DESCRIPTOR PARENT``, started by
:class:`services.fetcher.parser.Parser`.
"""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path

import msgspec

from services.fetcher.limits import over_file_size, over_memory
from services.fetcher.order import ParsingOrder
from services.fetcher.parsing.rlimits import apply, is_too_large, leave_network
from shared.child.process import RecordWriter, begin, importing, read_order
from shared.child.records import Done, Failed, Progress, Reading, Ready
from shared.dataset.manifest import short
from shared.errors import Full, Refused, reason_of

NICENESS = 3
"""At first: a small data set is read in a moment, which a full machine would make seconds of. The
parent lowers a child further that goes on computing."""
PROGRESS_SECONDS = 0.2
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Each thread takes address space: on a machine of many cores, more than there is for an order."""


def main() -> None:
    """Import what parses, report Ready, and carry out orders until the parent closes the pipe."""
    has_no_network = leave_network()
    os.environ |= ONE_THREAD
    writer = begin()
    with importing():
        from PIL import Image  # noqa: PLC0415 - slow

        from services.fetcher.parsing.tasks import perform  # noqa: F401, PLC0415 - slow

        Image.init()  # else the first picture waits for the decoders' modules

    writer.write(Ready(gpu="", offline=has_no_network))
    os.nice(NICENESS)
    while True:
        order: ParsingOrder = read_order(ParsingOrder)
        apply(order.limits)
        writer.write(carry_out(order, writer))


class Reporter:
    """Names each file before it is opened, so that the parent knows which one ended the child."""

    def __init__(self, writer: RecordWriter) -> None:
        self.file = ""
        self._writer = writer
        self._phase: object = None
        self._progress_at = 0.0

    def reading(self, file: str) -> None:
        self.file = short(file)
        self.keepalive()

    def keepalive(self) -> None:
        """Still the same file."""
        self._writer.write(Reading(file=self.file))

    def progress(self, **numbers: object) -> None:
        """Report each phase, and its numbers at most every ``PROGRESS_SECONDS``."""
        now = time.monotonic()
        if numbers.get("phase") != self._phase or now - self._progress_at >= PROGRESS_SECONDS:
            self._phase, self._progress_at = numbers.get("phase"), now
            self._writer.write(Progress(numbers=numbers))


def carry_out(order: ParsingOrder, writer: RecordWriter) -> Done | Failed:
    """Carry out an order and return its final record; the result is in its file."""
    from services.fetcher.parsing.tasks import perform  # noqa: PLC0415 - slow

    reporter, limits = Reporter(writer), order.limits
    try:
        result = perform(order.task, limits, reporter)
        Path(order.result).write_bytes(msgspec.json.encode(result))
    except Refused as error:
        return Failed(refused=True, reason=reason_of(error))
    except MemoryError:
        return Failed(refused=True, reason=over_memory(reporter.file, limits))
    except (Full, OSError) as error:
        if is_too_large(error):
            return Failed(refused=True, reason=over_file_size(reporter.file, limits))
        return Failed(refused=False, reason=reason_of(error))
    except Exception as error:  # noqa: BLE001 - the parent must learn of any error
        traceback.print_exc()
        return Failed(refused=False, reason=reason_of(error))
    return Done(summary={})


if __name__ == "__main__":
    main()
