"""What docs/releasing.md says of the version, the images and the licences."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

from shared.release import release
from tests.support.compose import read_compose
from tests.support.documents import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = PROJECT["project"]["version"]
CONSOLE = ROOT / "services" / "gateway" / "console"
TAG = "${IMAGE_TAG:-dev}"
ONLY_IN_ITS_README = {"node_modules/combine-errors": "MIT"}


def test_the_version_is_written_in_one_place() -> None:
    assert release() == VERSION, "another version is installed: `make check` installs this one"
    for document in ("openapi.json", "asyncapi.json"):
        told = json.loads((ROOT / "docs" / document).read_text())["info"]["version"]
        assert told == VERSION, f"{document} is of another version: make examples"
    assert "version" not in json.loads((CONSOLE / "package.json").read_text())


def test_a_version_is_told_of_before_it_is_given_out() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text()
    told = re.findall(r"^## (\d+\.\d+\.\d+) - \d{4}-\d\d-\d\d$", changes, re.MULTILINE)
    assert told[:1] in ([], [VERSION])


def test_every_image_of_ours_has_a_name_and_a_version() -> None:
    services = read_compose()["services"]
    names = {name: each["image"] for name, each in services.items() if "build" in each}
    assert len(names) > 5
    assert names == {
        name: f"everydream-{kind}:{TAG}{suffix}"
        for name in names
        for kind, _, device in [name.partition("-")]
        for suffix in [{"": "", "cpu": "-cpu", "gpu": "-cuda"}[device]]
    }


def test_what_the_consoles_page_is_made_of_may_be_passed_on() -> None:
    allowed = re.split(r";\s*", PROJECT["tool"]["pip-licenses"]["allow-only"].strip())
    packages = json.loads((CONSOLE / "package-lock.json").read_text())["packages"]
    shipped = {
        name: each.get("license", ONLY_IN_ITS_README.get(name))
        for name, each in packages.items()
        if name and not each.get("dev")
    }
    assert len(shipped) > 5
    assert {name: found for name, found in shipped.items() if found not in allowed} == {}
