"""Hostile model files: pickles that would run code, tensors with false positions and sizes."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from services.fetcher.parsing.models.architecture import (
    Shapes,
    TextEncoder,
    UNet,
    Vae,
    text_shapes,
    unet_shapes,
    vae_shapes,
)
from services.fetcher.parsing.models.single_file import CLIP, PREFIXES
from tests.support.corpora.archives import (
    BZIP2,
    DEFLATED,
    ENCRYPTED,
    MIB,
    Entry,
    archive,
    hollow,
    overlapping,
    zeros,
)

PROTOCOL = b"\x80\x02"
WORDS, WIDTH = 12, 8
UNET = UNet(channels=(8, 8), layers_per_block=1, cross_attention=(True, False),
            cross_attention_dim=WIDTH, linear_projection=False, in_channels=4,
            out_channels=4)  # fmt: skip
VAE = Vae(channels=(8, 8), layers_per_block=1, latent_channels=4)
TEXT = TextEncoder(hidden_size=WIDTH, intermediate_size=8, layers=1, vocab_size=WORDS,
                   max_positions=77, open_clip=False)  # fmt: skip


class Raw(bytes):
    """Raw instructions of a pickle."""

    __slots__ = ()


# --- Pickles that would run something -------------------------------------------------------------


def code(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').close()"


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def name(module: str, member: str) -> bytes:
    return f"c{module}\n{member}\n".encode()


class Reduced:
    """The usual exploit: an object whose unpickling calls a function."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.made = call, arguments

    def __reduce__(self) -> Any:
        return self.made


def by_protocol(protocol: int) -> Callable[[Path], bytes]:
    return lambda canary: pickle.dumps(Reduced(exec, code(canary)), protocol)


def chained(canary: Path) -> bytes:
    """``getattr(__import__("os"), "system")(...)``, without naming ``os.system``."""
    module = name("builtins", "__import__") + text("os") + b"\x85R"
    found = name("builtins", "getattr") + module + text("system") + b"\x86R"
    return PROTOCOL + found + text(f"touch {canary}") + b"\x85R."


EXPLOITS: Mapping[str, Callable[[Path], bytes]] = {
    **{f"reduce by protocol {number}": by_protocol(number) for number in range(6)},
    "a chain of lookups": chained,
    "eval": lambda canary: (
        PROTOCOL + name("builtins", "eval") + text(code(canary)) + b"\x85R."
    ),
    "a name from the stack": lambda canary: (
        b"\x80\x04" + text("builtins") + text("exec") + b"\x93" + text(code(canary)) + b"\x85R."
    ),
    "a name joined from the memo": lambda canary: (
        b"\x80\x04" + text("builtins") + b"\x94" + text("exec") + b"\x940" + b"0h\x00h\x01\x93"
        + text(code(canary)) + b"\x85R."
    ),
    "an instance": lambda canary: (
        b"(" + text(code(canary)) + b"ibuiltins\nexec\n."
    ),
    "an object": lambda canary: (
        b"(" + name("builtins", "exec") + text(code(canary)) + b"o."
    ),
    "inside a dict of tensors": lambda canary: (
        PROTOCOL + b"}" + text("state_dict") + b"}" + text("w")
        + name("builtins", "exec") + text(code(canary)) + b"\x85Rss."
    ),
    "thrown away at once": lambda canary: (
        PROTOCOL + name("builtins", "exec") + text(code(canary)) + b"\x85R0}."
    ),
    "as the key of a dict": lambda canary: (
        PROTOCOL + b"}" + name("builtins", "exec") + text(code(canary)) + b"\x85RK\x01s."
    ),
    "as the argument of another": lambda canary: (
        PROTOCOL + name("builtins", "str") + name("builtins", "exec") + text(code(canary))
        + b"\x85R\x85R."
    ),
}  # fmt: skip
"""Each creates the file ``canary`` when Python's unpickler reads it."""

