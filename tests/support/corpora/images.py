"""Hostile image files: bombs, truncated files, other formats; and unusual but valid ones."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

MIB = 1 << 20
SIGNATURE = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112
NO_IMAGE = "not a JPEG, PNG, BMP, WebP, HEIC or AVIF image"
BROKEN = "broken or cut off"
TOO_LARGE = "more than 89 million pixels"
NAMES = ("bad.png", "bad.jpg", "bad.webp", "bad.bmp")


def picture(mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> Image.Image:
    """An image that is not uniform."""
    image = Image.new("RGB", size, (200, 30, 30))
    ImageDraw.Draw(image).rectangle((0, 0, size[0] // 2, size[1] // 2), fill=(20, 90, 240))
    return image.convert(mode)


def saved(kind: str, image: Image.Image | None = None, **more: Any) -> bytes:
    buffer = io.BytesIO()
    (image or picture()).save(buffer, kind, **more)
    return buffer.getvalue()


# --- PNG by hand ----------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes, said: int | None = None) -> bytes:
    length = struct.pack(">I", len(data) if said is None else said)
    return length + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, size: tuple[int, int] = (8, 8), depth: int = 8, color: int = 2) -> bytes:
    """A PNG with these chunks before a plain image, or instead of it."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress((b"\0" + bytes(24)) * 8))
    body = b"".join(chunks) if size != (8, 8) else b"".join([*chunks, rows])
    return SIGNATURE + head + body + chunk(b"IEND", b"")


@cache
def packed_zeros(mebibytes: int) -> bytes:
    return zlib.compress(bytes(mebibytes * MIB), 9)


