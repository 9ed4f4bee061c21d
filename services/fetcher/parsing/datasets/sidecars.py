"""Find the text files that apply to an image: captions, tags and options, by EveryDream2's rules.

For an image ``a/b.png`` these files count, the nearest first: ``a/b.yaml``, ``.yml``, ``.caption``
and ``.txt``, each also as ``a/b.png.txt``; ``a/local.yaml`` and single-value files such as
``a/multiply.txt``; ``global.yaml`` in ``a`` and in every parent folder. A caption is always text:
it never names a file to read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any, Literal

from msgspec import Struct

from services.fetcher.parsing.datasets.sidecar_values import (
    SCALARS,
    SINGLE_VALUE_FILES,
    YAML_SUFFIXES,
    ImageOptions,
    TextFile,
    read_text_file,
)
from shared.dataset.captions import Caption, from_name, merge
from shared.dataset.remarks import SECOND_PROMPT

SIDECAR_SUFFIXES = (".yaml", ".yml", ".caption", ".txt")
"""Suffixes of the files that belong to one image, the highest priority first."""
FOLDER_FILES = ("batch_id.txt", "loss_scale.txt", "local.yaml", "local.yml", *SINGLE_VALUE_FILES)
GLOBAL_FILES = ("global.yaml", "global.yml")
NEAR = 0.8
"""How alike two file names must be for a warning to name the other, 0 to 1."""

Source = Literal["name", "text", "yaml", "folder", "missing"]
"""Where a main prompt comes from: the image's name, its own text or YAML file, a folder's file."""


class ImageTexts(Struct, frozen=True, kw_only=True):
    """What all files together say of one image."""

    options: ImageOptions
    source: Source
    files: tuple[str, ...] = ()
    """The files that apply to it, the nearest first."""
    remarks: tuple[str, ...] = ()
    """What of its own files is not used."""
    has_empty_file: bool = False
    """One of its own caption files is empty."""


class Sidecars:
    """All text files of an archive, by path."""

    def __init__(self, texts: Mapping[str, bytes], images: Iterable[str] = ()) -> None:
        """``images`` are the names of all images, usable or not."""
        self._texts = texts
        self._names: dict[str, str] = {}
        """By normal path: the name in the archive."""
        self._folded: dict[str, list[str]] = defaultdict(list)
        """By path without regard to the case of its last part: normal paths."""
        for name in texts:
            path = str(PurePosixPath(name))
            if self._names.setdefault(path, name) == name:
                self._folded[_folded(path)].append(path)
        self._folders = {str(PurePosixPath(path).parent) for path in self._names}
        self._images: dict[str, list[str]] = defaultdict(list)
        """By stem, folded: the paths of images."""
        self._stems: dict[str, set[str]] = defaultdict(set)
        """By folder and folded stem: the stems of images."""
        for image in images:
            path_of = PurePosixPath(image)
            self._images[path_of.stem.casefold()].append(image)
            self._stems[_folded(str(path_of.with_name(path_of.stem)))].add(path_of.stem)
        self._read: dict[str, TextFile] = {}
        self._left_out: dict[str, str] = {}
        """By text file: the image that it belongs to, which is not trained on."""
        self.warnings: list[str] = []
        """A line with the file's name for each value that is not taken as it stands."""
        self.of_several_lines: list[str] = []
        """Names of plain caption files with more than one line."""

    def of(self, image: str) -> ImageTexts:
        """What the files say of an image."""
        own = list(self._own_files(image))
        names = [*own, *self._folder_files(PurePosixPath(image))]
        files = [self._file(name) for name in names]
        captions = [file.options.caption for file in files]
        main = next((index for index, caption in enumerate(captions) if caption.main), None)
        if main is None:
            captions = [from_name(image), *captions]
        scalars = {name: _first_value(files, name) for name in SCALARS}
        return ImageTexts(
            options=ImageOptions(caption=merge(captions), **scalars),
            source=_source(captions, own, names, main),
            files=tuple(names),
            remarks=tuple(_unused_prompts(own, captions, main)),
            has_empty_file=any(file.is_empty for file in files[: len(own)]),
        )

    def leave_out(self, image: str) -> None:
        """Note that an image is not trained on: no other one uses its own files."""
        self._left_out |= dict.fromkeys(self._own_files(image), image)

    def unused(self) -> Iterator[str]:
        """A line for each file that no image uses."""
        for name in self._texts:
            if name not in self._read:
                yield f"{name}: {self._why_unused(name)}"

    def _file(self, name: str) -> TextFile:
        """Cached only for files that exist: there are far too many names that do not."""
        if name not in self._read:
            file = read_text_file(name, self._texts[name])
            self._read[name] = file
            self.warnings += [f"{name}: {remark}" for remark in file.remarks]
            if file.lines > 1:
                self.of_several_lines.append(name)
        return self._read[name]

    def _own_files(self, image: str) -> Iterator[str]:
        """The files that belong to this image alone, the nearest first."""
        path = PurePosixPath(image)
        if (folder := str(path.parent)) not in self._folders:
            return
        is_alone = len(self._stems[_folded(str(path.with_name(path.stem)))]) <= 1
        for suffix in SIDECAR_SUFFIXES:
            for stem in (path.stem, path.name):
                yield from self._found(folder, stem + suffix, in_capitals=is_alone)

    def _folder_files(self, image: PurePosixPath) -> Iterator[str]:
        for name in FOLDER_FILES:
            yield from self._found(str(image.parent), name)
        for folder in map(str, image.parents):
            for name in GLOBAL_FILES:
                yield from self._found(folder, name)

    def _found(self, folder: str, name: str, *, in_capitals: bool = True) -> Iterator[str]:
        """The file of this name; else the only one of this name in other capitals.

        Without ``in_capitals`` only the suffix may be in others.
        """
        if folder not in self._folders:
            return
        path = str(PurePosixPath(folder) / name)
        if path in self._names:
            yield self._names[path]
            return
        alike = self._folded.get(_folded(path), [])
        same_stem = [each for each in alike if PurePosixPath(each).stem == PurePosixPath(path).stem]
        for only in (same_stem, alike if in_capitals else ()):
            if len(only) == 1:
                yield self._names[only[0]]
                return

    def _why_unused(self, name: str) -> str:
        path = PurePosixPath(name)
        if image := self._left_out.get(name):
            return f"not used, because its image {image} is left out"
        known = (*FOLDER_FILES, *GLOBAL_FILES)
        if path.name.casefold() in known:
            return "no image uses it: there is none in its folder"
        if near := get_close_matches(path.name.casefold(), known, 1, NEAR):
            return f"no image uses it; did you mean {near[0]}?"
        stems = (path.stem.casefold(), PurePosixPath(path.stem).stem.casefold())
        for image in (image for stem in stems for image in self._images.get(stem, ())):
            if PurePosixPath(image).parent == path.parent:
                return f"no image uses it, because another file fits {image} better, or as well"
            return f"no image uses it; {image} has its name, but is not in the same folder"
        return "no image uses it; a caption has its image's name and folder, as in a.txt for a.jpg"


def _folded(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.casefold()}"


def _source(
    captions: Sequence[Caption], own: Sequence[str], names: Sequence[str], main: int | None
) -> Source:
    if main is None:
        return "name" if merge(captions).text else "missing"
    if main >= len(own):
        return "folder"
    return "yaml" if PurePosixPath(names[main].lower()).suffix in YAML_SUFFIXES else "text"


def _unused_prompts(
    own: Sequence[str], captions: Sequence[Caption], main: int | None
) -> Iterator[str]:
    """Main prompts of the image's own files that stand behind another one's."""
    if main is None:
        return
    for name, caption in zip(own[main + 1 :], captions[main + 1 :], strict=False):
        if caption.main and caption.main != captions[main].main:
            yield (f"{name}: its {caption.main!r} is left out, because {own[main]}{SECOND_PROMPT}")


def _first_value(files: Sequence[TextFile], name: str) -> Any:
    values = (getattr(file.options, name) for file in files)
    return next((value for value in values if value is not None), None)
