"""The command ``everydream``, but the GPU services' children are warm, and sample rows rough.

``python -m tests.support.warm service trainer``, or ``serve``. All else is the product. With
``--full-rows`` in front, sample rows take the product's number of steps.
"""

from __future__ import annotations

import sys

import services.inferencer.sample_rows
import services.inferencer.work
import services.trainer.work
from everydream.cli import main

ROUGH_STEPS = 4

if __name__ == "__main__":
    if sys.argv[1] == "--full-rows":
        del sys.argv[1]
    else:
        services.inferencer.sample_rows.STEPS = ROUGH_STEPS
    services.trainer.work.CHILD = "tests.support.warm.trainer"
    services.inferencer.work.CHILD = "tests.support.warm.inferencer"
    main()
