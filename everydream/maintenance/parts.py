"""What a deployment keeps, each with a backup of its own."""

from typing import Literal

Part = Literal["database", "store"]
PARTS: tuple[Part, ...] = ("database", "store")