INERT: Mapping[str, bytes] = {
    "a new object": PROTOCOL + name("builtins", "object") + b")\x81.",
    "a new object with keywords": b"\x80\x04" + name("builtins", "dict") + b")}\x92.",
    "state that is set": PROTOCOL
    + name("builtins", "object") + b")\x81}" + text("x") + b"K\x01sb.",
    "a name that is dotted": b"\x80\x04" + text("os") + text("path.os.system") + b"\x93)R.",
    "an array of objects": PROTOCOL
    + name("numpy.core.multiarray", "_reconstruct")
    + name("numpy", "ndarray") + b"K\x00\x85U\x01b\x87R.",
    "torch's own loader": PROTOCOL + name("torch.storage", "_load_from_bytes") + b"U\x01x\x85R.",
    "torch's quantized tensor": PROTOCOL + name("torch._utils", "_rebuild_qtensor") + b")R.",
    "an empty frozen set": b"\x80\x04(\x91.",
}  # fmt: skip
"""Pickles of other objects than tensors, which are read as ``Inert``."""

SENSELESS: Mapping[str, bytes] = {
    "a registered extension": PROTOCOL + b"\x82\x01)R.",
    "an extension of two bytes": PROTOCOL + b"\x83\x01\x01)R.",
    "an extension of four bytes": PROTOCOL + b"\x84\x01\x01\x01\x01)R.",
    "a persistent id as text": b"P../../etc/passwd\n.",
    "a persistent id that is a number": PROTOCOL + b"K\x01Q.",
    "a persistent id that is short": PROTOCOL + text("storage") + b"\x85Q.",
    "a buffer from elsewhere": b"\x80\x05\x97.",
    "a buffer made read-only": b"\x80\x05K\x01\x98.",
    "a number of 2 GiB": PROTOCOL + b"\x8b\xff\xff\xff\x7f\x01.",
    "a number of negative length": PROTOCOL + b"\x8b\xff\xff\xff\xff\x01.",
    "a text of exabytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
    "bytes of exabytes": b"\x80\x04\x8e" + struct.pack("<Q", (1 << 64) - 1) + b"x.",
    "a byte array of exabytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b"x.",
    "a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "no such memo": PROTOCOL + b"h\x07.",
    "a mark that is missing": PROTOCOL + b"t.",
    "nothing on the stack": PROTOCOL + b"R.",
    "no end": PROTOCOL + b"}",
    "no such instruction": PROTOCOL + b"\xfe.",
    "a name that is a number": b"\x80\x04K\x01K\x02\x93.",
    "arguments that are none": PROTOCOL + name("os", "system") + b"K\x01R.",
    "a protocol to come": b"\x80\xff\xfe.",
}


# --- The zip around it --------------------------------------------------------------------------


def tensor(
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    *,
    offset: int = 0,
    key: str = "0",
    elements: int = 6,
    kind: str = "FloatStorage",
) -> Raw:
    """A tensor as torch pickles it."""
    storage = Raw(ops((
        "storage", Raw(name("torch", kind)), key, "cpu", elements
    )) + b"Q")  # fmt: skip
    hooks = Raw(name("collections", "OrderedDict") + b")R")
    arguments = (storage, offset, shape, strides, Raw(b"\x89"), hooks)
    return Raw(name("torch._utils", "_rebuild_tensor_v2") + ops(arguments) + b"R")


def ops(value: object) -> bytes:
    """The instructions that build a plain value."""
    match value:
        case Raw():
            return value
        case str():
            return text(value)
        case int():
            return pickle.dumps(value, 2)[2:-1]
        case tuple():
            return b"(" + b"".join(map(ops, value)) + b"t"
        case dict():
            return b"}(" + b"".join(ops(key) + ops(each) for key, each in value.items()) + b"u"
    raise TypeError(type(value).__name__)


def checkpoint(value: object, *more: Entry, data: bytes = bytes(24)) -> bytes:
    """A ``.ckpt`` with one storage and these further entries."""
    pickled = PROTOCOL + ops(value) + b"."
    return archive([
        Entry(name=b"archive/data.pkl", packed=pickled),
        Entry(name=b"archive/data/0", packed=data),
        *more,
    ])  # fmt: skip


def spanning(shape: tuple[int, ...], strides: tuple[int, ...], **more: Any) -> bytes:
    return checkpoint({"state_dict": {"w": tensor(shape, strides, **more)}})


def holding_itself() -> bytes:
    return checkpoint(Raw(b"}q\x00" + text("state_dict") + b"h\x00s"))


