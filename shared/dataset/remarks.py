"""What a report says of single pictures and of many together, and what of it is about a caption."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Literal

from shared.dataset.captions import MAX_TOKENS, controls_in, repeats_tags
from shared.dataset.manifest import named, short
from shared.words import counted

Doubt = Literal["no_caption", "empty_file", "camera_name", "unreadable_name", "cut", "empty_tag"]
"""About a picture's caption; the last is seen in the caption itself, and written nowhere else."""

NO_CAPTION = "no caption: trained on without words"
EMPTY_FILE = "its caption file is empty"
CAMERA_NAME = "its caption is the name that a camera or a counter gave"
UNREADABLE_NAME = "its name is in an unknown encoding, and its caption may be garbage"
CUT = "its caption is cut to "
EMPTY_TAG = "a tag of its caption is empty, which is trained on as it is"
TOO_LONG = f"its caption has more than {MAX_TOKENS} tokens: the rest has no effect"
IN_NAME = "in the caption that is its name, "
IN_EDIT = "in its changed caption, "
REPEATED_IN_EDIT = "a tag of its changed caption is there twice, and counts once"
SECOND_PROMPT = " has a main prompt"
"""How the remark ends on a caption file that stands behind another one."""
ENLARGED = ": enlarged, and less sharp for it"
SAME_PIXELS = "the same pixels as "
HELD_OUT = "held out for validation: not trained on"

BEGINNINGS: dict[Doubt, str] = {
    "no_caption": NO_CAPTION,
    "empty_file": EMPTY_FILE,
    "camera_name": CAMERA_NAME,
    "unreadable_name": UNREADABLE_NAME,
    "cut": CUT,
    "empty_tag": EMPTY_TAG,
}
"""Of the remark on each doubt."""
ABOUT_CAPTIONS = (*BEGINNINGS.values(), TOO_LONG, IN_NAME, IN_EDIT, REPEATED_IN_EDIT)

Doubtful = Callable[[Doubt], Sequence[tuple[str, str]]]
"""The pictures of whose captions there is a doubt: names and captions."""


def remark_on(doubt: Doubt, limit: int) -> str:
    """What the report says of a doubt, beside a picture whose caption has at most ``limit``."""
    return f"{CUT}{counted(limit, 'character')}" if doubt == "cut" else BEGINNINGS[doubt]


def has_doubt(remarks: Collection[str], doubt: Doubt) -> bool:
    return any(remark.startswith(BEGINNINGS[doubt]) for remark in remarks)


def is_about_caption(remark: str) -> bool:
    """Whether a remark no longer holds when somebody gives the picture another caption."""
    return remark.startswith(ABOUT_CAPTIONS) or remark.endswith(SECOND_PROMPT)


def remarks_on_edit(caption: str) -> Iterator[str]:
    """What of a caption that somebody has given is not taken as it is."""
    if removed := controls_in(caption):
        yield f"{IN_EDIT}{removed}"
    if repeats_tags(caption):
        yield REPEATED_IN_EDIT


def same_pixels(name: str) -> str:
    """The remark on a picture that is the same as an earlier one."""
    return f"{SAME_PIXELS}{short(name)}"


def summaries(
    skipped: Sequence[tuple[str, str]], skipped_count: int, doubtful: Doubtful
) -> Iterator[str]:
    """One line for each kind of trouble with images and captions.

    Args:
        skipped: the first files that are not used, with the reasons.
        skipped_count: how many there are.
        doubtful: see :data:`Doubtful`.
    """
    if skipped_count:
        files = [f"{file} ({reason})" for file, reason in skipped]
        yield f"not used, {counted(skipped_count, 'file')}: {named(files, skipped_count)}"
    if names := _with_captions(doubtful("camera_name")):
        yield (
            f"{counted(len(names), 'caption')} from a name that a camera or a counter"
            " gave: the model learns that word, not what is shown. Name the pictures by what"
            " they show (a photo of ted_1.jpg), or put a text beside each (IMG_1.txt for"
            f" IMG_1.jpg): {named(names)}"
        )
    if names := _with_captions(doubtful("unreadable_name")):
        yield (
            f"{counted(len(names), 'caption')} from a name in an unknown encoding,"
            " perhaps garbage; make the zip with names in UTF-8, or put a text beside each"
            f" picture: {named(names)}"
        )
    if cut := [name for name, _ in doubtful("cut")]:
        yield f"{counted(len(cut), 'caption')} cut to max_caption_length: {named(cut)}"
    if empty := [name for name, _ in doubtful("empty_tag")]:
        yield (
            f"{counted(len(empty), 'caption')} with an empty tag (two commas together, or one at"
            f" the end), which is trained on as it is; take the comma out: {named(empty)}"
        )


def _with_captions(pictures: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{short(name)} ({caption[:40]!r})" for name, caption in pictures]
