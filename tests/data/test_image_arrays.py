"""Image sets in .npz and .npy files: what is read of them, and what is said of the rest."""

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images

from ssljax.data import images, sources
from ssljax.data.decode import fit
from ssljax.data.image_arrays import array_images
from ssljax.data.sources import Arrays, OnDisk
from ssljax.errors import InputError

PHOTO = load_sample_images().images[0]
IMAGE = np.stack([PHOTO[100:105, 60 * i : 60 * i + 5] for i in range(6)])
LABEL = np.array([2, 0, 1, 2, 0, 3])
DIGITS = np.round(load_digits().images * (255 / 16)).astype(np.uint8)


def write(path, **arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


def both(name: str, *size: int):
    return [images(name, split, *size) for split in ("train", "test")]


@pytest.mark.parametrize(
    "image_key, label_key",
    [
        ("{}_images", "{}_labels"),
        ("x_{}", "y_{}"),
        ("X_{}", "y_{}"),
        ("{}X", "{}Y"),
        ("{}_data", "{}_targets"),
        ("images_{}", "{}_label"),
        ("{}", "{}_y"),
    ],
)
@pytest.mark.parametrize(
    "image", [IMAGE, IMAGE[..., 0], IMAGE[..., :1]], ids=["colour", "3-D", "gray"]
)
def test_npz(tmp_path, image_key, label_key, image):
    path = tmp_path / "set.npz"
    write(
        path,
        **{
            image_key.format("train"): image,
            label_key.format("train"): LABEL[:, None],
            image_key.format("test"): image[:2],
            label_key.format("test"): LABEL[:2].astype(np.uint8),
        },
    )
    train, test = both(str(path))
    image = image.reshape(6, 5, 5, -1)
    np.testing.assert_array_equal(train.image, image)
    np.testing.assert_array_equal(train.labels, LABEL)
    np.testing.assert_array_equal(test.image, image[:2])
    np.testing.assert_array_equal(test.labels, LABEL[:2])
    assert train.labels.dtype == test.labels.dtype == np.int32
    assert train.num_classes == test.num_classes == 4 and train.shape == (5, 5, image.shape[-1])
    np.testing.assert_array_equal(images(str(path), "train", 3).image, [fit(x, 3) for x in image])


@pytest.mark.parametrize(
    "keys", [("images", "labels"), ("x", "y"), ("data", ""), ("arr_0", "arr_1")]
)
def test_arrays_of_no_split_have_a_tenth_held_out(tmp_path, keys, capsys):
    arrays = dict(zip(keys, (DIGITS, load_digits().target)))
    arrays.pop("", None)
    path = write(tmp_path / "set.npz", **arrays)
    train, test = both(path)
    assert 100 < len(test) < 260 and len(train) + len(test) == 1797
    if keys[1]:
        assert np.bincount(test.labels).min() > 5 and train.num_classes == 10
    assert (train.labels is None) == (not keys[1])
    found = {x.tobytes() for source in (train, test) for x in source.image}
    assert found == {x.tobytes() for x in DIGITS}
    out = capsys.readouterr().out
    form = "in 10 classes" if keys[1] else "without classes"
    assert out.count(f"{path}: 1,797 images {form}, {len(train):,} to train, {len(test)}") == 1
    more = write(tmp_path / "more.npz", **{k: np.concatenate([x, x]) for k, x in arrays.items()})
    held = images(more, "test").image  # What is added moves none.
    np.testing.assert_array_equal(held[: len(test)], test.image)


def test_npy(tmp_path):
    np.save(tmp_path / "set.npy", DIGITS)
    np.savez(tmp_path / "set.npz", images=DIGITS)
    for a, b in zip(both(f"{tmp_path}/set.npy"), both(f"{tmp_path}/set.npz")):
        np.testing.assert_array_equal(a.image, b.image)
        assert a.labels is None and a.class_names == []
    held, rest = (images(f"{tmp_path}/set.npy:validation", s) for s in ("test", "train"))
    assert len(held) + len(rest) == len(images(f"{tmp_path}/set.npy", "train"))
    assert 90 < len(held) < 240


def test_splits_of_medmnist(tmp_path, capsys):
    arrays = {}
    for split, n in (("train", 6), ("val", 3), ("test", 2)):
        arrays |= {f"{split}_images": IMAGE[:n], f"{split}_labels": LABEL[:n, None]}
    path = write(tmp_path / "set.npz", **arrays, latents=np.zeros(3))
    assert [len(x) for x in both(path)] == [6, 2]
    line = capsys.readouterr().out
    assert "8 images in 4 classes, 6 to train, 2 to test. Left out: latents, val_im" in line
    assert [len(x) for x in both(f"{path}:val")] == [3, 2]
    arrays = {k: x for k, x in arrays.items() if not k.startswith("test")}
    path = write(tmp_path / "other.npz", **arrays)
    assert [len(x) for x in both(path)] == [6, 3]
    assert "those of validation are the test split" in capsys.readouterr().out
    with pytest.raises(
        InputError, match="it needs images to train on, named extra_images or x_ext"
    ):
        images(f"{path}:extra", "train")


@pytest.mark.parametrize(
    "train, test, names",
    [
        ([20250101, 7, 7, 20250101, 9, 7], [9, 4], ["4", "7", "9", "20250101"]),
        (["dog", "cat", "dog", "cat", "été", "cat"], ["eel", "cat"], ["cat", "dog", "eel", "été"]),
        ([True, False, True, True, False, False], [True, True], ["False", "True"]),
    ],
)
def test_labels_are_numbered_by_their_order_in_both_splits(tmp_path, train, test, names):
    path = write(tmp_path / "set.npz", x_train=IMAGE, y_train=train, x_test=IMAGE[:2], y_test=test)
    for source, labels in zip(both(path), (train, test)):
        assert source.class_names == names and source.labels.dtype == np.int32
        assert [names[c] for c in source.labels] == [str(x) for x in labels]


def test_labels_of_one_split_alone(tmp_path):
    path = write(tmp_path / "set.npz", x_train=IMAGE, x_test=IMAGE[:2], y_test=[3, 1])
    train, test = both(path)
    assert train.labels is None and train.class_names == [] and set(train.arrays()) == {"image"}
    assert test.labels.tolist() == [1, 0] and test.class_names == ["1", "3"]
    path = write(tmp_path / "other.npz", x_train=IMAGE, y_train=np.full(6, -1), x_test=IMAGE)
    assert images(path, "train").labels is None


@pytest.mark.parametrize(
    "convert, said",
    [
        (lambda x: x, ""),
        (lambda x: x.astype(np.int64), "whole numbers from 0 to 255 of type int64"),
        (lambda x: x.astype(np.float32), "whole numbers from 0 to 255 of type float32"),
        (lambda x: x / 255, "fractions of 255 are read as those"),
        (lambda x: (x / 255).astype(np.float32), "fractions of 255 are read as those"),
        (lambda x: x.astype(np.uint16) << 4, "of their 12 bits (up to 4080) the upper 8 are read"),
        (lambda x: x.astype(np.uint16) * 257, "of their 16 bits (up to 65535) the upper 8"),
        (lambda x: x.astype(">u2") * 257, "of their 16 bits"),
    ],
)
def test_images_of_other_types_are_converted_where_that_is_exact(tmp_path, capsys, convert, said):
    image = np.concatenate([IMAGE, np.full_like(IMAGE[:1], 255), np.zeros_like(IMAGE[:1])])
    path = write(tmp_path / "set.npz", x_train=convert(image), x_test=convert(image[:3] // 2))
    train, test = both(path)
    assert said in capsys.readouterr().out and train.image.dtype == np.uint8
    np.testing.assert_array_equal(train.image, image)
    np.testing.assert_array_equal(test.image, image[:3] // 2)  # By the range of both splits.


def test_black_and_white(tmp_path):
    path = write(tmp_path / "set.npz", x_train=IMAGE > 100, x_test=IMAGE[:2] > 100)
    np.testing.assert_array_equal(images(path, "train").image, np.where(IMAGE > 100, 255, 0))


@pytest.mark.parametrize(
    "image, words",
    [
        (IMAGE / 300, r"must be uint8, not float64 from .*: save them as np.round\(x \* 255\)"),
        (IMAGE / 127.5 - 1, r"float64 from -1 to .*: save them as np.round\(255 \* \(x - low\)"),
        (IMAGE * 0.9, r"must be uint8, not float64 from .* save them as np.round\(x\)"),
        (np.full_like(IMAGE, np.nan, float), "must be uint8, not float64 from nan to nan"),
        (IMAGE.astype(np.int64) - 300, "must be uint8, not int64 from -"),
        (IMAGE.astype(np.int64) * 1000, "must be uint8, not int64 from "),
        (IMAGE.astype("S3"), r"must be uint8, not \|S3"),
    ],
    ids=["fractions", "centred", "not whole", "nan", "negative", "large", "strings"],
)
def test_images_that_cannot_be_converted_exactly(tmp_path, image, words):
    image = np.concatenate([image, image])
    image[0, 0, 0] = image[0, 0, 1] if image.dtype.kind == "S" else image.max()
    with pytest.raises(InputError, match=words) as e:
        images(write(tmp_path / "set.npz", images=image), "train")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "arrays, words",
    [
        (dict(foo=IMAGE), "holds foo; it needs images to train on, named train_images or x_train"),
        (dict(), "holds nothing"),
        (dict(test_images=IMAGE, test_labels=LABEL), "holds test_images, test_labels; it needs"),
        (dict(x_train=IMAGE, train_images=IMAGE), "x_train and train_images, of which only one"),
        (dict(x_train=IMAGE[:, 0, 0]), r"x_train must be images, .* not uint8 \(6, 3\)"),
        (dict(x_train=IMAGE, y_train=LABEL[:4]), "y_train has 4 labels for 6 images"),
        (dict(x_train=IMAGE, y_train=np.eye(4, dtype=int)[LABEL]), "has 24 labels for 6 images"),
        (dict(x_train=IMAGE, y_train=LABEL - 1), "whole numbers from 0 on, or strings, not int64"),
        (dict(x_train=IMAGE, y_train=LABEL / 1.0), "whole numbers from 0 on, or strings, not floa"),
        (dict(x_train=IMAGE[:0], y_train=LABEL[:0]), "must be one image or more"),
        (dict(x_train=IMAGE[:, :0], y_train=LABEL), r"not \(6, 0, 5, 3\)"),
        (dict(x_train=np.zeros((6, 3, 8, 8), np.uint8), y_train=LABEL), "channels last"),
        (dict(x_train=IMAGE, y_train=np.array(list("abcdef"), object)), "can't be read"),
        (dict(x_train=IMAGE, x_test=IMAGE[..., :1]), r"train are \(5, 5, 3\), and those to test"),
        (
            dict(x_train=IMAGE, y_train=LABEL, x_test=IMAGE, y_test=list("abcabc")),
            "labels must be numbers or strings in both splits",
        ),
        (dict(x_train=IMAGE[:1]), "holds too few images to hold some out"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_npz_with_wrong_arrays(tmp_path, arrays, words):
    path = write(tmp_path / "set.npz", **arrays)
    with pytest.raises(InputError, match=words) as e:
        images(path, "train")
    assert path in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("size", [0, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_files_are_read_as_they_are_needed(tmp_path, monkeypatch, size, dtype, order):
    image = np.asarray(IMAGE.astype(dtype) * (1 if dtype == np.uint8 else 257), order=order)
    arrays = dict(x_train=image, y_train=LABEL, x_test=image[::2].copy(order), y_test=LABEL[::2])
    path = write(tmp_path / "set.npz", **arrays)
    resident = both(path, size)
    np.savez_compressed(tmp_path / "compressed.npz", **arrays)
    monkeypatch.setattr(sources, "RESIDENT_BYTES", 60)  # An array of labels has 48.
    on_disk = both(path, size)
    for a, b in zip(resident, on_disk):
        assert isinstance(a, Arrays) and isinstance(b, OnDisk) and a.shape == b.shape
        at = np.arange(len(a))[::-1]
        for key, x in a.read(at).items():
            np.testing.assert_array_equal(b.read(at)[key], x)
        assert a.class_names == b.class_names and len(a) == len(b)
    assert on_disk[0].files != on_disk[1].files and "x_train" in on_disk[0].files
    with pytest.raises(InputError, match="x_train too large to be read whole: save it with np.sav"):
        images(f"{tmp_path}/compressed.npz", "train")


def test_a_large_file_of_which_small_images_are_made_is_in_memory(tmp_path, monkeypatch):
    np.save(tmp_path / "set.npy", np.stack([PHOTO[:64, i : i + 64] for i in range(0, 400, 20)]))
    want = images(f"{tmp_path}/set.npy", "train", 8)
    monkeypatch.setattr(sources, "RESIDENT_BYTES", 20 * 8 * 8 * 3)
    found = images(f"{tmp_path}/set.npy", "train", 8)
    assert isinstance(found, Arrays)
    np.testing.assert_array_equal(found.image, want.image)
    assert not isinstance(images(f"{tmp_path}/set.npy", "train"), Arrays)


def test_content_decides_what_stands_for_a_large_file(tmp_path, monkeypatch):
    """The fingerprint of a set that is read as it is needed."""
    monkeypatch.setattr(sources, "RESIDENT_BYTES", 100)
    files = []
    for i, x in enumerate((IMAGE, IMAGE, IMAGE[::-1])):
        write(tmp_path / f"{i}.npz", x_train=x, x_test=IMAGE)
        files.append(array_images(tmp_path / f"{i}.npz", "train", 0)[0].files)
    assert files[0] == files[1] != files[2]


def _damaged(path):
    np.savez(path, x_train=IMAGE, y_train=LABEL)
    content = bytearray(path.read_bytes())
    content[300] ^= 255
    path.write_bytes(content)


def _cut(path):
    np.savez(path, x_train=IMAGE, y_train=LABEL)
    path.write_bytes(path.read_bytes()[:-40])


def _damaged_compressed(path):
    np.savez_compressed(path, x_train=IMAGE, y_train=LABEL)
    content = bytearray(path.read_bytes())
    content[60:160] = bytes(100)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "write, words",
    [
        (lambda path: None, "There is no file .*set.npz: check"),
        (lambda path: path.write_text("not a zip"), "can't be read as an .npz"),
        (lambda path: path.write_bytes(b""), "can't be read as an .npz"),
        (lambda path: path.write_bytes(b"PK\3\4" + bytes(50)), "can't be read as an .npz"),
        (lambda path: path.mkdir(), "can't be read as an .npz"),
        (_cut, "can't be read as an .npz"),
        (_damaged, "can't be read as an .npz"),
        (_damaged_compressed, "can't be read as an .npz"),
    ],
    ids=[
        "missing",
        "text",
        "empty",
        "half a zip",
        "folder",
        "cut short",
        "damaged",
        "damaged compressed",
    ],
)
def test_npz_that_cannot_be_read(tmp_path, write, words):
    path = tmp_path / "set.npz"
    write(path)
    with pytest.raises(InputError, match=words) as e:
        images(str(path), "train")
    assert str(path) in str(e.value) and "\n" not in str(e.value)
