"""Evaluate a pickle to plain values, without importing or calling anything.

Python's unpickler is a small stack machine that may import and call anything a file names. This
one knows the same instructions, but builds only plain values: dicts, lists, tuples, numbers, texts,
and descriptions of tensors. Anything else that a file asks for becomes an :class:`Inert`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from math import prod
from typing import Any

from msgspec import Struct

from shared.errors import Refused

MAX_DIMENSIONS = 8
"""Of a tensor; a convolution's weights have four."""

ADVICE = "convert it to .safetensors and give the URL of that file"

DTYPES = {
    "DoubleStorage": ("F64", 8),
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
}
"""Storage class to safetensors' name for the type, and bytes per element."""
SMALL_DTYPES = {
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}
"""Types of one byte without a storage class of their own; read so that an error can name them."""


class StoredTensor(Struct, frozen=True, kw_only=True):
    """Where a tensor's data is in the file; offset and strides are in elements."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    storage: str
    elements: int
    """In the whole storage."""
    item_bytes: int

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.item_bytes

    @property
    def storage_bytes(self) -> int:
        return self.elements * self.item_bytes

    @property
    def skipped_bytes(self) -> int:
        """Bytes of the storage that must be read in addition to its own."""
        return self.offset * self.item_bytes if self.is_contiguous else self.storage_bytes

    @property
    def is_contiguous(self) -> bool:
        if self.bytes == 0:
            return True
        expected = 1
        for size, stride in reversed(tuple(zip(self.shape, self.strides, strict=True))):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True

    @property
    def fits(self) -> bool:
        """Whether it lies inside its storage; always true for a marker without elements."""
        if self.bytes == 0:
            return True
        last = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        return self.offset + last < self.elements


class Global(Struct, frozen=True):
    """A name that Python's unpickler would import."""

    module: str
    name: str


class Storage(Struct, frozen=True):
    kind: str
    key: str
    elements: int


class Inert:
    """Takes the place of any other object; it has no data and does nothing."""


def run(pickled: bytes) -> Any:
    """Evaluate a pickle to a plain value.

    Raises:
        Refused: it is not a pickle, or uses an instruction in an invalid way.
    """
    machine = _Machine()
    try:
        for instruction, argument, _ in pickletools.genops(pickled):
            machine.step(instruction.name, argument)
        return machine.pop()
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise Refused(f"the .ckpt's index cannot be read ({error}); {ADVICE}") from None


class _Machine:
    """The stack, the stacks below each open mark, and the memo."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in CONSTANTS:
            self._stack.append(CONSTANTS[name]())
        elif name in ARGUMENTS:
            self._stack.append(argument)
        elif name not in IGNORED:
            ACTIONS[name](self, argument)

    def pop(self) -> Any:
        return self._stack.pop()

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def top(self) -> Any:
        return self._stack[-1]

    def mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def since_mark(self) -> list[Any]:
        values, self._stack = self._stack, self._below.pop()
        return values

    def memoize(self, key: int | None) -> None:
        self._memo[len(self._memo) if key is None else key] = self.top()

    def push_memo(self, key: int) -> None:
        self.push(self._memo[key])

    def pop_many(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self.pop() for _ in range(count)]))

    def extend_list(self, values: list[Any]) -> None:
        if isinstance(self.top(), list):
            self.top().extend(values)

    def update_dict(self, values: list[Any]) -> None:
        """Keep only text and number keys: hashing a deeply nested one could exhaust the stack."""
        if isinstance(self.top(), dict):
            pairs = zip(values[::2], values[1::2], strict=True)
            self.top().update((key, value) for key, value in pairs if isinstance(key, str | int))

    def construct(self, callee: Any, arguments: Any) -> None:
        """Replace what would be a call: by a plain value for known names, else by ``Inert``."""
        name = (callee.module, callee.name) if isinstance(callee, Global) else None
        constructor = CONSTRUCTORS.get(name) if name else None
        self.push(constructor(*arguments) if constructor else Inert())

    def load_storage(self, identity: Any) -> None:
        """Push a storage; torch's id is ``("storage", class, key, location, elements)``."""
        _, kind, key, _, elements = identity
        if not isinstance(kind, Global) or not isinstance(key, str):
            raise ValueError("a storage that is none")  # noqa: TRY004 - the file's mistake
        self.push(Storage(kind.name, key, _size(elements)))


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 48:
        raise ValueError("a size that is none")
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    """The length is checked first: a file may use one long shape many times."""
    if not isinstance(values, tuple) or len(values) > MAX_DIMENSIONS:
        raise ValueError(f"a shape of more than {MAX_DIMENSIONS} dimensions, or none")
    return tuple(map(_size, values))


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
    """Describe the tensor that torch's ``_rebuild_tensor_v2`` would build."""
    if not isinstance(storage, Storage) or storage.kind not in DTYPES:
        return Inert()
    return _stored_tensor(storage, offset, shape, strides, DTYPES[storage.kind])


