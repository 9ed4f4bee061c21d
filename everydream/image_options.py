"""The options of a command that say what to draw, and the entries of ``inference`` they make."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Annotated, Any

from cyclopts import Group, Parameter

from everydream.outcome import Misused
from shared.request import Scheduler

GROUP = Group("What to draw", sort_key=1)
SIZE = re.compile(r"(\d+)(?:[xX\u00d7](\d+))?")


@Parameter(name="*")
@dataclass(frozen=True)
class Drawing:
    """Images to draw; what is None stays at the endpoint's default, or as the file says."""

    prompts: Annotated[
        tuple[str, ...],
        Parameter(
            name="--prompt", metavar="TEXT", group=GROUP, show_default=False,
            help="Draw this with the model; may be repeated.",
        ),
    ] = ()  # fmt: skip
    negative: Annotated[
        str | None, Parameter(metavar="TEXT", group=GROUP, help="What not to draw.")
    ] = None
    count: Annotated[
        int | None, Parameter(group=GROUP, help="Images of each prompt: 1 to 10, 1 by default.")
    ] = None
    size: Annotated[
        str | None,
        Parameter(metavar="SIZE", group=GROUP, help="A side or width x height: 512, 512x768."),
    ] = None
    steps: Annotated[
        int | None,
        Parameter(group=GROUP, help="Steps of the scheduler: 1 to 500, 50 by default."),
    ] = None
    guidance: Annotated[
        float | None,
        Parameter(group=GROUP, help="How closely to keep to the prompt: 1 to 20, 7.5 by default."),
    ] = None
    scheduler: Annotated[Scheduler | None, Parameter(group=GROUP, help="K-LMS by default.")] = None
    seed: Annotated[
        int | None, Parameter(group=GROUP, help="The same seed draws the same image.")
    ] = None

    @property
    def options(self) -> list[str]:
        """The words of a command that say the same."""
        words = [f"--prompt={prompt}" for prompt in self.prompts]
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return words + [
            f"--{name}={value}"
            for name, value in given.items()
            if name != "prompts" and value is not None
        ]

    def entries(self, given: Any) -> list[Any]:
        """The entries of ``inference``: a file's, then one for each prompt.

        What is set here counts for all of them, as ``--set`` counts more than a file.

        Raises:
            Misused: there is nothing to draw, but it is said how; or the size is none.
        """
        settings = self._settings()
        entries = [*(given if isinstance(given, list) else [] if given is None else [given])]
        entries += [{"prompt": prompt} for prompt in self.prompts]
        if settings and not entries:
            raise Misused("nothing is to be drawn: give --prompt")
        return [{**entry, **settings} if isinstance(entry, dict) else entry for entry in entries]

    def _settings(self) -> dict[str, Any]:
        settings = {
            "negative_prompt": self.negative,
            "num_outputs": self.count,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "scheduler": self.scheduler,
            "seed": self.seed,
            **self._sides(),
        }
        return {name: value for name, value in settings.items() if value is not None}

    def _sides(self) -> dict[str, int]:
        if self.size is None:
            return {}
        if not (match := SIZE.fullmatch(self.size)):
            raise Misused(f"--size {self.size}: expected a side or width x height: 512, 512x768")
        return {"width": int(match[1]), "height": int(match[2] or match[1])}


NO_DRAWING = Drawing()
