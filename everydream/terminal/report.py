"""What is said of a job for good: its pictures, its end, and what to do next."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from everydream.client import ENDS
from everydream.terminal.screen import STAGES
from everydream.terminal.words import duration, size
from shared.dataset.captions import MAX_TOKENS
from shared.request import JOB_ID
from shared.words import counted

LIMITS = ("executionTimeout", "ttl")
NAMED = 20
"""Pictures that are named for one reason; more are counted."""
PASSED_OVER = "later ones were due, or the training was over, before they were drawn"


def dataset_lines(report: dict[str, Any]) -> Iterator[str]:
    """How many pictures are used, and each one that is left out, with its reason."""
    left_out = report.get("skipped_count", 0)
    held = report.get("held_out", 0)
    yield (
        f"{counted(report['images'], 'picture')} used"
        + (f", {held} more held out to measure the loss" if held else "")
        + (f"; {left_out} left out:" if left_out else "; none left out")
    )
    for each in report.get("skipped", ()):
        yield f"  left out: {each['file']}: {each['reason']}"
    if more := left_out - len(report.get("skipped", ())):
        yield f"  left out: {more} more"
    yield from _captions(report)
    yield from _named(report, "undersized", "smaller than trained at, enlarged")
    duplicates = [f"{each['file']} = {each['same_as']}" for each in report.get("duplicates", ())]
    yield from _list("the same picture twice", duplicates, report.get("duplicates_count", 0))
    if estimate := report.get("estimate"):
        minutes = estimate["minutes"]
        about = "" if minutes is None else f", about {duration(minutes * 60)}"
        yield (
            f"{counted(report['steps'], 'step')}{about} of training ({estimate['rate']}), up to"
            f" {size(estimate['bytes'])} stored"
        )
    yield from (f"warning: {each}" for each in report.get("warnings", ()))


def _captions(report: dict[str, Any]) -> Iterator[str]:
    captions = report.get("captions", {})
    sources = [
        f"{captions[name]} from {words}"
        for name, words in (("from_names", "file names"), ("from_files", "text files"))
        if captions.get(name)
    ]
    sources += [f"{captions['edited']} edited"] if captions.get("edited") else []
    if sources:
        yield f"captions: {', '.join(sources)}"
    yield from _named(report, "missing_captions", "without a caption", captions.get("missing"))
    yield from _named(report, "empty_captions", "an empty caption file", captions.get("empty"))
    yield from _named(
        report,
        "over_long_captions",
        f"a caption of more than {MAX_TOKENS} tokens, whose rest has no effect",
        captions.get("over_long"),
    )


def _named(
    report: dict[str, Any], name: str, words: str, count: int | None = None
) -> Iterator[str]:
    count = report.get(f"{name}_count", 0) if count is None else count
    yield from _list(words, report.get(name, []), count)


def _list(words: str, names: list[str], count: int) -> Iterator[str]:
    if count:
        shown = names[:NAMED]
        more = [f"and {count - len(shown)} more"] if count > len(shown) else []
        yield f"{words}: {', '.join([*shown, *more])}"


def picture_lines(report: dict[str, Any]) -> Iterator[str]:
    """Single pictures with the numbers and names by which they are changed."""
    pictures = report.get("pictures", ())
    for each in pictures:
        number = f"{each['number']:>4}  " if each.get("number") else "      "
        yield f"{number}{each['file']}: {each['caption'] or '(no caption)'}"
        if (factor := each.get("multiply", 1)) != 1:
            yield f"        multiply {factor:g}: trained on {factor:g} times per epoch"
        yield from (f"        {remark}" for remark in each["remarks"])
    if (more := report["images"] + report.get("held_out", 0) - len(pictures)) > 0 and pictures:
        yield f"and {more} more"


def warnings_of(status: dict[str, Any]) -> list[str]:
    """The warnings of a job so far, or all of one that has ended."""
    output = status.get("output") or {}
    return [*output.get("warnings", ()), *(output.get("train") or {}).get("warnings", ())]


def unreported_warnings(status: dict[str, Any]) -> list[str]:
    """The warnings of a job that are not in the report on its pictures."""
    reported = ((status.get("output") or {}).get("dataset") or {}).get("warnings", ())
    return [each for each in warnings_of(status) if each not in reported]


def failure_line(retry: dict[str, Any]) -> str:
    """A try of a stage that failed, and is followed by another."""
    stage, failed = STAGES.get(retry["stage"], retry["stage"]), retry["number"] - 1
    return f"{stage}: try {failed} of {retry['tries']} failed: {retry['reason'] or 'unknown'}"


def missing_samples(status: dict[str, Any]) -> list[str]:
    """Rows of samples that a completed training has not, or only partly.

    A row is drawn only while nothing more urgent is: it is no fault if the training was over first.
    Rows that its own warnings name are not among them.
    """
    train = (status.get("output") or {}).get("train") or {}
    samples, steps = train.get("samples", ()), train.get("steps")
    every = (status["input"].get("train") or {}).get("sample_steps") or 250
    if status["status"] != "COMPLETED" or not samples or not steps:
        return []
    rows = Counter(each["step"] for each in samples)
    said = " ".join(each for each in warnings_of(status) if "samples" in each)
    named = {int(word) for word in said.replace(",", " ").split() if word.isdecimal()}
    known = rows.keys() | named
    passed_over = [str(step) for step in range(0, steps, every) if step not in known]
    whole = max(rows.values())
    lost = [str(steps)] if steps not in known else []
    lost += [f"{step} ({count} of {whole})" for step, count in rows.items() if count < whole]
    return [
        *([f"no samples of step {', '.join(passed_over)}: {PASSED_OVER}"] if passed_over else []),
        *([f"warning: samples of step {', '.join(lost)} are missing"] if lost else []),
    ]


def outcome_lines(status: dict[str, Any]) -> Iterator[str]:
    """How a job has ended, what it has made, and its warnings."""
    output = status.get("output") or {}
    reason = f": {status['error']}" if status.get("error") else ""
    yield f"{status['status']}{reason}"
    if train := output.get("train"):
        yield from _training(train, status)
    if images := output.get("inference"):
        drawn = [each for each in images if each.get("image")]
        yield f"{counted(len(drawn), 'image')} drawn"
        for each in images:
            if not each.get("image"):
                yield f"  not drawn: {each['prompt']}: {each.get('error', 'unknown')}"
    shown = unreported_warnings(status) if is_check(status) else warnings_of(status)
    yield from (f"warning: {each}" for each in shown)
    yield from missing_samples(status)


def _training(train: dict[str, Any], status: dict[str, Any]) -> Iterator[str]:
    if "steps" not in train:
        return
    loss = f", last loss {train['loss']:.4f}" if train.get("loss") is not None else ""
    yield (
        f"{counted(train['epochs'], 'epoch')}, {counted(train['steps'], 'step')},"
        f" {counted(train['images'], 'picture')} seen{loss}"
    )
    yield (
        f"{train['optimizer']}, {train['precision']}, {train['attention']} on {status['gpu']};"
        f" waited {duration(status['delayTime'] / 1000)},"
        f" ran {duration(status['executionTime'] / 1000)}"
    )


def files_lines(
    folder: Path, artifacts: list[dict[str, Any]], status: dict[str, Any]
) -> Iterator[str]:
    """Where the files of a result are, how many of which kind, and what is not there."""
    counts = Counter(str(each["kind"]) for each in artifacts)
    kinds = [
        counted(counts[kind], kind) for kind in ("checkpoint", "image", "sample") if counts[kind]
    ]
    kinds += ["report.html"] if counts["report"] else []
    held = ", ".join(kinds) if artifacts else "summary.json alone"
    yield f"files in {folder}/" + (f": {held}" if held else "")
    if status["status"] not in ENDS:
        yield "the job has not ended: what it still makes is not there"
    elif missing := ", ".join(_not_there(status)):
        yield f"not there: {missing}, because the job is {status['status']}"


def lost_lines(names: Sequence[str], again: str) -> Iterator[str]:
    """The files of a result that could not be had; ``again`` is the command that tries again."""
    yield from _list(f"missing, {counted(len(names), 'file')}", [*names], len(names))
    if names:
        yield f"fetch them again (a link into a bucket ends after seven days):  {again}"


def _not_there(status: dict[str, Any]) -> Iterator[str]:
    """What a job that has ended, but is not COMPLETED, was to make and has not."""
    output, asked = status.get("output") or {}, status["input"]
    if status["status"] == "COMPLETED":
        return
    if is_check(status):
        yield "the report"
        return
    if "train" in asked and not (output.get("train") or {}).get("checkpoint_url"):
        yield "the finished model"
    drawn = [each for each in output.get("inference") or () if each.get("image")]
    if asked.get("inference") and not drawn:
        yield "the images"


def next_steps(status: dict[str, Any], flags: str, into: str = "") -> Iterator[str]:
    """What to do next with a job that has ended; ``flags`` reach its gateway.

    ``into`` is the flag for the folder of its results.
    """
    job, output = status["id"], status.get("output") or {}
    if is_check(status) and status["status"] == "COMPLETED":
        yield (
            "change captions, or leave pictures out:  everydream edit"
            f" {job} --caption 'NAME=TEXT' --leave-out NAME{flags}"
        )
        yield f"train on exactly these pictures, for a day:  everydream run {job}{flags}"
    if (output.get("train") or {}).get("checkpoint_url"):
        yield f'draw more with it:  everydream draw {job} --prompt "..."{flags}'
    if status["status"] not in ENDS:
        yield f"watch it, and fetch its results at its end:  everydream follow {job}{into}{flags}"
    if status["status"] == "TIMED_OUT":
        yield from _with_more_time(status, flags)
    if status["status"] == "FAILED":
        yield from _again(status, flags)


def _with_more_time(status: dict[str, Any], flags: str) -> Iterator[str]:
    """What to do about a limit, which a retry alone meets again unless a little was missing."""
    name = str(status.get("error", "")).partition(" ")[0]
    limit = name if name in LIMITS else LIMITS[0]
    yield (
        f"more time for a job: policy.{limit} of the request, in milliseconds, such as"
        f' {{"input": {{}}, "policy": {{"{limit}": 172800000}}}} as the file of --config'
    )
    yield (
        f"go on from where it stopped, for as long again:  everydream retry {status['id']}{flags}"
    )


def _again(status: dict[str, Any], flags: str) -> Iterator[str]:
    """How to go on after a failure; the same upload would be refused again."""
    output, error = status.get("output") or {}, str(status.get("error", ""))
    data = str((status["input"].get("train") or {}).get("data_url", ""))
    is_ours = "/uploads/" in data or re.search(JOB_ID, data) is not None
    was_refused = status["status"] == "FAILED" and not error.startswith("staging failed")
    if is_ours and was_refused and output.get("dataset") == {}:
        command = "check" if is_check(status) else "run"
        yield f"mend what it says, and begin anew:  everydream {command} DATA{flags}"
    else:
        yield f"try again:  everydream retry {status['id']}{flags}"


def instead_of_a_sample(status: dict[str, Any], flags: str) -> str:
    """What to do if a job that does not train takes no command."""
    job, output = status["id"], status.get("output") or {}
    stage, is_training = output.get("stage"), bool(status["input"].get("train"))
    is_trained = is_training and stage in ("generation", "model_publication", "image_publication")
    if is_trained or (output.get("train") or {}).get("checkpoint_url"):
        return f'draw with its model instead:  everydream draw {job} --prompt "..."{flags}'
    if is_training and status["status"] in ("IN_QUEUE", "IN_PROGRESS"):
        return f"watch it, and ask again while it trains:  everydream follow {job}{flags}"
    return ""


def is_check(status: dict[str, Any]) -> bool:
    """Whether a job that has ended was a check of its dataset alone."""
    return (status.get("output") or {}).keys() - {"warnings"} == {"dataset"}


def while_it_checks(check: str, options: str, flags: str) -> str:
    """What can be done with a check that goes on without being watched.

    ``options`` are those of the command that was to train on its pictures.
    """
    return (
        f"The check goes on; nothing is trained.\n"
        f"  watch it again:  everydream follow {check}{flags}\n"
        f"  show its report:  everydream show {check}{flags}\n"
        f"  train on its pictures, once it is COMPLETED:"
        f"  everydream run {check}{options}{flags}\n"
        f"  end it:  everydream cancel {check}{flags}"
    )


def while_it_runs(job: str, into: str, flags: str) -> str:
    """What can be done with a job that goes on without being watched; results go ``into``."""
    return (
        f"The job goes on.\n"
        f"  watch it again, and fetch its results:  everydream follow {job}{into}{flags}\n"
        f"  end the training now, and keep what it has learnt:  everydream stop {job}{flags}\n"
        f"  end it, and throw away what it has learnt:  everydream cancel {job}{flags}"
    )


def into_flag(output: Path | None) -> str:
    """The flag of a further command for the same folder of results."""
    return f" --output {quote(str(output))}" if output else ""
