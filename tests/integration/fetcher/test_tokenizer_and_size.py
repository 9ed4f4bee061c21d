"""Token counts and model sizes, compared with the libraries used for training."""

import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from services.fetcher.models.stored_model import fetch_tokenizer, stored_parameters
from services.fetcher.parsing.models.tokenizer_and_size import (
    count_parameters,
    count_tokens,
    read_tokenizer,
)
from shared.diffusion.loading import load
from shared.diffusion.single_file import export
from shared.errors import Refused
from shared.storage.folders import upload_folder
from shared.storage.manifest import PARAMETERS
from tests.support.models import make_random_model
from tests.support.staging import copied
from tests.support.workers import folder_store

ROOT = Path(__file__).parents[3]
TINY = ROOT / "shared" / "tiny"
CAPTIONS = [
    "",
    "a cat",
    "A CAT's whiskers, 2024; didn't they?  twice\n\tas many",
    "ﬁne café, naïve Ångström, Привет мир, 日本語の猫 🐈",
    "snake_case and under__scores (weighted:1.2) [x] <|endoftext|> <lora>",
    "blue red " * 60,
    "A Yellow CIRCLE on BLUE",
    "word, " * 75,
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_random_model(tmp_path_factory.mktemp("base") / "model")


def without_whole(tokenizer: Path, folder: Path) -> Path:
    """The same tokenizer as in older folders: ``vocab.json`` and ``merges.txt`` only."""
    tokens = CLIPTokenizer.from_pretrained(tokenizer)
    (folder / "tokenizer").mkdir()
    tokens.backend_tokenizer.model.save(str(folder / "tokenizer"))
    return folder


@pytest.mark.parametrize("whole", ["tokenizer.json", "vocab.json and merges.txt"])
def test_captions_are_counted_in_the_tokens_that_training_sees(
    model: Path, tmp_path: Path, whole: str
) -> None:
    for base in (model, TINY):
        folder = base
        if whole != "tokenizer.json":
            (tmp_path / base.name).mkdir()
            folder = without_whole(base / "tokenizer", tmp_path / base.name)
        trained = CLIPTokenizer.from_pretrained(base / "tokenizer")

        counts = count_tokens(folder, CAPTIONS)

        assert counts == [
            len(trained(each, add_special_tokens=False)["input_ids"]) for each in CAPTIONS
        ]
        assert counts[0] == 0
        assert max(counts) > 77


@pytest.mark.parametrize(
    "replaced",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern":
            {"String": "a"}, "content": "a" * 10}] * 11}},
        {"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+b"},
            "behavior": "Isolated", "invert": False}},
    ],
)  # fmt: skip
def test_nothing_of_a_tokenizer_is_obeyed_but_its_vocabulary_and_merges(
    tmp_path: Path, replaced: dict[str, object]
) -> None:
    (tmp_path / "tokenizer").mkdir()
    whole = json.loads((TINY / "tokenizer/tokenizer.json").read_text())
    (tmp_path / "tokenizer/tokenizer.json").write_text(json.dumps(whole | replaced))
    captions = ["a" * 2000, *CAPTIONS]
    trained = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")

    counts = count_tokens(tmp_path, captions)

    assert counts == count_tokens(TINY, captions)
    assert counts == [
        len(trained(each, add_special_tokens=False)["input_ids"]) for each in captions
    ]


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "merges.txt").write_text("a b")
    with pytest.raises(Refused, match=r"the base model: tokenizer/ cannot be read"):
        read_tokenizer(tmp_path)

    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(Refused, match=r"the base model: tokenizer/ cannot be read"):
        read_tokenizer(tmp_path)


def test_parameters_are_counted_alike_in_a_folder_and_in_one_file(
    model: Path, tmp_path: Path
) -> None:
    parts = load(model)
    networks = {"unet": parts.unet, "vae": parts.vae, "text_encoder": parts.text_encoder}
    true = {
        name: sum(each.numel() for each in network.parameters())
        for name, network in networks.items()
    }
    export(parts, tmp_path / "single_file.safetensors", dtype=parts.unet.dtype)

    assert count_parameters(model) == true
    assert count_parameters(tmp_path) == true


async def test_a_trained_model_in_the_store_says_how_many_parameters_it_has(
    model: Path, tmp_path: Path
) -> None:
    store = folder_store(tmp_path / "store")
    await upload_folder(store, model, "jobs/j/training/1/model")

    counted = await stored_parameters(store, "jobs/j/training/1/model")

    assert counted == count_parameters(model)


async def test_one_that_does_not_is_counted_by_its_sizes_as_if_in_half_precision(
    model: Path, tmp_path: Path
) -> None:
    store, model = folder_store(tmp_path / "store"), copied(model, tmp_path / "older")
    (model / PARAMETERS).unlink()
    await upload_folder(store, model, "jobs/j/training/1/model")

    counted = await stored_parameters(store, "jobs/j/training/1/model")
    await fetch_tokenizer(store, "jobs/j/training/1/model", tmp_path / "got")

    for part, true in count_parameters(model).items():  # this one is in full precision
        assert 2 * true <= counted[part] <= 2 * true + 50_000
    assert count_tokens(tmp_path / "got", CAPTIONS) == count_tokens(model, CAPTIONS)
    assert {path.name for path in (tmp_path / "got").iterdir()} == {"tokenizer"}