def one_list_for_many(times: int = 20_000, pairs: int = 20_000) -> bytes:
    """One list of pairs that fills thousands of ordered dicts."""
    pair = b"".join(b"J" + struct.pack("<i", number) + b"N\x86" for number in range(pairs))
    kept = b"](" + pair + b"eq\x000"
    filled = (name("collections", "OrderedDict") + b"q\x010") + b"h\x01h\x00\x85R" * times
    return checkpoint(Raw(kept + filled))


def one_shape_for_many(times: int = 5_000, sizes: int = 500_000) -> bytes:
    """One shape of half a million sizes, used by thousands of tensors."""
    shape = Raw(b"(" + b"K\x01" * sizes + b"tq\x000")
    build = Raw(tensor().replace(ops((2, 3)), b"h\x00").replace(ops((3, 1)), b"h\x00"))
    return checkpoint(Raw(shape + build * times))


def many_that_show_one(count: int) -> bytes:
    """Tensors of 400 MiB each, all of the same bytes."""
    one = tensor((100 * MIB,), (1,), elements=100 * MIB)
    return checkpoint({"state_dict": {f"w{number}": one for number in range(count)}})


def legacy_tar() -> bytes:
    """Torch's format before 0.1.10."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for member in ("sys_info", "pickle", "../../storages"):
            file.addfile(tarfile.TarInfo(member))
    return buffer.getvalue()


class Hostile(NamedTuple):
    """A model file that is refused, and a part of the reason."""

    make: Callable[[], bytes]
    reason: str


REFUSED_CHECKPOINTS: Mapping[str, Hostile] = {
    "a dict that holds itself": Hostile(holding_itself, "holds no dict of tensors"),
    "no tensors": Hostile(lambda: checkpoint({"w": 1}), "holds no dict of tensors"),
    "not even a dict": Hostile(lambda: checkpoint((1, 2)), "holds no dict of tensors"),
    "a list poured into thousands": Hostile(one_list_for_many, "holds no dict of tensors"),
    "a shape of half a million sizes": Hostile(one_shape_for_many, "a shape of more than 8"),
    "a tensor called by a number": Hostile(
        lambda: checkpoint({"state_dict": {7: tensor()}}), "a tensor called 7; expected names"
    ),
    "a tensor past its storage": Hostile(lambda: spanning((3, 3), (3, 1)), "w reaches outside"),
    "a tensor far past its storage": Hostile(
        lambda: spanning((2, 3), (3, 1), offset=1 << 40), "w reaches outside"
    ),
    "a storage past the file": Hostile(
        lambda: spanning((1 << 30,), (1,), elements=1 << 30), "has no unet in the original layout"
    ),
    "strides that go back": Hostile(lambda: spanning((2, 3), (-3, 1)), "a size that is none"),
    "a negative size": Hostile(lambda: spanning((-2, 3), (3, 1)), "a size that is none"),
    "a negative offset": Hostile(
        lambda: spanning((2, 3), (3, 1), offset=-1), "a size that is none"
    ),
    "negative elements": Hostile(
        lambda: spanning((2, 3), (3, 1), elements=-1), "a size that is none"
    ),
    "sizes beyond any memory": Hostile(
        lambda: spanning((1 << 60,), (0,)), "a size that is none"
    ),
    "one number spread over terabytes": Hostile(
        lambda: spanning((1 << 20, 1 << 20), (0, 0)), "take more than 17179869184 bytes"
    ),
    "tensors that show the same bytes": Hostile(
        lambda: many_that_show_one(60), "take more than 17179869184 bytes"
    ),
    "a type that nobody knows": Hostile(
        lambda: spanning((2, 3), (3, 1), kind="QUInt4x2Storage"), "holds no dict of tensors"
    ),
    "strides of another number": Hostile(
        lambda: spanning((2, 3), (3,)), "a shape without its strides"
    ),
    "two indexes": Hostile(
        lambda: checkpoint({"w": tensor()}, Entry(name=b"other/data.pkl")), "not as torch writes"
    ),
    "an index above the root": Hostile(
        lambda: archive([Entry(name=b"../data.pkl")]), "the .ckpt's index cannot be read"
    ),
    "an index far below": Hostile(
        lambda: archive([Entry(name=b"a/b/data.pkl")]), "not as torch writes"
    ),
    "an index of 5 MiB": Hostile(
        lambda: archive([Entry(name=b"a/data.pkl", packed=zeros(5), method=DEFLATED)]),
        "a/data.pkl takes more than 4194304 bytes",
    ),
    "an index that declares little": Hostile(
        lambda: archive([
            Entry(name=b"a/data.pkl", packed=zeros(96), method=DEFLATED, size=100, crc=0)
        ]),
        "the .ckpt is damaged (Bad CRC-32",
    ),
    "an index in bzip2": Hostile(
        lambda: archive([
            Entry(name=b"a/data.pkl", packed=b"BZh9", method=BZIP2, size=100, crc=0)
        ]),
        "packed in a way that is not supported (method 12)",
    ),
    "a byte order of 96 MiB": Hostile(
        lambda: checkpoint({"w": tensor()}, hollow(96, b"archive/byteorder")),
        "archive/byteorder takes more than 16 bytes",
    ),
    "a byte order that declares little": Hostile(
        lambda: checkpoint(
            {"w": tensor()},
            Entry(name=b"archive/byteorder", packed=zeros(96), method=DEFLATED, size=6, crc=0),
        ),
        "the .ckpt is damaged (Bad CRC-32",
    ),
    "big-endian numbers": Hostile(
        lambda: checkpoint({"w": tensor()}, Entry(name=b"archive/byteorder", packed=b"big")),
        "big-endian numbers",
    ),
    "a password": Hostile(
        lambda: archive([Entry(name=b"archive/data.pkl", flags=ENCRYPTED)]), "is encrypted"
    ),
    "a flat bomb": Hostile(
        lambda: checkpoint({"w": tensor()}, hollow(128, b"archive/data/1")), "times its size"
    ),
    "a bomb of entries that overlap": Hostile(lambda: overlapping(40), "its entries overlap"),
    "torch's oldest format": Hostile(legacy_tar, "a tar archive; a model must be"),
    "torch's format before 1.6": Hostile(
        lambda: pickle.dumps(0x1950A86A20F9469CFC6C, 2), "a model must be"
    ),
    "a page": Hostile(lambda: b"<!DOCTYPE html><html>Sign in</html>", "an HTML page"),
    "nothing": Hostile(lambda: b"", "empty"),
    "an archive of numpy's": Hostile(
        lambda: archive([Entry(name=b"w.npy")]), "no model_index.json in the zip"
    ),
}  # fmt: skip


# --- Safetensors --------------------------------------------------------------------------------


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(
    shape: list[Any] | None = None, offsets: tuple[Any, Any] = (0, 24), dtype: Any = "F32"
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [2, 3] if shape is None else shape, "data_offsets": offsets}


def holding(data: int = 24, **entries: Any) -> Callable[[], bytes]:
    return lambda: safetensors(entries, bytes(data))


def layout() -> Shapes:
    """The tensor shapes of a very small Stable Diffusion in the original layout."""
    parts = {
        PREFIXES["unet"]: unet_shapes(UNET),
        PREFIXES["vae"]: vae_shapes(VAE),
        CLIP: text_shapes(TEXT),
    }
    return {prefix + each: shape for prefix, part in parts.items() for each, shape in part.items()}


def model(change: Mapping[str, tuple[int, ...] | None], *, dtype: str = "F32") -> bytes:
    """Such a model, with some shapes changed or left out."""
    header, end = {}, 0
    for each, shape in {**layout(), **change}.items():
        if shape is not None:
            start, end = end, end + 4 * prod(shape)
            header[each] = entry([*shape], (start, end), dtype)
    return safetensors(header, bytes(end))


def changed(change: Mapping[str, tuple[int, ...] | None]) -> Callable[[], bytes]:
    return lambda: model(change)


def deep_json() -> bytes:
    return b'{"__metadata__":' + b"[" * 200_000 + b"]" * 200_000 + b"}"


def wide_autoencoder(count: int) -> Shapes:
    """A few thousand names that imply millions: each level has only its first and last block."""
    tiny, conv = (1, 1, 1, 1), "first_stage_model.encoder.down.{}.block.{}.conv1.weight"
    shapes: Shapes = {conv.format(0, layer): tiny for layer in range(count)}
    for level in range(count):
        shapes |= {conv.format(level, layer): tiny for layer in (0, count - 1)}
    return shapes


EMBEDDING = f"{CLIP}text_model.embeddings.token_embedding.weight"
POSITIONS = f"{CLIP}text_model.embeddings.position_embedding.weight"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
NOT_WHOLE = "not a whole safetensors file"

REFUSED_SAFETENSORS: Mapping[str, Hostile] = {
    "a header past the file": Hostile(
        lambda: safetensors({"w": entry()}, length=31 * MIB), NOT_WHOLE
    ),
    "a header of 100 MB": Hostile(
        lambda: safetensors(b"{" + bytes(99), length=100_000_000), "a model must be"
    ),
    "a header of exabytes": Hostile(
        lambda: safetensors({"w": entry()}, length=(1 << 64) - 1), "a model must be"
    ),
    "a header that is cut off": Hostile(lambda: safetensors(b'{"w": '), NOT_WHOLE),
    "a header that is a list": Hostile(lambda: safetensors([1]), "a model must be"),
    "a deep header": Hostile(lambda: safetensors(deep_json()), "recursion"),
    "a header that is no UTF-8": Hostile(
        lambda: safetensors(b'{"\xff\xfe": 1}'), NOT_WHOLE
    ),
    "a lone surrogate": Hostile(lambda: safetensors(b'{"\\ud800": 1}'), NOT_WHOLE),
    "an entry that is a number": Hostile(holding(w=1), "Expected `object`, got `int`"),
    "an entry without offsets": Hostile(
        holding(w={"dtype": "F32", "shape": [1]}), "missing required field `data_offsets`"
    ),
    "a tensor past the end": Hostile(holding(w=entry([2, 4], (0, 32))), "w is cut off"),
    "offsets before the beginning": Hostile(
        holding(w=entry([2, 3], (-24, 0))), "w is cut off"
    ),
    "offsets that go back": Hostile(holding(w=entry([2, 3], (24, 0))), "w is cut off"),
    "offsets of exabytes": Hostile(
        holding(w=entry([1 << 60], (0, 1 << 62))), "w is cut off"
    ),
    "offsets with a point": Hostile(holding(w=entry([2, 3], (0.5, 24))), "Expected `int`"),
    "tensors that overlap": Hostile(
        holding(a=entry(), b=entry([3], (12, 24))), "b overlaps another tensor"
    ),
    "tensors that are one": Hostile(holding(a=entry(), b=entry()), "b overlaps another tensor"),
    "a negative size": Hostile(holding(w=entry([-2, -3])), "w has type F32 and shape (-2, -3)"),
    "a size that is not a number": Hostile(holding(w=entry(["NaN"])), "Expected `int`"),
    "a size that is NaN": Hostile(
        lambda: safetensors(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,24]}}'),
        NOT_WHOLE,
    ),
    "sizes whose product is enormous": Hostile(
        holding(w=entry([1 << 62] * 8)), "w has 24 bytes, which is not its shape"
    ),
    "half a million sizes": Hostile(
        holding(w=entry([(1 << 62) - 1] * 500_000)), "w has 500000 dimensions"
    ),
    "a type that nobody knows": Hostile(holding(w=entry(dtype="F31")), "w has type F31"),
    "a type that is a list": Hostile(holding(w=entry(dtype=["F32"])), "Expected `str`"),
    "a type of another width": Hostile(holding(w=entry(dtype="F64")), "which is not its shape"),
    "no tensors": Hostile(holding(), "has no unet in the original layout"),
    "names of another kind": Hostile(holding(lora_a=entry()), "it looks like a LoRA"),
    "whole numbers as weights": Hostile(
        lambda: model({}, dtype="I32"), "of type I32; expected F64, F32, F16 or BF16"
    ),
    "a tensor that is missing": Hostile(
        changed({"model.diffusion_model.out.0.bias": None}), "out.0.bias is missing"
    ),
    "a tensor of another shape": Hostile(
        changed({"model.diffusion_model.out.0.bias": (9,)}), "has shape 9, expected 8"
    ),
    "a tensor too many": Hostile(
        changed({"model.diffusion_model.label_emb.0.0.weight": (1,)}),
        "label_emb.0.0.weight is not known in Stable Diffusion 1 or 2: this is a model that",
    ),
    "captions of another width": Hostile(
        changed({
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 9)
        }),
        "has shape 8x8, expected 8x9",
    ),
    "a scalar where a matrix is": Hostile(changed({EMBEDDING: ()}), "has shape"),
    "words of no width": Hostile(
        changed({EMBEDDING: (1 << 40, 0)}), "has shape 1099511627776x0; at most"
    ),
    "positions without end": Hostile(
        changed({POSITIONS: (1 << 62, 0)}), "has shape 4611686018427387904x0; at most"
    ),
    "channels without end": Hostile(
        changed({FIRST: (0, 1 << 50, 3, 3)}), "has shape 0x1125899906842624x3x3; at most"
    ),
    "names that stand for millions": Hostile(
        lambda: model(wide_autoencoder(2000)), "2000 levels of 2000 layers; at most 8 of 64"
    ),
    "a text encoder of 65 layers": Hostile(
        changed({
            f"{CLIP}text_model.encoder.layers.{layer}.mlp.fc1.weight": (8, 8)
            for layer in range(65)
        }),
        "1 levels of 65 layers; at most 8 of 64",
    ),
    "another number of words than ours": Hostile(changed({}), "its text encoder knows 12 words"),
}  # fmt: skip


# --- Diffusers folders --------------------------------------------------------------------------

FOLDERS: Mapping[str, tuple[str, Mapping[str, Any] | bytes, str]] = {
    "a billion layers": ("unet", {"layers_per_block": 10**9}, "layers_per_block is 1000000000"),
    "a billion layers in a list": (
        "unet", {"layers_per_block": [1, 10**9]}, "layers_per_block is 1000000000; at most 64",
    ),
    "hidden layers without end": (
        "text_encoder", {"num_hidden_layers": 65}, "num_hidden_layers is 65; at most 64",
    ),
    "channels for terabytes": (
        "unet", {"block_out_channels": [1 << 40]}, "block_out_channels is 1099511627776",
    ),
    "blocks without end": (
        "vae", {"block_out_channels": [8] * 33}, "the length of block_out_channels is 33",
    ),
    "a number of 4,000 digits": ("vae", {"sample_size": 10**4000}, "sample_size is 1000"),
    "steps for terabytes": (
        "scheduler", {"num_train_timesteps": 10**12}, "num_train_timesteps is 1000000000000",
    ),
    "positions for terabytes": (
        "text_encoder", {"max_position_embeddings": 10**13}, "max_position_embeddings is 1000",
    ),
    "a number below all": ("unet", {"sample_size": -(1 << 62)}, "sample_size is -4611686018427"),
    "a number inside": (
        "unet", {"extra": {"deep": [{"width": 10**10}]}}, "width is 10000000000",
    ),
    "deep JSON": ("unet", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not a JSON object"),
    "JSON just not too deep": (
        "vae", b'{"a":' + b"[" * 800 + b"9" * 12 + b"]" * 800 + b"}", "a is 999999999999; at most",
    ),
    "no JSON": ("scheduler", b"cos\nsystem\n.", "not a JSON object"),
    "17 MiB": ("vae", b"{" + b" " * (17 * MIB) + b"}", "more than 16777216 bytes"),
    "an inpainting model": ("unet", {"in_channels": 9}, "is an inpainting model"),
    "channels that are code": ("unet", {"in_channels": "__import__('os')"}, "so it is no UNet"),
}  # fmt: skip
"""A part of tiny, changes to its configuration or its new content, and the reason."""


def zip_with_traversal(folder: Path, canary: str) -> bytes:
    """A complete diffusers folder, and files whose names lead out of it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path in folder.rglob("*"):
            if path.is_file():
                file.write(path, f"m/{path.relative_to(folder).as_posix()}")
        for each in (
            f"../{canary}",
            f"/{canary}",
            f"m/../../{canary}",
            f"m/unet/../../{canary}",
        ):
            file.writestr(each, "evil")
        file.writestr("m/unet/modeling_evil.py", "raise SystemExit")
    return buffer.getvalue()