def bmp(width: int, height: int, *, bits: int = 24, compression: int = 0) -> bytes:
    """A header alone."""
    sizes = (40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", *sizes)


def webp(width: int, height: int) -> bytes:
    """An extended header alone."""
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    inner = b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas
    return b"RIFF" + struct.pack("<I", 4 + len(inner)) + b"WEBP" + inner


def jpeg_head(width: int, height: int) -> bytes:
    """A valid file with another size in its header."""
    whole = saved("JPEG")
    at = whole.index(b"\xff\xc0") + 5
    return whole[:at] + struct.pack(">HH", height, width) + whole[at + 4 :]


def filled_jpeg(fill: int) -> bytes:
    """A JPEG with so many fill bytes in its picture's data, before a byte that is no marker."""
    whole = saved("JPEG")
    at = whole.index(b"\xff\xda")
    at += 2 + int.from_bytes(whole[at + 2 : at + 4], "big")
    return whole[:at] + b"\xff" * fill + b"\0" + whole[at:]


def avif_head(width: int, height: int) -> bytes:
    """A valid file with another size in its header."""
    whole = saved("AVIF")
    at = whole.index(b"ispe") + 8
    return whole[:at] + struct.pack(">II", width, height) + whole[at + 8 :]


def frames(kind: str, count: int) -> bytes:
    one = [picture(size=(16, 16 + number % 2)).resize((16, 16)) for number in range(count)]
    for number, each in enumerate(one):
        each.putpixel((number % 16, number // 16 % 16), (number % 256, 0, 0))
    return saved(kind, one[0], save_all=True, append_images=one[1:], duration=10)


def photo_cd_in_webp() -> bytes:
    """A WebP that Pillow's Photo CD reader would also accept."""
    plain = saved("WEBP", lossless=True)
    gap = 2048 - len(plain) - 8
    junk = bytes(gap) + b"PCD_" + bytes(8 * 192 * 1024)
    more = b"JUNK" + struct.pack("<I", len(junk)) + junk
    whole = plain + more
    return b"RIFF" + struct.pack("<I", len(whole) - 8) + whole[8:]


class Bad(NamedTuple):
    """A file that is skipped, and a part of the reason."""

    make: Callable[[], bytes]
    reason: str


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 64 48
%%EndComments
(canary) (w) file closefile
showpage
"""

BAD: Mapping[str, Bad] = {
    "nothing": Bad(lambda: b"", "an empty file, of 0 bytes"),
    "a program": Bad(lambda: b"MZ" + bytes(500), NO_IMAGE),
    "another program": Bad(lambda: b"\x7fELF" + bytes(500), NO_IMAGE),
    "a script": Bad(lambda: b"#!/bin/sh\ntouch canary\n", NO_IMAGE),
    "a page": Bad(lambda: b"<!DOCTYPE html><html>", NO_IMAGE),
    "a drawing in SVG": Bad(
        lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', NO_IMAGE
    ),
    "a PDF": Bad(lambda: b"%PDF-1.7\n", NO_IMAGE),
    "PostScript": Bad(lambda: EPS, NO_IMAGE),
    "PostScript with a preview": Bad(
        lambda: b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(EPS)) + bytes(20) + EPS, NO_IMAGE
    ),
    "a Windows metafile": Bad(lambda: b"\xd7\xcd\xc6\x9a" + bytes(90), NO_IMAGE),
    "a Photoshop file": Bad(lambda: b"8BPS\0\1" + bytes(90), NO_IMAGE),
    "a FITS file": Bad(lambda: b"SIMPLE  =                    T" + bytes(2880), NO_IMAGE),
    "a GIF": Bad(lambda: saved("GIF"), NO_IMAGE),
    "a GIF of 500 frames": Bad(lambda: frames("GIF", 500), NO_IMAGE),
    "a TIFF": Bad(lambda: saved("TIFF"), NO_IMAGE),
    "a TIFF of 100 pages": Bad(lambda: frames("TIFF", 100), NO_IMAGE),
    "an icon": Bad(lambda: saved("ICO"), NO_IMAGE),
    "a portable pixmap": Bad(lambda: saved("PPM"), NO_IMAGE),
    "a Targa": Bad(lambda: saved("TGA"), NO_IMAGE),
    "a JPEG 2000": Bad(lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(90), NO_IMAGE),
    "a bitmap without its header": Bad(lambda: saved("DIB"), NO_IMAGE),
    "a zip": Bad(lambda: b"PK\x03\x04" + bytes(90), NO_IMAGE),
    "a signature alone": Bad(lambda: SIGNATURE, NO_IMAGE),
    "a PNG of 10 gigapixels": Bad(lambda: png(size=(100_000, 100_000)), TOO_LARGE),
    "a PNG of 2 gigapixels in a row": Bad(lambda: png(size=((1 << 31) - 1, 1)), TOO_LARGE),
    "a PNG just too large": Bad(lambda: png(size=(9434, 9434)), TOO_LARGE),
    "a BMP of 4 gigapixels": Bad(lambda: bmp(65_535, 65_535), TOO_LARGE),
    "a BMP upside down": Bad(lambda: bmp(65_535, -65_535), TOO_LARGE),
    "a JPEG of 4 gigapixels": Bad(lambda: jpeg_head(65_500, 65_500), TOO_LARGE),
    "an AVIF of 81 megapixels in a few bytes": Bad(
        lambda: avif_head(9000, 9000), "9000 x 9000 by its header, but coded as 64 x 48"
    ),
    "an AVIF that is larger than it says": Bad(
        lambda: avif_head(8, 8), "8 x 8 by its header, but coded as 64 x 48"
    ),
    "an AVIF of 10 gigapixels": Bad(lambda: avif_head(100_000, 100_000), ""),
    "a WebP of 268 megapixels": Bad(lambda: webp(16_383, 16_383), ""),
    "a PNG of no width": Bad(lambda: png(size=(0, 9)), ""),
    "a PNG of no height": Bad(lambda: png(size=(9, 0)), ""),
    "a BMP of no size": Bad(lambda: bmp(0, 0), ""),
    "a BMP of negative width": Bad(lambda: bmp(-9, 9), ""),
    "a BMP in a packing of its own": Bad(lambda: bmp(9, 9, compression=9), ""),
    "a JPEG of no size": Bad(lambda: jpeg_head(0, 0), ""),
    "a chunk that says it is gigabytes": Bad(
        lambda: png(chunk(b"tEXt", b"a\0b", said=0x7FFFFFFF)), BROKEN
    ),
    "a PNG without an image": Bad(lambda: png(size=(9, 9)), BROKEN),
    "a PNG of noise": Bad(lambda: png(chunk(b"IDAT", b"\xff" * 99), size=(9, 9)), BROKEN),
}  # fmt: skip

ODD: Mapping[str, tuple[str, Callable[[], bytes], tuple[int, int]]] = {
    "one pixel": ("a.png", lambda: saved("PNG", picture(size=(1, 1))), (1, 1)),
    "one row": ("a.png", lambda: saved("PNG", Image.new("RGB", (9000, 1))), (9000, 1)),
    "one column": ("a.bmp", lambda: saved("BMP", Image.new("RGB", (1, 9000))), (1, 9000)),
    "CMYK": ("a.jpg", lambda: saved("JPEG", picture("CMYK")), (64, 48)),
    "grey": ("a.jpg", lambda: saved("JPEG", picture("L")), (64, 48)),
    "16 bits": ("a.png", lambda: saved("PNG", Image.new("I;16", (64, 48), 40_000)), (64, 48)),
    "one bit": ("a.png", lambda: saved("PNG", picture("1")), (64, 48)),
    "a palette": ("a.png", lambda: saved("PNG", picture("P")), (64, 48)),
    "alpha": ("a.webp", lambda: saved("WEBP", picture("RGBA"), lossless=True), (64, 48)),
    "grey with alpha": ("a.png", lambda: saved("PNG", picture("LA")), (64, 48)),
    "a wrong suffix": ("a.jpg", lambda: saved("PNG"), (64, 48)),
    "a profile that is none": ("a.png", lambda: saved("PNG", icc_profile=b"rubbish" * 9), (64, 48)),
    "EXIF of 60 KB": ("a.jpg", lambda: saved("JPEG", exif=b"Exif\0\0" + b"x" * 60_000), (64, 48)),
    "EXIF that is noise": ("a.png", lambda: saved("PNG", exif=b"MM\0*\xff\xff\xff\xff"), (64, 48)),
    "EXIF that circles": (
        "a.jpg", lambda: saved("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0"), (64, 48),
    ),
    "on its side": ("a.jpg", lambda: saved("JPEG", exif=turned(6)), (48, 64)),
    "no such orientation": ("a.jpg", lambda: saved("JPEG", exif=turned(77)), (64, 48)),
    "a PNG of 100 frames": ("a.png", lambda: frames("PNG", 100), (16, 16)),
    "a WebP of 100 frames": ("a.webp", lambda: frames("WEBP", 100), (16, 16)),
    "a WebP that is a Photo CD too": ("a.webp", photo_cd_in_webp, (64, 48)),
    "text that unpacks to 16 MiB": (
        "a.png", lambda: png(chunk(b"zTXt", b"Comment\0\0" + packed_zeros(16))), (8, 8),
    ),
    "international text that unpacks to 16 MiB": (
        "a.png", lambda: png(chunk(b"iTXt", b"Comment\0\1\0\0\0" + packed_zeros(16))), (8, 8),
    ),
    "a colour profile that unpacks to 16 MiB": (
        "a.png", lambda: png(chunk(b"iCCP", b"icc\0\0" + packed_zeros(16))), (8, 8),
    ),
    "66 texts of 1 MiB": (
        "a.png",
        lambda: png(*[chunk(b"zTXt", b"%d\0\0" % n + packed_zeros(1)) for n in range(66)]),
        (8, 8),
    ),
    "400,000 fill bytes": ("a.jpg", lambda: filled_jpeg(400_000), (64, 48)),
    "something after its end": ("a.png", lambda: saved("PNG") + b"PK\x03\x04" * 99, (64, 48)),
}  # fmt: skip
"""Valid images: name, content, and the size (width, height) that is trained on."""


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif
