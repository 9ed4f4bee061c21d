"""Run a command as a container of the compose file would: with its root, its secrets, its rights.

`python -m tests.support.container CONTAINER COMMAND...`, where CONTAINER is a JSON file of
:class:`Container`. The process gets a file system of its own and becomes the command: its process
id stays. What it sees is this machine's file system, read-only, but for the container's volumes,
`tmpfs` and secrets. It has no capabilities and gains none.

Not held here: limits of memory and processes, and networks.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from tests.support.compose import IN_CONTAINERS
from tests.support.services import ROOT, resolved

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1, 2, 4, 8, 32, 4096, 16384, 1 << 18,
)  # fmt: skip
MOUNT_SETATTR, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, 0x8000, 1
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
LAST_CAPABILITY = Path("/proc/sys/kernel/cap_last_cap")
MADE_ANEW = {"tmp", "run", "var", "dev", "proc", "sys", "lost+found"}
"""Folders of the root that are not this machine's."""
TEMPORARY = MS_NOSUID | MS_NODEV | MS_NOEXEC
"""Of a `tmpfs`; the engine's default too."""

libc = ctypes.CDLL(None, use_errno=True)


class Container(Struct, frozen=True, kw_only=True):
    """What the compose file gives a container, and where it is on this machine."""

    tmpfs: list[str]
    """As in the compose file: ``/folder:size=64m,mode=1777``."""
    volumes: dict[str, str]
    """By its place in the container, a folder of this machine."""
    secrets: str
    """A folder with the container's secrets, and no others."""
    folder: str
    """The working folder, which is readable."""


def container_of(
    entry: Mapping[str, Any], *, volumes: Path, secrets: Path, folder: Path
) -> Container:
    """The container of one service; its volumes are folders below ``volumes``."""
    places: dict[str, str] = {}
    for volume in entry.get("volumes", []):
        source, target = volume.split(":")
        (volumes / source).mkdir(exist_ok=True)
        places[target] = str(volumes / source)
    return Container(tmpfs=entry["tmpfs"], volumes=places, secrets=str(secrets), folder=str(folder))


def main() -> None:
    container = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Container)
    command = resolved(sys.argv[2:])
    _enter_namespaces()
    _change_root(container)
    _drop_rights()
    os.execv(command[0], command)  # noqa: S606 - it becomes the command


def _enter_namespaces() -> None:
    """Get a file system that no other process sees."""
    user, group = os.geteuid(), os.getegid()
    flags = CLONE_NEWNS if user == 0 else CLONE_NEWNS | CLONE_NEWUSER
    if libc.unshare(flags):
        sys.exit(
            f"No file system of its own for a container: {os.strerror(ctypes.get_errno())}. Run"
            " the tests as root, or allow unprivileged user namespaces."
        )
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount("none", "/", MS_REC | MS_PRIVATE)


def _change_root(container: Container) -> None:
    root = Path(container.folder) / "root"
    root.mkdir()
    _mount("tmpfs", root, 0, "tmpfs")
    for path in Path("/").iterdir():
        if path.is_symlink():
            (root / path.name).symlink_to(path.readlink())
        elif path.is_dir() and path.name not in MADE_ANEW:
            _bind(path, root / path.name)
            _make_read_only(root / path.name)
    for name in ("dev", "proc", "sys"):
        _bind(Path("/") / name, root / name)
    _mount("tmpfs", root / "dev/shm", TEMPORARY, "tmpfs", "size=64m")
    for place in container.tmpfs:
        target, _, options = place.partition(":")
        (root / target[1:]).mkdir(parents=True)
        _mount("tmpfs", root / target[1:], TEMPORARY, "tmpfs", options)
    for path in (ROOT, Path(container.folder)):
        if not (root / str(path)[1:]).exists():  # below one of the folders that were made anew
            _bind(path, root / str(path)[1:])
            _make_read_only(root / str(path)[1:])
    _bind(Path(container.secrets), root / IN_CONTAINERS[1:])
    _make_read_only(root / IN_CONTAINERS[1:])
    for target, source in container.volumes.items():
        _bind(Path(source), root / target[1:])
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        _bind(ROOT, root / str(ROOT)[1:])  # where it leaves what it has measured
    _mount("none", root, MS_REMOUNT | MS_BIND | MS_RDONLY)
    os.chroot(root)
    os.chdir(container.folder)


def _drop_rights() -> None:
    for capability in range(int(LAST_CAPABILITY.read_text()) + 1):
        _checked(libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))
    _checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _bind(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    _mount(source, target, MS_BIND | MS_REC)


def _mount(
    source: Path | str, target: Path | str, flags: int, kind: str = "none", options: str = ""
) -> None:
    _checked(
        libc.mount(
            str(source).encode(), str(target).encode(), kind.encode(), ctypes.c_ulong(flags),
            options.encode(),
        )
    )  # fmt: skip


def _make_read_only(folder: Path) -> None:
    """With all that is mounted below it."""
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)
    _checked(
        libc.syscall(
            MOUNT_SETATTR, -1, str(folder).encode(), AT_RECURSIVE, attributes,
            ctypes.sizeof(attributes),
        )
    )  # fmt: skip


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main()
