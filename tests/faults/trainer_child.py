"""A trainer's child that trains by a script: no torch, but real files, records and signals."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from services.trainer.order import METRICS, SNAPSHOTS, Outcome, TrainingOrder
from services.trainer.training.child import Stop
from shared.child.process import RecordWriter, begin, read_order
from shared.child.records import Done, Failed, Phase, Progress, Ready, Saved, Stopped
from shared.dataset.manifest import Manifest
from shared.errors import Interrupted, Passing, Refused
from tests.faults.mishaps import attempt_of, suffer
from tests.faults.script import Script, read

STATE = "steps"
"""A resume point's only file of ours: the number of steps done."""


class Training:
    """One order, step by step."""

    def __init__(self, order: TrainingOrder, writer: RecordWriter, stop: Stop) -> None:
        self._order = order
        self._script = script_of(order)
        self._attempt = attempt_of(order.out)
        self._writer = writer
        self._stop = stop
        self._out = Path(order.out)
        self._from = steps_done(order)
        self._done = self._from

    def run(self) -> Outcome:
        """All steps from the resume point on.

        Raises:
            Interrupted: asked to stop; a resume point is saved.
            Passing, Refused: the script wants it.
        """
        print(f"training {self._order.job} from step {self._from}", flush=True)  # noqa: T201
        self._writer.write(Phase(name="training"))
        while self._done < self._script.steps:
            if self._stop.requested:
                self._save_resume_point()
                raise Interrupted("stopped")
            self._step()
        return self._finish()

    def _step(self) -> None:
        script = self._script
        suffer(script.mishap("trainer", self._done + 1, self._attempt))
        time.sleep(script.step_seconds)
        self._done += 1
        numbers = {"step": self._done, "steps": script.steps, "epoch": 0, "loss": 0.5}
        self._writer.write(Progress(numbers=numbers))
        self._save_what_is_due()

    def _save_what_is_due(self) -> None:
        if due(self._done, self._script.resume_every):
            self._save_resume_point()
        if due(self._done, self._script.checkpoint_every):
            self._save_checkpoint()
        if due(self._done, self._order.sample_every):
            self._save_snapshot()

    def _save_resume_point(self) -> None:
        folder = self._fresh(f"resume-{self._done}")
        (folder / STATE).write_text(str(self._done))
        self._say_saved("resume_point", folder)

    def _save_checkpoint(self) -> None:
        path = self._file(f"step-{self._done}.safetensors")
        self._say_saved("checkpoint", path)

    def _save_snapshot(self) -> None:
        """Unless two stand, as the real one looks before it writes."""
        if len(list((self._out / SNAPSHOTS).glob("*"))) < 2:
            folder = self._fresh(f"{SNAPSHOTS}/{self._done}")
            (folder / "weights").write_bytes(self._content())
            self._say_saved("snapshot", folder)

    def _say_saved(self, kind: str, path: Path) -> None:
        self._writer.write(Saved(kind=kind, path=str(path), step=self._done, epoch=0))

    def _finish(self) -> Outcome:
        """The files that the parent stores, and where this attempt began as a warning."""
        self._writer.write(Phase(name="saving"))
        model = self._fresh("model")
        (model / "weights").write_bytes(self._content())
        return Outcome(
            checkpoint=str(self._file("last-scripted.safetensors")),
            model=str(model),
            metrics=str(self._file(METRICS, b'{"step": %d}\n' % self._done)),
            tensorboard=str(self._file("events.out.tfevents.scripted")),
            seed=self._order.seed, steps=self._done, updates=self._done, epochs=1,
            images=self._done, loss=0.5, validation=None,
            precision="fp32", optimizer="none", attention="none", skipped_updates=0,
            warnings=[f"trained from step {self._from}"],
        )  # fmt: skip

    def _file(self, name: str, content: bytes | None = None) -> Path:
        self._out.mkdir(parents=True, exist_ok=True)
        path = self._out / name
        path.write_bytes(content or self._content())
        return path

    def _content(self) -> bytes:
        """The same on every attempt: whatever is made twice must be the same."""
        return f"{self._order.job} {self._done}\n".encode().ljust(self._script.bytes, b".")

    def _fresh(self, name: str) -> Path:
        folder = self._out / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def due(done: int, every: int | None) -> bool:
    return bool(every) and done % (every or 1) == 0


def script_of(order: TrainingOrder) -> Script:
    return read(Manifest.read(Path(order.dataset)).pictures[0].caption)


def steps_done(order: TrainingOrder) -> int:
    """By the resume point; 0: there is none."""
    return int((Path(order.resume) / STATE).read_text()) if order.resume else 0


def carry_out(order: TrainingOrder, writer: RecordWriter, stop: Stop) -> Done | Stopped | Failed:
    """The last word on an order, as the real child decides it."""
    try:
        return Done(summary=msgspec.to_builtins(Training(order, writer, stop).run()))
    except Interrupted:
        return Stopped()
    except (Passing, Refused) as error:
        return Failed(refused=isinstance(error, Refused), reason=str(error))


def main() -> None:
    writer, stop = begin(), Stop()
    writer.write(Ready(gpu="scripted", teraflops=1.0))
    order: TrainingOrder = read_order(TrainingOrder)
    stop.idle = False
    writer.write(carry_out(order, writer, stop))


if __name__ == "__main__":
    main()
