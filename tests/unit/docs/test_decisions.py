"""docs/adr/README.md lists every decision."""

from __future__ import annotations

import re

from tests.support.documents import ROOT

FOLDER = ROOT / "docs" / "adr"


def test_every_decision_is_listed_by_its_title_in_their_order() -> None:
    written = [
        (page.read_text().partition("\n")[0].removeprefix("# "), page.name)
        for page in sorted(FOLDER.glob("0*.md"))
    ]
    listed = re.findall(r"^- \[(.+)\]\((.+)\)$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert listed == written