def _small_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *others: Any) -> Any:
    """The same for ``_rebuild_tensor_v3``, which is given bytes and a type beside them."""
    dtype = others[2] if len(others) > 2 else None  # noqa: PLR2004 - after gradient and hooks
    if not isinstance(storage, Storage) or not isinstance(dtype, Global):
        return Inert()
    if dtype.name not in SMALL_DTYPES:
        return Inert()
    return _stored_tensor(storage, offset, shape, strides, (SMALL_DTYPES[dtype.name], 1))


def _stored_tensor(
    storage: Storage, offset: Any, shape: Any, strides: Any, kind: tuple[str, int]
) -> StoredTensor:
    dtype, item_bytes = kind
    sizes, steps = _sizes(shape), _sizes(strides)
    if len(sizes) != len(steps):
        raise ValueError("a shape without its strides")
    return StoredTensor(
        dtype=dtype,
        shape=sizes,
        strides=steps,
        offset=_size(offset),
        storage=storage.key,
        elements=storage.elements,
        item_bytes=item_bytes,
    )


CONSTRUCTORS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _small_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("collections", "OrderedDict"): lambda *_: {},
}
"""Torch sets an ordered dict's pairs afterwards; as an argument, one list could fill thousands."""

IGNORED = frozenset({"PROTO", "FRAME", "STOP"})
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": Inert,
    "EMPTY_TUPLE": tuple,
}
ARGUMENTS = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
})  # fmt: skip

Action = Callable[[_Machine, Any], Any]
ACTIONS: dict[str, Action] = {
    "MARK": _Machine.mark,
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.since_mark(),
    "DUP": lambda machine, _: machine.push(machine.top()),
    "MEMOIZE": _Machine.memoize,
    "PUT": _Machine.memoize,
    "BINPUT": _Machine.memoize,
    "LONG_BINPUT": _Machine.memoize,
    "GET": _Machine.push_memo,
    "BINGET": _Machine.push_memo,
    "LONG_BINGET": _Machine.push_memo,
    "TUPLE1": lambda machine, _: machine.push(machine.pop_many(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.pop_many(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.pop_many(3)),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "DICT": lambda machine, _: _new_dict(machine),
    "FROZENSET": lambda machine, _: _inert_since_mark(machine),
    "INST": lambda machine, _: _inert_since_mark(machine),
    "OBJ": lambda machine, _: _inert_since_mark(machine),
    "ADDITEMS": lambda machine, _: machine.since_mark(),
    "APPEND": lambda machine, _: machine.extend_list([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend_list(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.update_dict([*machine.pop_many(2)]),
    "SETITEMS": lambda machine, _: machine.update_dict(machine.since_mark()),
    "GLOBAL": lambda machine, names: machine.push(Global(*names.split(" ", 1))),
    "STACK_GLOBAL": lambda machine, _: _stack_global(machine),
    "REDUCE": lambda machine, _: _reduce(machine),
    "NEWOBJ": lambda machine, _: _reduce(machine),
    "NEWOBJ_EX": lambda machine, _: _push_inert(machine, 3),
    "BUILD": lambda machine, _: machine.pop(),
    "BINPERSID": lambda machine, _: machine.load_storage(machine.pop()),
}
"""What an instruction does; any other instruction is refused."""


def _new_dict(machine: _Machine) -> None:
    values = machine.since_mark()
    machine.push({})
    machine.update_dict(values)


def _inert_since_mark(machine: _Machine) -> None:
    machine.since_mark()
    machine.push(Inert())


def _push_inert(machine: _Machine, count: int) -> None:
    machine.pop_many(count)
    machine.push(Inert())


def _stack_global(machine: _Machine) -> None:
    module, name = machine.pop_many(2)
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a name that is none")
    machine.push(Global(module, name))


def _reduce(machine: _Machine) -> None:
    callee, arguments = machine.pop_many(2)
    if not isinstance(arguments, tuple):
        raise TypeError("arguments that are none")
    machine.construct(callee, arguments)
