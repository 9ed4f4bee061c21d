"""Options that do nothing with the pictures that there are; the gateway tells of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from shared.dataset.captions import SEPARATOR
from shared.dataset.manifest import Picture, named
from shared.request import Train

MOST_TAGS_ALIKE = 1
"""A single tag has no other place."""


def unused_options(train: Train, pictures: Sequence[Picture]) -> Iterator[str]:
    """A line for each option, of the request or of single pictures, that changes nothing."""
    for option, why in OF_REQUEST.items():
        if getattr(train, option) != getattr(Train(data_url=""), option) and (
            reason := why(train, pictures)
        ):
            yield f"{option} {_shown(getattr(train, option))} has no effect: {reason}"
    yield from _of_pictures(train, pictures)


def _of_pictures(train: Train, pictures: Sequence[Picture]) -> Iterator[str]:
    if not train.rated_dataset:
        if rated := [picture.name for picture in pictures if picture.rating != 1]:
            yield f"rating has no effect without rated_dataset: {named(rated)}"
    elif several := [picture.name for picture in pictures if picture.multiply != 1]:
        yield (
            "multiply has no effect after the second epoch, because of rated_dataset:"
            f" {named(several)}"
        )
    own = [picture for picture in pictures if picture.shuffle_tags]
    if own and not any(_is_shuffled(picture, train) for picture in own):
        names = [picture.name for picture in own]
        yield f"shuffle_tags has no effect: {_too_few(train)}: {named(names)}"


def _keep_tags(train: Train, pictures: Sequence[Picture]) -> str:
    if any(_shuffles(picture, train) for picture in pictures):
        return ""
    return "shuffle_tags is not set, neither in the request nor for a picture"


def _shuffle_tags(train: Train, pictures: Sequence[Picture]) -> str:
    if any(_is_shuffled(picture, train) for picture in pictures):
        return ""
    return _too_few(train)


def _too_few(train: Train) -> str:
    kept = f" behind the {train.keep_tags} of keep_tags" if train.keep_tags else ""
    return f"no caption that is to be shuffled has two tags{kept}"


def _sample_steps(train: Train, pictures: Sequence[Picture]) -> str:
    if train.sample_prompts or any(picture.caption for picture in pictures):
        return ""
    return "there are no sample_prompts, and no captions to draw in their place"


def _masked_loss(_train: Train, pictures: Sequence[Picture]) -> str:
    if any(picture.mask for picture in pictures):
        return ""
    return "no picture has a mask, NAME_mask.png beside NAME.jpg, or transparent areas"


OF_REQUEST: Mapping[str, Callable[[Train, Sequence[Picture]], str]] = {
    "keep_tags": _keep_tags,
    "masked_loss": _masked_loss,
    "sample_steps": _sample_steps,
    "shuffle_tags": _shuffle_tags,
}
"""By option of ``input.train``: why it has no effect; empty: it has one."""


def _shuffles(picture: Picture, train: Train) -> bool:
    return train.shuffle_tags if picture.shuffle_tags is None else picture.shuffle_tags


def _is_shuffled(picture: Picture, train: Train) -> bool:
    tags = len(picture.caption.split(SEPARATOR)) - picture.main_parts - train.keep_tags
    return _shuffles(picture, train) and tags > MOST_TAGS_ALIKE


def _shown(value: object) -> str:
    return str(value).lower()
