"""The command ``everydream`` with one thing changed: the GPU services' children are warm.

``python -m tests.support.warm service trainer``, or ``serve``. All else is the product.
"""

from __future__ import annotations

import services.inferencer.work
import services.trainer.work
from everydream.cli import main

if __name__ == "__main__":
    services.trainer.work.CHILD = "tests.support.warm.trainer"
    services.inferencer.work.CHILD = "tests.support.warm.inferencer"
    main()
