"""What a job shall do, as a person says it, becomes the body of ``/run``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from types import MappingProxyType
from typing import Any, NamedTuple

from everydream.image_options import NO_DRAWING, Drawing
from everydream.outcome import Misused, reason_of
from everydream.presets import fields_of
from services.gateway.jobs.request_parser import Invalid, parse_request
from shared.errors import Refused
from shared.presets import Preset
from shared.request import JOB_ID

STAND_IN = "https://example.com/dataset.zip"
"""In place of the URL of data that is not uploaded yet."""
NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
EXPECTED_CHANGE = "expected name=value in one word, such as --set max_epochs=100"

WEIGHED = re.compile(r"(?P<model>.+):(?P<weight>-?([0-9]+(\.[0-9]*)?|\.[0-9]+))")


class JobSpec(NamedTuple):
    """What a job shall do."""

    data: str | None = None
    """A folder, a zip, a URL, or the id of a check; None: what the file says."""
    model: str | None = None
    """Draw with it, and train nothing."""
    config: Path | None = None
    """A JSON file: a whole request, its ``input``, or the fields of its ``train``."""
    changes: Sequence[str] = ()
    """``name=value`` for fields of ``train``."""
    drawing: Drawing = NO_DRAWING
    preset: Preset | None = None
    loras: Sequence[str] = ()
    """Added to the model: each a model, or ``model:weight``."""
    base: str | None = None
    """Of a LoRA that ``model`` names."""

    @property
    def file(self) -> Path | None:
        """What is to be uploaded; None: the gateway has the data, or fetches it."""
        if self.data is None or "://" in self.data or self.check:
            return None
        return Path(self.data)

    @property
    def check(self) -> str | None:
        """The check whose pictures are to be trained on; None: none, or not by its id alone."""
        return self.data if self.data is not None and re.search(JOB_ID, self.data) else None

    @property
    def options(self) -> str:
        """The options of a further ``run`` that shall do the same with other data, for a shell."""
        words = ["--preset", self.preset] if self.preset else []
        words += ["--config", str(self.config)] if self.config else []
        for change in self.changes:
            words += [] if change.startswith("data_url=") else ["--set", change]
        words += self.drawing.options
        return "".join(f" {quote(word)}" for word in words)

    def request(
        self, data_url: str | None = None, of_check: Mapping[str, Any] = NO_OPTIONS
    ) -> dict[str, Any]:
        """The body of ``/run``.

        Args:
            data_url: of the uploaded file.
            of_check: fields of ``train`` that a check has, where nothing else is said.

        Raises:
            Misused: the words do not fit one another.
            Refused: the file is invalid.
        """
        request = self._read_config()
        inputs = dict(request["input"])
        if self.model is not None:
            inputs.setdefault("model", self._model(self.model))
        if self.base is not None:
            inputs["base"] = self.base
        if "model" in inputs:
            self._expect_no_training(inputs)
        else:
            given = {**of_check, **fields_of(self.preset), **inputs.get("train", {})}
            inputs["train"] = self._train(given, data_url)
        inputs["inference"] = self.drawing.entries(inputs.get("inference"))
        return {**request, "input": inputs}

    def checked(self) -> dict[str, Any]:
        """The body of ``/run`` with a URL in place of what is not uploaded yet.

        Raises:
            Misused: the words do not fit one another.
            Refused: the file or the request is invalid; names every mistake.
        """
        request = self.request(STAND_IN if self.file else None)
        try:
            parse_request(request)
        except Invalid as error:
            raise Refused("\n  - ".join(["the request is refused:", *error.mistakes])) from None
        return request

    def _model(self, first: str) -> str | list[Any]:
        return [first, *map(_weighed, self.loras)] if self.loras else first

    def _train(self, given: dict[str, Any], data_url: str | None) -> dict[str, Any]:
        changes = changes_in(self.changes)
        train = {**given, **changes}
        url = data_url or self.data
        if self.data is not None and "data_url" in changes:
            raise Misused("--set data_url: DATA is given, too; give one of them")
        if url is not None:
            return {**train, "data_url": url}
        if "data_url" not in train:
            raise Misused("nothing to train on: give a folder of images, a zip, a URL or a check")
        return train

    def _expect_no_training(self, inputs: dict[str, Any]) -> None:
        if "train" in inputs:
            return  # the request's own check says it better
        words = {"DATA": self.data, "--set": self.changes, "--preset": self.preset}
        for name, given in words.items():
            if given:
                raise Misused(f"{name}: a model draws, and nothing is trained with `model`")

    def _read_config(self) -> dict[str, Any]:
        """A request, whatever part of it the file holds."""
        if self.config is None:
            return {"input": {}}
        given = _read_json(self.config)
        if isinstance(given, dict) and not given.keys() & {"input", "train", "model", "inference"}:
            given = {"train": given}
        if isinstance(given, dict) and "input" not in given:
            given = {"input": given}
        inputs = given.get("input") if isinstance(given, dict) else None
        if not isinstance(inputs, dict) or not isinstance(inputs.get("train", {}), dict):
            raise Refused(
                f"{self.config}: expected an object: a whole request, its input, or its train"
            )
        return dict(given)


def changes_in(texts: Sequence[str]) -> dict[str, Any]:
    """Fields and their values, each of which is JSON or else plain text.

    Raises:
        Misused: a text is no such thing, or two of them give a field different values.
    """
    changes: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise Misused(f"--set {text}: {EXPECTED_CHANGE}")
        parsed = _json_or_text(value)
        if name in changes and repr(changes[name]) != repr(parsed):
            raise Misused(f"--set {name} is given twice, as {changes[name]!r} and as {parsed!r}")
        changes[name] = parsed
    return changes


def _json_or_text(value: str) -> Any:
    try:
        return _parsed(value)
    except (ValueError, RecursionError):
        return value


def _parsed(text: str) -> Any:
    """The value of a JSON text. Raises ValueError: it is none. Raises Misused: a name is twice."""
    return json.loads(text, object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise Misused(f"{twice!r} stands twice in one object; write it once")
    return dict(pairs)


def _weighed(lora: str) -> str | dict[str, Any]:
    """``model:0.8`` as the endpoint takes it."""
    if match := WEIGHED.fullmatch(lora):
        return {"model": match["model"], "weight": float(match["weight"])}
    return lora


def _read_json(file: Path) -> Any:
    """A file's JSON, with or without the mark that some programs put before UTF-8.

    Raises:
        Refused: it cannot be read, or is no JSON in UTF-8.
    """
    try:
        return _parsed(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        reason = reason_of(error)
    except UnicodeDecodeError as error:
        reason = f"{file} is not in UTF-8 (its byte {error.start + 1}); save it as UTF-8"
    except Misused as error:
        reason = f"{file}: {error}"
    except RecursionError:
        reason = f"{file}: its lists and objects are nested too deeply"
    except ValueError as error:
        reason = f"{file} is no JSON: {error}"
    raise Refused(f"--config: {reason}")
