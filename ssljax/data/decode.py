"""Image files decoded to arrays of one size.

Colours are taken as the file has them: a profile (ICC) is left out of account. What is transparent
is white. EXIF's rotation is undone, and of an animation the first frame is taken. JPEGs much larger
than what is asked for are decoded at a half, a quarter or an eighth of their size (`GAP`).
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import errno
import io
import math
import pathlib
from types import TracebackType
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile

from ssljax.errors import InputError, OF_MACHINE

File = pathlib.Path | bytes  # A file, or its content.

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm"),
)
# A JPEG is decoded at a fraction of its size that is at least GAP times what it is then resized to.
# On photographs this changes 8-bit values by 0.7 in the mean and by 15 at most
# (tests/data/test_decode.py); at 2000x1500 to 320 pixels it takes a third of the time.
GAP = 2.0
MOST_HEADERS = 4000  # The headers of sets of at most this many files are all read,
SOME_HEADERS = 1000  # and else of so many.
SOME_DEEP = 64  # Files with more than 8 bits whose values are looked at.
TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # By EXIF's orientation.


class Unreadable(InputError):
    """A file that can't be read as an image, whoever tries; --skip-bad leaves it out."""


class Header(NamedTuple):
    """What a file says of its image before it is decoded."""

    width: int
    height: int
    gray: bool
    deep: bool
    """Whether a value has more than 8 bits, or is a floating-point number."""


@dataclass(frozen=True)
class Decoder:
    """Function of an image file to an array (size, size, channels), uint8.

    The shorter side is resized to `size / part` and the middle is cut out, as by torchvision's
    `Resize` and `CenterCrop`. With `whole` the image is resized to a square without being cut, and
    the result is a pair of it and its width over its height. Raises `Unreadable` for a file that
    is no image, and InputError for another size where it must be `exact`.
    """

    size: int
    channels: int = 3
    whole: bool = False
    part: float = 1.0
    exact: bool = False
    black: float = 0.0
    white: float = 65535.0
    """Values of files with more than 8 bits, or floating point, that become 0 and 255."""
    note: str = ""
    """What is to be said of the set, if anything."""

    def __call__(self, file: File, name: str = "") -> np.ndarray | tuple[np.ndarray, float]:
        name = name or _name(file)
        with readable(name), _open(file) as picture:
            turn = _orientation(picture)
            width, height = _turned(picture.size, turn)
            plan = _whole if self.whole else _middle
            full, box = plan(width, height, self.size, self.part)
            reduced = 1.0
            if not self.exact:  # None where it is no JPEG.
                across = picture.width
                drafted = picture.draft(None, _turned([math.ceil(GAP * x) for x in full], turn))
                reduced = across / drafted[1][2] if drafted else 1.0
            _check_pixels(picture)
            picture.load()
            image = self._plain(picture)
            if turn is not None:
                image = image.transpose(turn)
        square = (self.size, self.size)
        if (width, height) != square and self.exact:
            raise InputError(
                f"{name} is {width}x{height}, others are {self.size}x{self.size}: "
                "give --image-size."
            )
        if image.size != square or self.part != 1:
            most = image.size * 2
            left, top, right, low = (min(x / reduced, y) for x, y in zip(box, most, strict=True))
            box = left, top, right, low
            image = image.resize(square, Image.Resampling.BILINEAR, box, reducing_gap=GAP)
        if image.mode != self._mode():
            image = image.convert(self._mode())
        pixels = np.asarray(image).reshape(self.size, self.size, self.channels)
        return (pixels, width / height) if self.whole else pixels

    def _mode(self) -> str:
        return "L" if self.channels == 1 else "RGB"

    def _plain(self, picture: Image.Image) -> Image.Image:
        """The picture in 8 bits, without transparency, gray or in colour."""
        if _deep(picture.mode):
            values = np.nan_to_num(np.asarray(picture, np.float32), nan=self.black)
            values = (values - self.black) * (255 / (self.white - self.black))
            return Image.fromarray((np.clip(values, 0, 255) + 0.5).astype(np.uint8))
        if picture.has_transparency_data:
            over = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
        if picture.mode == "L" or picture.mode == self._mode():
            return picture
        return picture.convert("L" if picture.mode == "1" else self._mode())


