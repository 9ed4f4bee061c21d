"""The parent's side of a worker's child process.

The parent starts ``python -m MODULE`` with the descriptor of a pipe and its own process id as
arguments. It sends one order as a JSON line over stdin, perhaps followed by commands, and reads
records from the pipe, one JSON line each. The child gets a fixed list of environment variables: no
key, no URL. What it prints goes to our log.

A child reports before and after everything slow, so that the parent can tell slow from stuck.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

import msgspec
from msgspec import Struct

from shared.child.records import (
    DEVICE,
    DEVICE_SETTING,
    RECORD_BYTES,
    AnyRecord,
    Failed,
    FinalRecord,
    Ready,
)
from shared.concurrency import uninterrupted
from shared.errors import Passing, SettingsError
from shared.settings import ANY_DEVICE, DeviceSetting
from shared.telemetry import tracing

DRAIN_SECONDS = 1.0
"""For the last records of a child that has ended."""
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV",
             "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE",
             "HF_HOME", DEVICE, DEVICE_SETTING,
             "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER",
             "CUDA_CACHE_PATH", "NVIDIA_TF32_OVERRIDE", "BNB_CUDA_VERSION",
             "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF",
             "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HSA_OVERRIDE_GFX_VERSION")  # fmt: skip

PRINTED = b"| "
"""Before each line that a child of bounded output prints."""
WITHOUT_CONTROLS = bytes(number if number >= ord(" ") else ord("?") for number in range(256))

OnRecord = Callable[[AnyRecord], Awaitable[None]]
"""Takes one record; the child goes on meanwhile."""

_decoder: msgspec.json.Decoder[AnyRecord] = msgspec.json.Decoder(AnyRecord)


class ChildDied(Exception):
    """The child ended without a final record; the text says how."""

    def __init__(self, status: int) -> None:
        super().__init__(describe_exit(status))
        self.signal = signal.Signals(-status) if status < 0 else None
        """The signal that ended it; None: it ended by itself."""


class Child:
    """The parent's side of one child process."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        pipe: asyncio.ReadTransport,
        log_bytes: int | None,
        module: str,
    ) -> None:
        self._module = module
        self._process = process
        self._reader = reader
        self._pipe = pipe
        self._logging = None if log_bytes is None else asyncio.create_task(self._log(log_bytes))
        self.gpu = ""
        """The device it works on; empty until it has reported that it is ready."""
        self.teraflops = 0.0
        """As :attr:`Ready.teraflops`."""
        self.memory_bytes = 0
        """As :attr:`Ready.memory_bytes`."""
        self.uuid = ""
        """As :attr:`Ready.uuid`."""
        self.offline = False
        """Whether it has reported that it has no network."""
        self.unusable: tuple[str, ...] = ()
        """As :attr:`Ready.unusable`."""

    @classmethod
    async def start(
        cls,
        module: str,
        *,
        environment: Mapping[str, str] = os.environ,
        log_bytes: int | None = None,
    ) -> Child:
        """Spawn ``python -m module DESCRIPTOR PARENT`` in a session of its own.

        ``log_bytes`` is the most that it may print to our log; None: as much as it likes.
        """
        output = None if log_bytes is None else asyncio.subprocess.PIPE
        read_end, write_end = os.pipe()
        try:
            reader, pipe = await _open_reader(read_end)
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", module, str(write_end), str(os.getpid()),
                    stdin=asyncio.subprocess.PIPE, stdout=output,
                    stderr=output and asyncio.subprocess.STDOUT,
                    pass_fds=(write_end,), start_new_session=True,
                    env={name: environment[name] for name in PASSED_ON if name in environment},
                )  # fmt: skip
            except BaseException:
                pipe.close()
                raise
        finally:
            os.close(write_end)  # else the pipe would never end
        return cls(process, reader, pipe, log_bytes, module)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Asks the system: asyncio learns of a child's end a moment later."""
        if self._process.returncode is not None:
            return False
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:  # asyncio has just waited for it
            return False

    async def order(self, order: Struct) -> None:
        """Send an order, or a command about the one under way."""
        assert self._process.stdin is not None  # noqa: S101 - it was opened as a pipe
        with contextlib.suppress(ConnectionError):  # a dead child shows at the next record
            self._process.stdin.write(msgspec.json.encode(order) + b"\n")
            await self._process.stdin.drain()

    async def records(self) -> AsyncGenerator[AnyRecord, None]:
        """The child's records.

        Raises:
            ChildDied: it has ended; callers stop reading after a final record.
        """
        ending = asyncio.create_task(self._end_of_records())
        try:
            while line := await self._reader.readline():
                yield _decoder.decode(line)
        finally:
            ending.cancel()
        raise ChildDied(await self._process.wait())

    async def final_record(self, on_record: OnRecord) -> FinalRecord:
        """Pass each record to ``on_record`` until the one that ends the order.

        Raises:
            ChildDied: it ended before that.
        """
        tracing.phase("")  # what follows is the child's, up to the parent's next
        with tracing.span(
            "child", parent=tracing.context(), process__pid=self.pid,
            everydream__module=self._module,
        ):  # fmt: skip
            async with contextlib.aclosing(self.records()) as records:
                while not isinstance(record := await anext(records), FinalRecord):
                    await on_record(record)
                return record

    async def _end_of_records(self) -> None:
        """Close the pipe once the process has ended and there was time to drain it.

        The pipe alone does not show the end: it stays open while a grandchild lives.
        """
        await self._process.wait()
        await asyncio.sleep(DRAIN_SECONDS)
        self._pipe.close()

    async def _log(self, most: int) -> None:
        """Copy what it prints to our log; drop what is too much, so that it never waits for us.

        A stranger's text may be in it, so no line of it looks like one of ours.
        """
        assert self._process.stdout is not None  # noqa: S101 - it was opened as a pipe
        while chunk := await self._process.stdout.read(RECORD_BYTES):
            for line in chunk[: max(most, 0)].splitlines():
                sys.stderr.buffer.write(PRINTED + line.translate(WITHOUT_CONTROLS) + b"\n")
            sys.stderr.flush()
            most -= len(chunk)

    def stop(self) -> None:
        """Send SIGTERM: it saves what it has to and ends."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    async def kill(self) -> None:
        """Kill it and its own children now, and wait until it is gone, also if cancelled."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            await uninterrupted(self._process.wait())
        finally:
            if self._logging:
                self._logging.cancel()
            self._pipe.close()  # a grandchild outside the group may hold its other end
            if self._process.stdin:
                self._process.stdin.close()


