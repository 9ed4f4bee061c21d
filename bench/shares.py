"""Where a training's time goes. On a card the host only queues the work: there it says nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from time import perf_counter
from typing import Any


class Shares:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        began = perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + perf_counter() - began

    def measure(self, owner: Any, name: str, part: str) -> None:
        """Count the time within a function of a module or a class, from now on."""
        function = getattr(owner, name)

        @wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.of(part):
                return function(*arguments, **options)

        setattr(owner, name, timed)
