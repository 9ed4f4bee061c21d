"""Reading a ``.ckpt`` without unpickling it."""

import collections
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from services.fetcher.parsing.models import pickle_reader
from services.fetcher.parsing.models.pickle_machine import Inert, StoredTensor, run
from services.fetcher.parsing.models.pickle_reader import (
    Checkpoint,
    is_checkpoint,
    read_checkpoint,
    tensors_of,
)
from shared.errors import Refused


def saved(path: Path, value: Any) -> zipfile.ZipFile:
    torch.save(value, path)
    return zipfile.ZipFile(path)


def bytes_of(checkpoint: Checkpoint, name: str) -> bytes:
    buffer = io.BytesIO()
    checkpoint.copy(checkpoint.tensors[name], buffer)
    return buffer.getvalue()


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.reshape(-1).contiguous().view(torch.uint8).tolist())


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float32, "F32"),
        (torch.float16, "F16"),
        (torch.bfloat16, "BF16"),
        (torch.float64, "F64"),
    ],
)
def test_tensors_of_every_precision_are_copied_byte_for_byte(
    tmp_path: Path, dtype: torch.dtype, name: str
) -> None:
    tensor = torch.randn(3, 5, 2).to(dtype)

    with saved(tmp_path / "a.ckpt", {"w": tensor}) as zipped:
        assert is_checkpoint(zipped)
        checkpoint = read_checkpoint(zipped)
        found = checkpoint.tensors["w"]

        assert (found.dtype, found.shape) == (name, (3, 5, 2))
        assert bytes_of(checkpoint, "w") == raw(tensor)


def test_views_are_copied_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32)
    views = {
        "transposed": base.view(4, 6).T,
        "strided": base[1::3],
        "part": base[5:11],
        "expanded": base[3].expand(4, 2),
        "scalar": base[7],
        "parameter": torch.nn.Parameter(base.view(2, 12)),
    }

    with saved(tmp_path / "a.ckpt", views) as zipped:
        checkpoint = read_checkpoint(zipped)

        for name, tensor in views.items():
            assert checkpoint.tensors[name].shape == tuple(tensor.shape)
            assert bytes_of(checkpoint, name) == raw(tensor.detach()), name


class Callback:
    """An object such as training frameworks pickle."""


def test_the_state_dict_of_a_training_checkpoint_is_found_among_foreign_things(
    tmp_path: Path,
) -> None:
    state = collections.OrderedDict(w=torch.ones(2), b=torch.zeros(3))
    value = {
        "epoch": 3, "lr": 1e-6, "state_dict": state, "callbacks": {Callback: Callback()},
        "hyper": Callback(), "names": ["a", None, True], "set": {1, 2}, "raw": b"123",
        "optimizer": {"state": {0: {"step": torch.tensor(3)}}, "shape": torch.Size([2])},
    }  # fmt: skip

    with saved(tmp_path / "a.ckpt", value) as zipped:
        assert list(read_checkpoint(zipped).tensors) == ["w", "b"]


@pytest.mark.parametrize("protocol", range(6))
def test_every_version_of_pickle_is_understood(protocol: int) -> None:
    value = {
        "a": [1, -2, 2**70, 3.5],
        "t": (None, (True, False)),
        "s": "text",
        "d": {3: "x", "é": []},
    }

    assert run(pickle.dumps(value, protocol)) == value


class Hostile:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_what_would_run_a_command_is_an_inert_thing(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "touched"
    hostile = pickle.dumps({"state_dict": {"w": Hostile(target)}, "x": Hostile(target)}, protocol)

    value = run(hostile)

    assert isinstance(value["x"], Inert)
    assert not target.exists()
    with pytest.raises(Refused, match="holds no dict of tensors"):
        tensors_of(value)

    pickle.loads(hostile)  # noqa: S301 - to show that it would have worked
    assert target.exists()


@pytest.mark.parametrize(
    "hostile",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"(cos\nsystem\nS'true'\no.",
        b"\x80\x02cbuiltins\neval\nU\x031+1\x85R.",
        b"\x80\x02cbuiltins\neval\n)\x81}b.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.",
    ],
)
def test_no_way_to_call_calls(hostile: bytes) -> None:
    assert isinstance(run(hostile), Inert)


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"not a pickle",
        b"\x80\x02}",
        b"\x80\x02.",
        b"\x80\x02h\x07.",
        b"\x80\x02(.",
        b"\x80\x02t.",
        b"\x80\x02]K\x01K\x02\x86e.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02\x82\x01.",
        b"\x80\x05\x97.",
        b"\x80\x02K\x01K\x02R.",
        b"\x80\x02U\x01aU\x01bQ.",
    ],
)
def test_what_makes_no_sense_is_refused(broken: bytes) -> None:
    with pytest.raises(Refused, match="cannot be read"):
        run(broken)