class Standby:
    """Keeps one child ready, its imports done before an order comes."""

    def __init__(self, module: str, *, device: DeviceSetting = ANY_DEVICE) -> None:
        """``device`` is what the child is to compute on."""
        self._module = module
        self._environment = {**os.environ, **device_variables(device)}
        self._child: Child | None = None

    async def ready(self) -> Child:
        """The child; a new one is started unless the last one is alive.

        Raises:
            as :func:`start_ready`.
        """
        if self._child is None or not self._child.alive:
            await self.close()
            self._child = await start_ready(self._module, environment=self._environment)
        return self._child

    async def close(self) -> None:
        """End the child, if there is one."""
        child, self._child = self._child, None
        if child:
            await child.kill()


def device_variables(device: DeviceSetting) -> dict[str, str]:
    """What tells a child the device to compute on."""
    return {DEVICE: device.value, DEVICE_SETTING: device.name}


async def start_ready(
    module: str,
    *,
    environment: Mapping[str, str] = os.environ,
    log_bytes: int | None = None,
) -> Child:
    """Start a child and wait until its imports are done; the arguments are :meth:`Child.start`'s.

    Raises:
        ChildDied: it ended before it was ready.
        SettingsError: it cannot work as this machine is set up; says why.
        Passing: it cannot work now.
    """
    child = await Child.start(module, environment=environment, log_bytes=log_bytes)
    try:
        async with contextlib.aclosing(child.records()) as records:
            while not isinstance(record := await anext(records), Ready):
                _raise_if_failed(record)
    except BaseException:
        await child.kill()
        raise
    child.gpu, child.teraflops, child.offline = record.gpu, record.teraflops, record.offline
    child.memory_bytes, child.uuid = record.memory_bytes, record.uuid
    child.unusable = record.unusable
    return child


def _raise_if_failed(record: AnyRecord) -> None:
    if isinstance(record, Failed):
        raise (SettingsError if record.refused else Passing)(record.reason)


async def _open_reader(descriptor: int) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    reader = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
    )
    return reader, pipe


def describe_exit(code: int) -> str:
    """An exit status in words."""
    if code < 0:
        hint = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
        return f"the child was killed by {signal.Signals(-code).name}{hint}"
    return f"the child ended with exit status {code} and without a last word"
