"""The command that changes a check's pictures, which people name by file or number."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from everydream.commands.jobs import query
from everydream.commands.parameters import Json, Key, Url, stdout

if TYPE_CHECKING:
    from everydream.client import Client


Repeated = tuple[str, ...]


def _option(name: str, metavar: str, text: str) -> Parameter:
    """An option that may be given for each of several pictures."""
    return Parameter(name=name, metavar=metavar, show_default=False, help=f"{text}; repeatable.")


def edit(
    check: str,
    /,
    *,
    caption: Annotated[
        Repeated,
        _option("--caption", "NAME=TEXT", "Another caption for a picture, by its name or number"),
    ] = (),
    leave_out: Annotated[
        Repeated, _option("--leave-out", "NAME", "Do not train on a picture, by its name or number")
    ] = (),
    restore: Annotated[
        Repeated,
        _option("--restore", "NAME", "Train on a picture with the caption that was found"),
    ] = (),
    json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Change captions of a check's pictures, leave some out, or take that back, before training."""

    async def ask(client: Client, _flags: str) -> dict[str, Any]:
        expect_changes(caption, [*leave_out, *restore])
        pictures = await client.pictures(check)
        await client.edit(check, changes(caption, leave_out, restore, pictures))
        return await client.status(check)

    def show_people(status: dict[str, Any], flags: str) -> None:
        from everydream.terminal.tables import print_status  # noqa: PLC0415

        print_status(stdout(), status, flags)

    query(ask, url, key, json, show_people)


def expect_changes(captions: Sequence[str], others: Sequence[str]) -> None:
    """Raises Misused: there is nothing to change, or a caption has no name."""
    from everydream.outcome import Misused  # noqa: PLC0415

    if not captions and not others:
        raise Misused(
            "nothing is to be changed: give --caption 'NAME=TEXT', --leave-out NAME or"
            " --restore NAME"
        )
    if wrong := [each for each in captions if "=" not in each]:
        raise Misused(f"--caption {wrong[0]}: expected NAME=TEXT")


def changes(
    captions: Sequence[str],
    left_out: Sequence[str],
    restored: Sequence[str],
    pictures: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The changes of a request, by the pictures' numbers.

    Raises:
        Misused: two captions for a picture, or one that is restored is changed, too.
        Refused: a name is that of no picture, or of several.
    """
    from everydream.outcome import Misused  # noqa: PLC0415

    names = _names_of(pictures)
    found: dict[int, dict[str, Any]] = {}
    for each in captions:
        name, caption = _name_and_caption(each, names)
        number = _number(name, names)
        change = found.setdefault(number, {"number": number, "caption": caption})
        if change["caption"] != caption:
            file = next(each["file"] for each in pictures if each["number"] == number)
            raise Misused(
                f"--caption: {file} is given twice, as {change['caption']!r} and as {caption!r}"
            )
    for name in left_out:
        number = _number(name, names)
        change = found.setdefault(number, {"number": number})
        if change.get("caption"):
            raise Misused(f"--leave-out {name}: the same command gives this picture a caption")
        change["use"] = False
    for name in restored:
        number = _number(name, names)
        as_found = {"number": number, "caption": None, "use": True}
        if found.setdefault(number, as_found) != as_found:
            raise Misused(f"--restore {name}: the same command changes this picture otherwise")
    return [*found.values()]


def _names_of(pictures: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, str]]:
    """By number, path and name alone: the numbers and paths of the pictures that it may mean."""
    names: dict[str, dict[int, str]] = {}
    for each in pictures:
        number, path = each["number"], each["file"]
        for name in {str(number), path.rpartition("/")[2]}:
            names.setdefault(name, {})[number] = path
    return names | {each["file"]: {each["number"]: each["file"]} for each in pictures}


def _name_and_caption(text: str, names: Collection[str]) -> tuple[str, str]:
    """A file's name may have equals signs, too."""
    splits = [(text[:place], text[place + 1 :]) for place, each in enumerate(text) if each == "="]
    return next((split for split in splits if split[0] in names), splits[0])


def _number(name: str, names: Mapping[str, Mapping[int, str]]) -> int:
    from shared.errors import Refused  # noqa: PLC0415

    found = names.get(name, {})
    if len(found) > 1:
        raise Refused(f"{name}: several pictures have this name: {', '.join(found.values())}")
    if not found:
        near = get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else "everydream show lists them"
        raise Refused(f"{name}: no picture of the check has this name; {hint}")
    return next(iter(found))
