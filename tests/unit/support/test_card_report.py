"""`make card` without a card: what it says, how it runs its sections, and what it writes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from bench.card import __main__ as command
from bench.card import filler, present, sections, suite
from bench.card.expected import expected_of
from bench.card.findings import Findings, Report, Result, as_markdown, write
from bench.card.setting import Setting, memory_of
from shared.request import Train

ROOT = Path(__file__).parents[3]
WRITES = """
import sys, pathlib
pathlib.Path(sys.argv[2], f"{sys.argv[1]}.json").write_text(sys.argv[3])
"""


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """By section, the Python that runs in its place, with its arguments."""
    codes: dict[str, list[str]] = {}
    monkeypatch.setattr(
        sections, "command_of", lambda name, _: [sys.executable, "-c", *codes[name]]
    )
    return codes


def answering(name: str, folder: Path, findings: Findings) -> list[str]:
    return [WRITES, name, str(folder), msgspec.json.encode(findings).decode()]


def test_without_a_card_it_says_so_and_what_to_do(tmp_path: Path) -> None:
    assert not present.has_card(tmp_path)
    if present.has_card():
        pytest.skip("this machine has a card")
    for module in ("bench.card.present", "bench.card"):
        said = subprocess.run(
            [sys.executable, "-m", module], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert said.returncode == 1
        assert "There is no NVIDIA card here" in said.stderr
        assert "install the driver first: docs/gpu.md" in said.stderr
        assert said.stdout == ""


def test_the_driver_or_its_tool_shows_that_there_is_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = SimpleNamespace(returncode=0, stdout=b"GPU 0: a card\n")
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: listed)
    assert present.has_card(tmp_path)
    listed.returncode = 9
    assert not present.has_card(tmp_path)

    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    assert present.has_card(tmp_path)


def test_each_section_is_recorded_and_the_next_goes_on(
    played: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = Setting("cpu", tmp_path)
    strange = Findings(facts={"chosen": "fp16"}, problems=["expected bf16"])
    played |= {
        "machine": answering("machine", tmp_path, Findings(facts={"torch": "2.10.0"})),
        "probe": ["raise RuntimeError('no kernel image')"],
        "gradients": answering("gradients", tmp_path, strange),
        "peaks": ["import time; print('step 1', flush=True); time.sleep(60)"],
    }
    sections_ = sections.SECTIONS | {"peaks": sections.SECTIONS["peaks"]._replace(limit=1.0)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "SECTIONS", sections_)
        results = command.look(list(played), setting)

    verdicts = {each.name: each.verdict for each in results}
    assert list(verdicts.values()) == ["as expected", "failed", "not as expected", "out of time"]
    assert "RuntimeError: no kernel image" in results[1].log
    assert results[3].log == "step 1"
    said = capsys.readouterr().out
    assert "[1/4] machine (at most 45 s) ..." in said
    assert "      expected bf16" in said


def test_what_is_left_of_ten_minutes_is_the_limit_of_the_rest(
    played: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played["machine"] = ["import time; time.sleep(60)"]
    monkeypatch.setattr(command, "IN_ALL", 0.5)
    (result,) = command.look(["machine"], Setting("cpu", tmp_path))
    assert result.verdict == "out of time"
    assert result.seconds < 10


def test_the_report_is_for_people_and_for_programs(tmp_path: Path) -> None:
    found = Findings(facts={"said": "a | b\nc"}, problems=["too slow"])
    result = Result(name="probe", about="What", verdict="failed", seconds=3.2, findings=found,
                    log="Traceback")  # fmt: skip
    report = Report(device="A card", written="2026-01-31T12:00:00+00:00", results=[result])

    page, data = write(report, tmp_path / "out")

    assert msgspec.json.decode(data.read_bytes(), type=Report) == report
    text = page.read_text()
    assert text == as_markdown(report)
    assert text.startswith("# Report of A card\n")
    for line in (
        "| probe | failed | 3 |",
        "- **too slow**",
        "| said | a \\| b<br>c |",
        "Traceback",
    ):
        assert line in text
    assert not report.is_good


def test_every_section_can_be_found_and_fits_in_ten_minutes_by_itself() -> None:
    for section in sections.SECTIONS.values():
        module, function = section.function.split(".")
        assert f"def {function}(" in (ROOT / f"bench/card/{module}.py").read_text()
        assert section.limit < sections.IN_ALL < 600


def test_a_card_that_torch_cannot_use_ends_the_command_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = b'{"device": "none", "name": "none", "problem": "its driver is 470"}'
    answer = SimpleNamespace(returncode=0, stdout=facts, stderr="")
    monkeypatch.setattr(command, "has_card", lambda: True)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    assert command.main(["--out", str(tmp_path / "out")]) == 1
    assert "The card cannot be used: its driver is 470" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("capability", "fields", "installed", "expected"),
    [
        ((7, 5), {}, True, ("fp16", "adamw8bit", "xformers")),
        ((8, 6), {}, True, ("bf16", "adamw8bit", "xformers")),
        ((9, 0), {"disable_xformers": True}, True, ("bf16", "adamw8bit", "sdpa")),
        ((12, 0), {}, True, ("bf16", "adamw8bit", "sdpa")),
        ((8, 9), {"amp": False, "useadam8bit": False}, False, ("fp32", "adamw_fused", "sdpa")),
    ],
)
def test_what_is_expected_of_a_card_follows_from_its_capability(
    capability: tuple[int, int],
    fields: dict[str, Any],
    *,
    installed: bool,
    expected: tuple[str, ...],
) -> None:
    train = Train(data_url="https://example.org/x.zip", **fields)
    assert expected_of(capability, train, xformers=installed) == expected
    off = expected_of(capability, train, xformers=installed, bf16=False)
    assert off.precision == ("fp32" if fields.get("amp") is False else "fp16")


@pytest.mark.parametrize(
    ("output", "status", "summary", "problems"),
    [
        ("..\n7 passed in 3.10s\n", 0, "7 passed in 3.10s", []),
        ("FAILED tests/x.py::y - E\n1 failed, 6 passed in 3s\n", 1, "1 failed, 6 passed in 3s",
         ["FAILED tests/x.py::y - E"]),
        ("7 skipped in 1.0s\n", 0, "7 skipped in 1.0s", ["no test ran on the card"]),
        ("", 4, "ended with 4", ["pytest ended with 4", "no test ran on the card"]),
    ],
)  # fmt: skip
def test_the_tests_of_a_card_are_read_from_pytests_closing_lines(
    output: str, status: int, summary: str, problems: list[str]
) -> None:
    found = suite.read(output, status, Setting("cuda", Path()))
    assert (found.facts["pytest"], found.problems) == (summary, problems)


def test_the_third_process_leaves_a_cards_last_mebibytes(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch  # noqa: PLC0415 - heavy, and not for every session

    free = [1024 * 2**20 + 12345]

    def empty(size: int, **_: Any) -> int:
        free[0] -= size
        return size

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free[0], 2**34))
    monkeypatch.setattr(torch, "empty", empty)
    held, left = filler.fill("cuda")
    assert filler.LEFT <= free[0] < filler.LEFT + 2**20
    assert left == "96 MiB"
    assert sum(held) == 928 * 2**20
    assert filler.fill("cpu")[0] == []


def test_memory_is_the_cards_or_the_childrens_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import os  # noqa: PLC0415

    import torch  # noqa: PLC0415

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3, 10))
    assert memory_of([], torch.device("cuda")) == 7
    assert memory_of([os.getpid()], torch.device("cpu")) > 2**20