def decoder(
    files: Callable[[int], File],
    count: int,
    size: int,
    whole: bool = False,
    part: float = 1.0,
    skip_bad: bool = False,
    name: Callable[[int], str] | None = None,
    where: str = "the set",
) -> Decoder:
    """The decoder of a set of `count` files, of which file i is `files(i)`, by their headers.

    All headers are read where there are few thousand files, else evenly spaced ones. The images are
    gray if all of these are; `whole` is without effect if all are square. Without a `size`, they
    must be square and of one size. Values of more than 8 bits are scaled by the largest that is
    found, in the same way for all files. InputError says what is wrong; files that can't be read
    are passed over with `skip_bad`.
    """
    name = name or (lambda i: _name(files(i)))
    some = np.arange(count) if count <= MOST_HEADERS else _spaced(count, SOME_HEADERS)

    def look(i: int) -> Header | Unreadable:
        try:
            return header(files(i), name(i))
        except Unreadable as error:
            return error

    with ThreadPoolExecutor(16) as pool:
        found = dict(zip(some.tolist(), pool.map(look, some.tolist()), strict=True))
    bad = [x for x in found.values() if isinstance(x, Unreadable)]
    headers = {i: x for i, x in found.items() if isinstance(x, Header)}
    if bad and not (skip_bad and headers):
        raise bad[0]
    channels = 1 if all(x.gray for x in headers.values()) else 3
    shapes = sorted({x[:2] for x in headers.values()})
    exact = not size
    if not size:
        size = shapes[0][0]
        if shapes != [(size, size)]:
            raise InputError(
                f"The images in {where} are not all square and of one size "
                f"({', '.join('x'.join(map(str, s)) for s in shapes[:3])}, ...): give --image-size "
                f"{suggested_size([x[:2] for x in headers.values()])}, for instance."
            )
    whole = whole and any(w != h for w, h in shapes)
    deep = [i for i, x in headers.items() if x.deep]
    black, white, note = 0.0, 65535.0, ""
    if deep:
        deep = [deep[j] for j in _spaced(len(deep), SOME_DEEP)]
        black, white, note = _levels((files(i), name(i)) for i in deep)
    return Decoder(size, channels, whole, part, exact, black, white, note)


def header(file: File, name: str = "") -> Header:
    """What a file says of its image, turned as EXIF says; `Unreadable` if it says nothing."""
    with readable(name or _name(file)), _open(file) as picture:
        _check_pixels(picture, draft=True)
        mode, turn = picture.mode, _orientation(picture, unread=True)
        gray = mode in ("1", "L", "LA", "La") or _deep(mode)
        return Header(*_turned(picture.size, turn), gray, _deep(mode))


def fit(image: np.ndarray, size: int, part: float = 1.0) -> np.ndarray:
    """Resizes the shorter side to `size / part` and cuts out the middle: (size, size, channels).

    Of uint8 images, with Pillow's antialiased bilinear resampling. The same, to the bit, as
    torchvision's `Resize(size / part)` and `CenterCrop(size)` of a Pillow image.
    """
    height, width = image.shape[:2]
    return _resize(image, *_middle(width, height, size, part), size)


