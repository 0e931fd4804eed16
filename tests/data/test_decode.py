"""Image files as people have them, decoded: real photographs written in every form."""

import errno
import io
import pathlib
import struct
import zlib

import numpy as np
from PIL import ExifTags, features, Image, ImageOps
import pytest
from sklearn.datasets import load_sample_images

from ssljax.data import decode
from ssljax.data.decode import Decoder, decoder, fit, header, squeeze, Unreadable
from ssljax.data.sources import OnDisk, select
from ssljax.errors import InputError

CHINA, FLOWER = (Image.fromarray(x) for x in load_sample_images().images)  # 640x427.
PHOTO = CHINA.crop((100, 60, 196, 124))  # 96x64, with detail.
SIZE = 24


def write(path: pathlib.Path, picture: Image.Image, **options) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return path


def pixels(picture: Image.Image) -> np.ndarray:
    x = np.asarray(picture)
    return x if x.ndim == 3 else x[..., None]


def of_files(*paths: pathlib.Path, size: int = 0, **how) -> Decoder:
    return decoder(lambda i: paths[i], len(paths), size, **how)


def difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# EXIF.


def turned(orientation: int) -> Image.Image:
    """A picture whose pixels are PHOTO once it is turned by `orientation`."""
    back = {6: 8, 8: 6}.get(orientation, orientation)
    return PHOTO.transpose(decode.TURN[back]) if orientation > 1 else PHOTO


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["jpg", "png", "webp", "tif"])
def test_exif_rotation_is_undone(tmp_path, form, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    lossless = {"webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0}}.get(form, {})
    path = write(tmp_path / f"a.{form}", turned(orientation), exif=exif, **lossless)
    assert header(path)[:2] == PHOTO.size
    with Image.open(path) as picture:  # Pillow's way, and the photograph itself.
        want = fit(np.asarray(ImageOps.exif_transpose(picture).convert("RGB")), SIZE)
    got = Decoder(SIZE)(path)
    assert difference(got, want) == 0
    assert difference(got, fit(pixels(PHOTO), SIZE)) <= (12 if form == "jpg" else 0)
    image, aspect = Decoder(SIZE, whole=True)(path)
    assert aspect == 1.5 and difference(image, squeeze(pixels(PHOTO), SIZE)[0]) <= 12


def test_exif_rotation_of_a_jpeg_decoded_at_a_fraction(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = write(tmp_path / "a.jpg", CHINA.transpose(decode.TURN[8]), exif=exif, quality=95)
    image, aspect = Decoder(48, whole=True)(path)
    assert aspect == 640 / 427
    assert np.abs(image - squeeze(pixels(CHINA), 48)[0].astype(float)).mean() < 1.5


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_cost_the_image(tmp_path):
    path = write(tmp_path / "a.jpg", PHOTO, exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(9))
    assert Decoder(SIZE)(path).shape == (SIZE, SIZE, 3)


# Kinds of pixels.


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Composited in floating point."""
    a = alpha[..., None] / 255
    return np.round(rgb * a + 255 * (1 - a)).astype(np.uint8)


ALPHA = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (64, 1))


@pytest.mark.parametrize("form", ["png", "webp", "tif"])
def test_transparency_is_white(tmp_path, form):
    rgba = np.dstack([pixels(PHOTO), ALPHA])
    how = {"lossless": True, "exact": True} if form == "webp" else {}
    path = write(tmp_path / f"a.{form}", Image.fromarray(rgba), **how)
    got = of_files(path, size=64)(path)
    assert difference(got, fit(over_white(rgba[..., :3], ALPHA), 64)) <= 1
    assert (got[:, 0] > 200).all()  # Nearly transparent there, whatever the colour.


def test_gray_with_alpha(tmp_path):
    gray = np.asarray(PHOTO.convert("L"))
    path = write(tmp_path / "a.png", Image.fromarray(np.dstack([gray, ALPHA])))
    got = of_files(path, size=64)(path)
    assert got.shape == (64, 64, 1)
    assert difference(got, fit(over_white(gray[..., None], ALPHA), 64)) <= 1


@pytest.mark.parametrize("form", ["png", "gif"])
def test_palette_with_a_transparent_colour(tmp_path, form):
    palette = PHOTO.quantize(32)
    index = np.asarray(palette)
    hole = int(np.bincount(index.ravel()).argmax())
    path = write(tmp_path / f"a.{form}", palette, transparency=hole)
    want = pixels(palette.convert("RGB")).copy()
    want[index == hole] = 255
    assert difference(of_files(path, size=64)(path), fit(want, 64)) <= 1


def test_transparent_colour_without_a_palette(tmp_path):
    x = pixels(PHOTO).copy()
    x[10:30, 20:40] = (1, 2, 3)
    path = write(tmp_path / "a.png", Image.fromarray(x), transparency=(1, 2, 3))
    x[10:30, 20:40] = 255
    assert difference(of_files(path, size=64)(path), fit(x, 64)) == 0


@pytest.mark.parametrize("form", ["jpg", "tif"])
def test_cmyk(tmp_path, form):
    # Photoshop and Pillow write inverted values in JPEG, and plain ones in TIFF.
    path = write(tmp_path / f"a.{form}", PHOTO.convert("CMYK"), quality=98)
    got, want = Decoder(SIZE)(path), fit(pixels(PHOTO), SIZE)
    assert np.abs(got.astype(float) - want).mean() < 2


def test_black_and_white(tmp_path):
    bits = PHOTO.convert("1")
    path = write(tmp_path / "a.png", bits)
    got = of_files(path, size=SIZE)(path)
    want = fit(np.asarray(bits)[..., None].astype(np.uint8) * 255, SIZE)
    assert difference(got, want) == 0 and len(np.unique(got)) > 3


def test_a_palette_without_transparency(tmp_path):
    palette = PHOTO.quantize(64)
    path = write(tmp_path / "a.png", palette)
    got = Decoder(SIZE)(path)
    assert difference(got, fit(pixels(palette.convert("RGB")), SIZE)) == 0


@pytest.mark.parametrize("gray_at", [0, 1, 2])
def test_gray_among_coloured(tmp_path, gray_at):
    paths = [
        write(tmp_path / f"{i}.jpg", PHOTO.convert("L") if i == gray_at else PHOTO)
        for i in range(3)
    ]
    how = of_files(*paths, size=SIZE)
    got = how(paths[gray_at])
    assert got.shape == (SIZE, SIZE, 3) and (got == got[..., :1]).all()
    assert of_files(paths[gray_at], size=SIZE).channels == 1


def test_a_colour_profile_is_left_out_of_account(tmp_path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    with_it = write(tmp_path / "a.png", PHOTO, icc_profile=profile)
    assert difference(Decoder(SIZE)(with_it), fit(pixels(PHOTO), SIZE)) == 0


# More than 8 bits.


def deep(bits: int, order: str = "<") -> np.ndarray:
    """The photograph in gray with so many bits, the lowest of which are noise."""
    gray = np.asarray(PHOTO.convert("L")).astype(int) << (bits - 8)
    return (gray + np.random.default_rng(0).integers(0, 1 << (bits - 8), gray.shape)).astype(
        f"{order}u2"
    )


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("form", ["png", "tif"])
def test_bits_of_a_set_are_those_that_are_there(tmp_path, form, bits):
    x = deep(bits)
    x[0, 0] = 2**bits - 1
    paths = [write(tmp_path / f"{i}.{form}", Image.fromarray(a)) for i, a in enumerate([x, x // 4])]
    how = of_files(*paths, size=64)
    want = [
        fit(np.round(a / (2**bits - 1) * 255).astype(np.uint8)[..., None], 64) for a in (x, x // 4)
    ]
    for path, y in zip(paths, want):  # The darker file stays darker.
        assert difference(how(path), y) <= 1
    assert f"{2**bits - 1} becomes 255 in all files, by the values of 2" in how.note


def test_big_endian_values(tmp_path):
    path = tmp_path / "a.pgm"
    x = deep(16, ">")
    path.write_bytes(b"P5\n96 64\n65535\n" + x.tobytes())
    want = fit(np.round(x / 65535 * 255).astype(np.uint8)[..., None], 64)
    assert difference(of_files(path, size=64)(path), want) <= 1


@pytest.mark.parametrize("most, white", [(1, 1), (255, 255), (4000, 4000)])
def test_floating_point_values(tmp_path, most, white):
    x = np.asarray(PHOTO.convert("L"), np.float32) / 255
    x = (x - x.min()) / (x.max() - x.min())
    path = write(tmp_path / "a.tif", Image.fromarray((x * most).astype(np.float32)))
    how = of_files(path, size=64)
    assert (how.black, how.white) == (0, white) and "Floating-point" in how.note
    assert difference(how(path), fit(np.round(x * 255).astype(np.uint8)[..., None], 64)) <= 1


def test_negative_and_missing_values(tmp_path):
    x = np.asarray(PHOTO.convert("L"), np.float32) * 10 - 1000
    x[:8] = np.nan
    path = write(tmp_path / "a.tif", Image.fromarray(x))
    how = of_files(path, size=64)
    assert (how.black, how.white) == (np.nanmin(x), np.nanmax(x))
    got = how(path)
    assert (got[:7] == 0).all() and got.max() > 240


# Names, suffixes and formats.


@pytest.mark.parametrize(
    "name", ["with space.jpg", "Größe 東京.jpg", "UPPER.JPG", "a'b\"c.jpg", "%d{0}.jpg"]
)
def test_names(tmp_path, name):
    path = write(tmp_path / name, PHOTO, format="JPEG")
    assert Decoder(SIZE)(path).shape == (SIZE, SIZE, 3)
    (tmp_path / "link").symlink_to(path)
    assert difference(Decoder(SIZE)(tmp_path / "link"), Decoder(SIZE)(path)) == 0
    path.write_bytes(b"no image")
    with pytest.raises(Unreadable) as e:
        Decoder(SIZE)(path)
    assert name in str(e.value)


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_content_counts_and_not_the_suffix(tmp_path, form):
    path = write(tmp_path / "a.jpg", PHOTO, format=form)
    with Image.open(path) as picture:
        want = fit(pixels(picture.convert("RGB")), SIZE)
    assert difference(Decoder(SIZE)(path), want) == 0


@pytest.mark.parametrize("form", ["gif", "webp", "png", "tif"])
def test_the_first_frame_of_an_animation(tmp_path, form):
    frames = [PHOTO, ImageOps.invert(PHOTO), ImageOps.flip(PHOTO)]
    how = {"webp": {"lossless": True}}.get(form, {})
    path = write(tmp_path / f"a.{form}", frames[0], save_all=True, append_images=frames[1:], **how)
    with Image.open(path) as picture:
        assert picture.n_frames == 3
    error = np.abs(Decoder(SIZE)(path).astype(float) - fit(pixels(PHOTO), SIZE)).mean()
    assert error < (4 if form == "gif" else 0.01)


@pytest.mark.parametrize("form", ["avif", "heic"])
def test_avif_and_heic(tmp_path, form):
    if form == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    elif not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    path = write(tmp_path / f"a.{form}", PHOTO, quality=95)
    got = Decoder(SIZE)(path)
    assert np.abs(got.astype(float) - fit(pixels(PHOTO), SIZE)).mean() < 4


def test_heic_without_its_plugin(tmp_path, monkeypatch):
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(Unreadable, match="a.heic .*HEIC needs `pip install pillow-heif`"):
        Decoder(SIZE)(path)


# What can't be read.


def broken(tmp_path: pathlib.Path, kind: str) -> pathlib.Path:
    path = tmp_path / f"broken {kind}.png"
    if kind.startswith("cut"):
        form = kind.split()[1]
        write(path, PHOTO, format=form)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere.png")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes({"empty": b"", "text": b"<html>404</html>", "zeros": bytes(5000)}[kind])
    return path


KINDS = [
    *("cut PNG", "cut JPEG", "cut GIF", "cut WEBP", "cut TIFF", "cut BMP"),
    *("empty", "text", "zeros", "dangling", "folder"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_file_is_named_with_what_to_do(tmp_path, kind):
    path = broken(tmp_path, kind)
    with pytest.raises(Unreadable) as e:
        Decoder(SIZE)(path)
    text = str(e.value)
    assert text.startswith(f"{path} can't be read as an image (") and text.count(str(path)) == 1
    assert text.endswith("repair or remove it, or leave out all such files with --skip-bad.")
    assert "\n" not in text and "object at" not in text


def test_the_fault_of_a_disk_is_not_that_of_a_file(tmp_path, monkeypatch):
    path = write(tmp_path / "a.png", PHOTO)

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError) as e:
        Decoder(SIZE)(path)
    assert not isinstance(e.value, InputError) and e.value.errno == errno.EIO


FORMS = ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000"]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("form", FORMS)
def test_bytes_changed_at_random_give_an_image_or_name_the_file(form):
    content = io.BytesIO()
    PHOTO.resize((30, 20)).save(content, form)
    rng, refused = np.random.default_rng(0), 0
    for _ in range(60):
        x = np.frombuffer(content.getvalue(), np.uint8).copy()
        at = rng.integers(0, min(len(x), 400), 4)
        x[at] = rng.integers(0, 256, 4)
        try:
            image = Decoder(8)(x.tobytes(), "x.png")
        except Unreadable as error:
            refused += 1
            assert str(error).startswith("x.png ")
        else:
            assert image.shape == (8, 8, 3) and image.dtype == np.uint8
    assert refused


def huge_png(side: int) -> bytes:
    """A PNG of side x side pixels whose content is missing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


def test_too_many_pixels_are_refused_before_they_take_memory(tmp_path, monkeypatch):
    path = tmp_path / "huge.png"
    path.write_bytes(huge_png(14_000))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("It is decoded."))
    for read in header, Decoder(SIZE):
        with pytest.raises(
            Unreadable, match=r"huge.png would take too much memory .*196000000 pixels.*: resize"
        ) as e:
            read(path)
        assert "--skip-bad" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_jpeg_is_decoded_at_a_fraction(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jpg", CHINA, quality=95)
    later = write(tmp_path / "b.jpg", CHINA, progressive=True)
    want = Decoder(40)(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # It has 273,280.
    assert header(path)[:2] == (640, 427)
    assert difference(Decoder(40)(path), want) == 0
    with pytest.raises(Unreadable, match="a.jpg would take too much memory"):
        Decoder(200)(path)  # At no fraction then.
    with pytest.raises(Unreadable, match="b.jpg would take too much memory"):
        Decoder(40)(later)  # All of its coefficients lie in memory, whatever is made of them.


# Sets with files that can't be read.


def set_with(tmp_path, bad: set[int], n: int = 8, **how) -> tuple[OnDisk, list[np.ndarray]]:
    """Images of which those at `bad` can't be read, and what the others are; labels are indices."""
    paths = []
    for i in range(n):
        path = write(tmp_path / f"{i}.png", CHINA.crop((40 * i, 0, 40 * i + 40, 40)))
        if i in bad:
            path.write_bytes(path.read_bytes()[:300])
        paths.append(path)
    good = [
        None if i in bad else pixels(CHINA.crop((40 * i, 0, 40 * i + 40, 40))) for i in range(n)
    ]
    labels = np.arange(n, dtype=np.int32)
    decode = Decoder(40)
    source = OnDisk(
        lambda i: decode(paths[i]), labels, [str(i) for i in range(n)], (40, 40, 3), **how
    )
    return source, good


@pytest.mark.parametrize("at", [[0, 2, 4], [7, 6, 5, 4, 3, 2, 1, 0], [2, 2, 2], [3]])
def test_the_first_bad_file_of_a_read_stops_it(tmp_path, at):
    source, _ = set_with(tmp_path, {2, 3, 6})
    first = next(i for i in at if i in (2, 3, 6))
    for _ in range(5):
        with pytest.raises(Unreadable, match=f"/{first}.png can't be read"):
            source.read(np.array(at))


def test_a_bad_file_is_replaced_by_the_next_one_that_can_be_read(tmp_path, capsys):
    source, good = set_with(tmp_path, {2, 3, 7}, skip_bad=True)
    taken = [0, 1, 4, 4, 4, 5, 6, 0]
    for at in (np.arange(8), np.array([7, 2, 3]), np.array([3]), np.array([6, 2])):
        found = source.read(at)
        want = [taken[i] for i in at]
        assert found["label"].tolist() == want  # The label goes with the image.
        np.testing.assert_array_equal(found["image"], [good[i] for i in want])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2].startswith("Left out 3 of 8 files so far: ")
    assert {line.rsplit("/", 1)[1][0] for line in lines} == {"2", "3", "7"}


def test_bad_files_are_replaced_from_the_same_part(tmp_path):
    source, good = set_with(tmp_path, {2, 5}, skip_bad=True)
    part = select(source, np.array([0, 2, 5, 6]))
    assert part.read(np.array([1, 2, 3, 0]))["label"].tolist() == [6, 6, 6, 0]
    part = select(source, np.array([4, 5]))
    np.testing.assert_array_equal(part.read(np.array([1]))["image"][0], good[4])


def test_bad_files_of_a_set_in_memory_are_left_out(tmp_path, capsys):
    source, good = set_with(tmp_path, {0, 4, 5, 7}, skip_bad=True)
    held = source.in_memory()
    assert held.labels.tolist() == [1, 2, 3, 6]
    np.testing.assert_array_equal(held.image, [good[i] for i in (1, 2, 3, 6)])
    assert "Left out 4 of 8 files, which can't be read." in capsys.readouterr().out


def test_a_set_of_which_nothing_can_be_read(tmp_path):
    source, _ = set_with(tmp_path, set(range(8)), skip_bad=True)
    with pytest.raises(
        InputError, match="None of 8 files can be read; of one, .*png can't be read"
    ):
        source.read(np.array([5]))


@pytest.mark.parametrize("bad", [0, 3])
def test_headers_that_cannot_be_read(tmp_path, bad):
    paths = [write(tmp_path / f"{i}.jpg", PHOTO) for i in range(4)]
    paths[bad].write_bytes(b"")
    with pytest.raises(Unreadable, match=f"{bad}.jpg"):
        of_files(*paths, size=SIZE)
    assert of_files(*paths, size=SIZE, skip_bad=True).channels == 3
    with pytest.raises(Unreadable, match=f"{bad}.jpg"):
        of_files(paths[bad], size=SIZE, skip_bad=True)


def test_another_shape_than_that_of_the_set_is_refused():
    source = OnDisk(lambda i: np.zeros((4, 4, 1), np.uint8), None, [], (4, 4, 3), count=2)
    with pytest.raises(ValueError, match=r"\(4, 4, 1\), not \(4, 4, 3\)"):
        source.read(np.array([0]))


# Sizes.


@pytest.mark.parametrize("size", [64, 112, 180])
@pytest.mark.parametrize("photo", [CHINA, FLOWER], ids=["china", "flower"])
def test_jpegs_at_a_fraction_differ_little(tmp_path, photo, size):
    large = photo.resize((1280, 854), Image.Resampling.BICUBIC)
    path = write(tmp_path / "a.jpg", large, quality=92)
    with Image.open(path) as picture:
        whole = pixels(picture)
    for got, want in (
        (Decoder(size)(path), fit(whole, size)),
        (Decoder(size, part=0.875)(path), fit(whole, size, 0.875)),
        (Decoder(size, whole=True)(path)[0], squeeze(whole, size)[0]),
    ):
        error = np.abs(got.astype(int) - want)
        assert 0 < error.mean() < 0.7 and np.percentile(error, 99) <= 4 and error.max() <= 15


def test_jpegs_less_than_four_times_as_large_are_decoded_exactly(tmp_path):
    path = write(tmp_path / "a.jpg", CHINA, quality=90)
    with Image.open(path) as picture:
        whole = pixels(picture)
    assert difference(Decoder(108)(path), fit(whole, 108)) == 0  # 427 / 108 is 3.95.
    assert difference(Decoder(256)(path), fit(whole, 256)) == 0
    assert difference(Decoder(600)(path), fit(whole, 600)) == 0


@pytest.mark.parametrize("box", [(0, 0, 96, 64), (0, 0, 33, 64), (0, 0, 64, 64), (0, 0, 7, 60)])
def test_whole_photographs_with_their_aspect(tmp_path, box):
    photo = PHOTO.crop(box)
    paths = [write(tmp_path / "a.png", photo), write(tmp_path / "b.png", PHOTO)]
    image, aspect = of_files(*paths, size=SIZE, whole=True)(paths[0])
    want = photo.resize((SIZE, SIZE), Image.Resampling.BILINEAR, reducing_gap=decode.GAP)
    assert difference(image, pixels(want)) == 0
    assert aspect == photo.width / photo.height


def test_whole_mode_of_a_square_set_is_the_plain_one(tmp_path):
    paths = [write(tmp_path / f"{i}.jpg", CHINA.crop((i, 0, i + 200, 200))) for i in range(3)]
    how = of_files(*paths, size=SIZE, whole=True)
    assert how == of_files(*paths, size=SIZE) and not how.whole
    assert difference(how(paths[0]), Decoder(SIZE)(paths[0])) == 0


@pytest.mark.parametrize("size, short", [(224, 256), (32, 37), (100, 114)])
@pytest.mark.parametrize("photo", [CHINA, CHINA.rotate(90, expand=True), PHOTO])
def test_the_middle_of_a_larger_picture(tmp_path, photo, size, short):
    w, h = photo.size
    scale = short / min(w, h)
    full = (short, int(short * h / w)) if w <= h else (int(short * w / h), short)
    assert all(abs(a - b * scale) < 1 for a, b in zip(full, (w, h)))
    left, top = (round((x - size) / 2) for x in full)
    want = photo.resize(full, Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    assert difference(fit(pixels(photo), size, 224 / 256), pixels(want)) <= 1
    got = Decoder(size, part=224 / 256)(write(tmp_path / "a.bmp", photo))
    if min(w, h) < 4 * short:
        assert difference(got, pixels(want)) <= 1


def test_headers_of_large_sets_are_sampled_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MOST_HEADERS", 10)
    monkeypatch.setattr(decode, "SOME_HEADERS", 4)
    path, asked = write(tmp_path / "a.png", PHOTO), []
    decoder(lambda i: asked.append(i) or path, 31, SIZE)
    assert sorted(set(asked)) == [0, 10, 20, 30]
    asked.clear()
    decoder(lambda i: asked.append(i) or path, 10, SIZE)
    assert sorted(set(asked)) == list(range(10))
