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
from itertools import chain
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
from shared.dataset.captions import (
    Caption,
    caption_part,
    controls_in,
    from_name,
    merge,
    repeats_tags,
)
from shared.dataset.remarks import IN_NAME, SECOND_PROMPT

SIDECAR_SUFFIXES = (".yaml", ".yml", ".caption", ".txt")
"""Suffixes of the files that belong to one image, the highest priority first."""
FOLDER_FILES = ("batch_id.txt", "loss_scale.txt", "local.yaml", "local.yml", *SINGLE_VALUE_FILES)
GLOBAL_FILES = ("global.yaml", "global.yml")
RESERVED = frozenset({*FOLDER_FILES, *GLOBAL_FILES})
"""Names of files that never belong to one image alone."""
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

    def __init__(
        self,
        texts: Mapping[str, bytes],
        images: Iterable[str] = (),
        skipped: Iterable[str] = (),
    ) -> None:
        """``images`` are the names of all images, usable or not; ``skipped`` of other files."""
        self._texts = texts
        self._skipped = {_without_suffix(name): name for name in skipped}
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
        self._compared: set[tuple[str, ...]] = set()
        """Files of one folder that were compared with one another."""
        self._left_out: dict[str, str] = {}
        """By text file: the image that it belongs to, which is not trained on."""
        self.warnings: list[str] = []
        """A line with the file's name for each value that is not taken as it stands."""
        self.of_several_lines: list[str] = []
        """Names of plain caption files with more than one line."""
        self.of_repeated_tags: list[str] = []
        """Names of plain captions, and of images named by one, in which a tag is there twice."""

    def of(self, image: str) -> ImageTexts:
        """What the files say of an image."""
        own = list(self._own_files(image))
        of_folders = list(self._folder_files(PurePosixPath(image)))
        for together in of_folders:
            self._compare(together)
        names = [*own, *chain.from_iterable(of_folders)]
        files = [self._file(name) for name in names]
        captions = [file.options.caption for file in files]
        remarks = list(_left_out(own, files))
        main = next((index for index, caption in enumerate(captions) if caption.main), None)
        if main is None:
            captions = [from_name(image), *captions]
            remarks += self._on_name(image)
        scalars = {name: _first_value(files, name) for name in SCALARS}
        return ImageTexts(
            options=ImageOptions(caption=merge(captions), **scalars),
            source=_source(captions, own, names, main),
            files=tuple(names),
            remarks=tuple(remarks),
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
            if file.has_repeats:
                self.of_repeated_tags.append(name)
        return self._read[name]

    def _compare(self, together: tuple[str, ...]) -> None:
        """Warn once of what a folder's files say otherwise than a nearer one of the same folder."""
        if len(together) > 1 and together not in self._compared:
            self._compared.add(together)
            self.warnings += _left_out(together, [self._file(name) for name in together])

    def _on_name(self, image: str) -> Iterator[str]:
        """What of the caption in an image's name is not taken."""
        name = caption_part(image)
        if removed := controls_in(name):
            yield f"{IN_NAME}{removed}"
        if repeats_tags(name):
            self.of_repeated_tags.append(image)

    def _own_files(self, image: str) -> Iterator[str]:
        """The files that belong to this image alone, the nearest first."""
        path = PurePosixPath(image)
        if (folder := str(path.parent)) not in self._folders:
            return
        is_alone = len(self._stems[_folded(str(path.with_name(path.stem)))]) <= 1
        for suffix in SIDECAR_SUFFIXES:
            for stem in (path.stem, path.name):
                found = self._found(folder, stem + suffix, in_capitals=is_alone)
                if f"{stem}{suffix}".casefold() in RESERVED:
                    self._warn_of_reserved(found, image)
                else:
                    yield from found

    def _warn_of_reserved(self, found: Iterable[str], image: str) -> None:
        for name in found:
            warning = (
                f"{name}: read as its folder's settings, for every image there, and not as"
                f" {image}'s own; if it is, give both another name"
            )
            if warning not in self.warnings:
                self.warnings.append(warning)

    def _folder_files(self, image: PurePosixPath) -> Iterator[tuple[str, ...]]:
        """The files of the image's folder, then those for all below of each folder above it."""
        names = (self._found(str(image.parent), name) for name in FOLDER_FILES)
        yield tuple(dict.fromkeys(chain.from_iterable(names)))
        for folder in map(str, image.parents):
            yield tuple(chain.from_iterable(self._found(folder, name) for name in GLOBAL_FILES))

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
        stem, image = _without_suffix(name), self._left_out.get(name)
        if file := self._skipped.get(stem) or self._skipped.get(_without_suffix(stem)):
            image = image or file
        if image:
            return f"not used, because its image {image} is left out"
        known = (*FOLDER_FILES, *GLOBAL_FILES)
        if path.name.casefold() in known:
            alike = (each for each in self._folded[_folded(name)] if each in self._read)
            other = next(alike, None)
            same = f"because {other} has the same name but for its capitals"
            return f"not used, {same}" if other else "no image uses it: there is none in its folder"
        if near := get_close_matches(path.name.casefold(), known, 1, NEAR):
            return f"no image uses it; did you mean {near[0]}?"
        stems = (path.stem.casefold(), PurePosixPath(path.stem).stem.casefold())
        for image in (image for stem in stems for image in self._images.get(stem, ())):
            if PurePosixPath(image).parent == path.parent:
                return f"no image uses it, because another file fits {image} better, or as well"
            return f"no image uses it; {image} has its name, but is not in the same folder"
        return "no image uses it; a caption has its image's name and folder, as in a.txt for a.jpg"


def _without_suffix(path: str) -> str:
    return str(PurePosixPath(path).with_suffix("")).casefold()


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


def _left_out(names: Sequence[str], files: Sequence[TextFile]) -> Iterator[str]:
    """What some files of one rank say otherwise than the first of them that says anything.

    ``files`` begins with those of these names.
    """
    first: dict[str, tuple[str, Any]] = {}
    for name, file in zip(names, files, strict=False):
        for field, value in _said(file.options):
            nearer, used = first.setdefault(field, (name, value))
            if used != value:
                because = SECOND_PROMPT if field == "" else f" says {used}"
                yield f"{name}: its {field}{value!r} is left out, because {nearer}{because}"


def _said(options: ImageOptions) -> Iterator[tuple[str, Any]]:
    """What a file gives, by the words that a line names it with."""
    if options.caption.main:
        yield "", options.caption.main
    for tag in options.caption.tags:
        yield f"weight of {tag.text!r} ", tag.weight
    for name in SCALARS:
        if (value := getattr(options, name)) is not None:
            yield f"{name} ", value


def _first_value(files: Sequence[TextFile], name: str) -> Any:
    values = (getattr(file.options, name) for file in files)
    return next((value for value in values if value is not None), None)