def squeeze(image: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """Resizes a uint8 image to (size, size, channels), and gives its width over its height."""
    height, width = image.shape[:2]
    return _resize(image, *_whole(width, height, size, 1.0), size), width / height


def _resize(image: np.ndarray, full: tuple, box: tuple, size: int) -> np.ndarray:
    channels = image.shape[-1]
    if channels not in (1, 3):  # Pillow takes 2 and 4 for colours and alpha, and no more.
        each = [_resize(image[..., i : i + 1], full, box, size) for i in range(channels)]
        return np.concatenate(each, -1)
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    picture = picture.resize((size, size), Image.Resampling.BILINEAR, box)
    return np.asarray(picture).reshape(size, size, channels)


def _middle(width: int, height: int, size: int, part: float) -> tuple[tuple, tuple]:
    """Size of the whole resized picture, and the box in the original of which `size` is cut out.

    Sides and offsets are rounded as torchvision rounds them.
    """
    short = round(size / part)
    full = (short, max(short, int(short * height / width)))
    if width > height:
        full = (max(short, int(short * width / height)), short)
    left, top = (round((x - size) / 2) for x in full)
    across, down = width / full[0], height / full[1]
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return full, (*box[:2], min(box[2], width), min(box[3], height))


def _whole(width: int, height: int, size: int, part: float) -> tuple[tuple, tuple]:
    return (size, size), (0, 0, width, height)


def _spaced(count: int, most: int) -> np.ndarray:
    """At most `most` indices of `count`, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def suggested_size(shapes: Iterable[tuple[int, ...]]) -> int:
    """A size to resize images to: the median of their shorter sides, to a multiple of 32.

    At most 256; sides below 32 as they are.
    """
    side = int(np.median([min(shape) for shape in shapes]))
    return min(256, 32 * round(side / 32)) if side >= 32 else side


def _levels(files: Iterable[tuple[File, str]]) -> tuple[float, float, str]:
    """Values of files with more than 8 bits that become 0 and 255, and a line that says so."""
    least, largest, whole_numbers, count = math.inf, -math.inf, True, 0
    for file, name in files:
        try:
            with readable(name), _open(file) as picture:
                whole_numbers = whole_numbers and picture.mode != "F"
                values = np.asarray(picture)
        except Unreadable:  # Of which the first read speaks.
            continue
        values = values[np.isfinite(values)]
        if values.size:
            count += 1
            least, largest = min(least, float(values.min())), max(largest, float(values.max()))
    black, white = 0.0, 65535.0
    if not count:
        return black, white, ""
    if least < 0 or (not whole_numbers and largest > 255):
        black, white = least, largest
    elif whole_numbers:  # As many bits as cameras and scanners have: 8, 10, 12, 14, 16.
        bits = max(8, int(largest).bit_length())
        white = 2.0 ** (bits + bits % 2) - 1
    else:
        white = 1.0 if largest <= 1 else 255.0
    white = white if white > black else black + 1
    note = (
        f"{'Values of more than 8 bits' if whole_numbers else 'Floating-point values'}: "
        f"{black:g} becomes 0 and {white:g} becomes 255 in all files, by the values of {count} "
        f"({least:g} to {largest:g})."
    )
    return black, white, note


def _deep(mode: str) -> bool:
    return mode.startswith("I") or mode == "F"


def _open(file: File) -> Image.Image:
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    if not isinstance(file, bytes) and file.suffix.lower() in (".heic", ".heif"):
        _read_heif()
    try:
        return Image.open(source)
    except Image.DecompressionBombError as error:
        # A baseline JPEG can be decoded at an eighth of its size, which takes little memory.
        try:
            picture = JpegImageFile(source)
        except SyntaxError:
            raise error from None
        if "progressive" in picture.info:
            raise
        return picture


def _name(file: File) -> str:
    return "An image" if isinstance(file, bytes) else str(file)


def _read_heif() -> None:
    try:
        from pillow_heif import (  # pyright: ignore[reportMissingImports] - not required
            register_heif_opener,
        )
    except ImportError:
        return
    register_heif_opener()


def _check_pixels(picture: Image.Image, draft: bool = False) -> None:
    """Refuses as many pixels as Pillow does, once a JPEG is scaled."""
    most = 2 * (Image.MAX_IMAGE_PIXELS or math.inf)
    width, height = picture.size
    scaled = 64 if draft and isinstance(picture, JpegImageFile) else 1
    if width * height > most * scaled:
        raise Image.DecompressionBombError(
            f"Image size ({width * height} pixels) exceeds limit of {most} pixels"
        )


def _orientation(picture: Image.Image, unread: bool = False) -> Image.Transpose | None:
    """How the picture is to be turned; `unread` does not look behind its pixels."""
    if picture.format == "TIFF":  # Pillow turns it.
        return None
    if unread and picture.format == "PNG" and "exif" not in picture.info:
        return None  # Pillow would decode it to look.
    try:
        return TURN.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # What is wrong with EXIF is many kinds of errors, and no fault of the image.
        return None


def _turned(size: Iterable[int], turn: Image.Transpose | None) -> tuple[int, int]:
    across, down = size
    on_its_side = turn in (TURN[5], TURN[6], TURN[7], TURN[8])
    return (down, across) if on_its_side else (across, down)


class readable:
    """Turns an error of Pillow on a broken file into an `Unreadable` that names the file.

    What is wrong with the machine (`OF_MACHINE`) is no fault of the file, and stays as it is.
    """

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, (InputError, MemoryError)):
            return
        number = error.errno if isinstance(error, OSError) else None
        if number in (*OF_MACHINE, errno.ETIMEDOUT):
            return
        if isinstance(error, Image.DecompressionBombError):
            size = str(error).split(",")[0]
            raise Unreadable(
                f"{self.name} would take too much memory ({size}): resize or remove it, or leave "
                "out all such files with --skip-bad."
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        elif isinstance(error, Image.UnidentifiedImageError):
            reason = "it is of no format that Pillow knows"
            if self.name.lower().endswith((".heic", ".heif")):
                reason += "; HEIC needs `pip install pillow-heif`"
        raise Unreadable(
            f"{self.name} can't be read as an image ({reason}): repair or remove it, or leave out "
            "all such files with --skip-bad."
        ) from error