def test_depth_and_great_numbers_cost_nothing() -> None:
    deep = b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"K\x01s."
    assert run(deep) == {}
    assert run(b"\x80\x02}r\xff\xff\xff\xff.") == {}


def stored(**more: Any) -> StoredTensor:
    plain: dict[str, Any] = {
        "dtype": "F32", "shape": (2, 3), "strides": (3, 1), "offset": 0, "storage": "0",
        "elements": 6, "item_bytes": 4,
    }  # fmt: skip
    return StoredTensor(**plain | more)


@pytest.mark.parametrize(
    "wrong",
    [{"offset": 1}, {"shape": (3, 3)}, {"strides": (4, 1)}, {"elements": 5}],
)
def test_a_tensor_that_reaches_outside_its_data_is_refused(wrong: dict[str, Any]) -> None:
    assert tensors_of({"w": stored()})
    with pytest.raises(Refused, match="w reaches outside its data"):
        tensors_of({"w": stored(**wrong)})


def test_a_marker_without_elements_is_kept_and_empty(tmp_path: Path) -> None:
    """Such as ``v_pred``, whose presence alone is the information."""
    markers = {"v_pred": torch.tensor([]), "row": torch.ones(3, 0), "turned": torch.ones(0, 3).T}

    with saved(tmp_path / "a.ckpt", {"state_dict": markers}) as zipped:
        checkpoint = read_checkpoint(zipped)

        assert checkpoint.tensors.keys() == markers.keys()
        assert {bytes_of(checkpoint, name) for name in markers} == {b""}


def test_the_texts_beside_the_tensors_are_read_and_nothing_else_is_one(tmp_path: Path) -> None:
    spec = {"modelspec.prediction_type": "v", "number": 3, 4: "four"}
    value = {"state_dict": {"w": torch.ones(1)}, "modelspec": spec}

    with saved(tmp_path / "a.ckpt", value) as zipped:
        assert read_checkpoint(zipped).metadata == {"modelspec.prediction_type": "v"}
    with saved(tmp_path / "b.ckpt", {"w": torch.ones(1), "modelspec": [1]}) as zipped:
        assert read_checkpoint(zipped).metadata == {}


def test_tensors_that_would_take_hours_to_reach_are_refused() -> None:
    far = stored(offset=1 << 40, elements=1 << 41)

    with pytest.raises(Refused, match="lie too far apart"):
        tensors_of({"w": far})


def rewritten(path: Path, change: dict[str, bytes | None]) -> Path:
    """A zip with some entries changed or left out."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(path.with_suffix(".new"), "w") as new:
        for name in old.namelist():
            content = change.get(name.split("/", 1)[1], old.read(name))
            if content is not None:
                new.writestr(name, content)
    return path.with_suffix(".new")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data/0": None}, "data is damaged"),
        ({"data/0": bytes(10)}, "a tensor is cut off"),
        ({"data.pkl": b"rubbish"}, "index cannot be read"),
        ({"byteorder": b"big"}, "big-endian numbers"),
    ],
)
@pytest.mark.parametrize("view", [False, True])
def test_a_damaged_file_is_refused_with_advice(
    tmp_path: Path, change: dict[str, bytes | None], reason: str, *, view: bool
) -> None:
    tensor = torch.ones(4, 8)
    torch.save({"w": tensor.T if view else tensor}, tmp_path / "a.ckpt")

    with zipfile.ZipFile(rewritten(tmp_path / "a.ckpt", change)) as zipped:
        with pytest.raises(Refused, match=reason) as refused:
            bytes_of(read_checkpoint(zipped), "w")
        assert "convert it to .safetensors" in str(refused.value)


def test_an_index_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickle_reader, "MAX_PICKLE_BYTES", 50)

    with (
        saved(tmp_path / "a.ckpt", {"w": torch.ones(1)}) as zipped,
        pytest.raises(Refused, match="takes more than 50 bytes"),
    ):
        read_checkpoint(zipped)


def test_a_zip_that_torch_did_not_write_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("model_index.json", struct.pack("<I", 1))

    with zipfile.ZipFile(tmp_path / "a.zip") as zipped:
        assert not is_checkpoint(zipped)
        with pytest.raises(Refused, match="not as torch writes them"):
            read_checkpoint(zipped)
