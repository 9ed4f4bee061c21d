"""docs/datasets.md tells all that there is."""

import re
from pathlib import Path

import pytest

from services.fetcher.parsing.datasets.sidecar_values import (
    SCALARS,
    SINGLE_VALUE_FILES,
)
from services.fetcher.parsing.datasets.sidecars import SIDECAR_SUFFIXES, Sidecars
from shared.dataset.captions import MAX_CHARACTERS
from shared.dataset.manifest import CAPTION_CHARACTERS, Captions, Estimate, Picture, Report
from shared.dataset.plan import EpochConfig, plan_epoch
from shared.request import Train

PAGE = (Path(__file__).parents[3] / "docs" / "datasets.md").read_text()


@pytest.mark.parametrize("struct", [Report, Captions, Estimate])
def test_the_page_explains_every_field_of_the_report(
    struct: type[Report | Captions | Estimate],
) -> None:
    for name in struct.__struct_fields__:
        assert f"`{name}`" in PAGE, name


def test_the_page_explains_every_command_and_every_file() -> None:
    for name in (*SCALARS, *SINGLE_VALUE_FILES, *SIDECAR_SUFFIXES, "local.yaml", "global.yaml"):
        assert f"`{name}`" in PAGE, name
    assert f"{CAPTION_CHARACTERS:,} unless you say otherwise" in PAGE
    assert f"{MAX_CHARACTERS:,} at most" in PAGE


def test_the_example_on_the_page_says_what_the_page_says_it_does() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    beside = Sidecars({"IMG_1.yaml": example.encode()})

    found = beside.of("IMG_1.jpg")
    commands, from_file = found.options, found.source == "yaml"

    assert commands.caption.text == "a photo of ted, at the sea, red shirt, sitting"
    assert (commands.caption.main_parts, commands.caption.weights) == (2, (3.0, 1.0))
    assert (commands.rating, commands.max_caption_length, from_file) == (2.0, 300, True)
    assert beside.warnings == []


def test_the_example_of_regularisation_trains_on_as_many_pictures_as_the_page_says() -> None:
    (tree,) = re.findall(r"### Regularisation\n.*?```\n(.*?)```", PAGE, re.DOTALL)
    own, others = map(int, re.findall(r"(\d+) pictures", tree))
    (multiply,) = re.findall(r"multiply\.txt +([\d.]+)", tree)
    beside = Sidecars({"regularisation/multiply.txt": multiply.encode()})
    names = [f"ted/{number}.jpg" for number in range(own)]
    names += [f"regularisation/{number}.jpg" for number in range(others)]
    pictures = [
        Picture(
            file=name, caption="a man", width=512, height=512,
            multiply=1.0 if (given := beside.of(name).options.multiply) is None else given,
        )
        for name in names
    ]  # fmt: skip
    config = EpochConfig.of(Train(data_url="u", batch_size=1), seed=1)

    epochs = [
        [names[each] for batch in plan_epoch(pictures, config, epoch) for each in batch.pictures]
        for epoch in range(20)
    ]

    for trained in epochs:
        assert sum(name.startswith("ted/") for name in trained) == own == 20
        assert sum(name.startswith("regularisation/") for name in trained) == 10
    assert len({name for trained in epochs for name in trained}) > own + 10
