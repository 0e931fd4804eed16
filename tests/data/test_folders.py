"""Folders: which files are of which split and class, and what is said of the rest."""

import hashlib
import os
import pathlib
import re
import time
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from ssljax.data import listing
from ssljax.data.folders import find_files, Found, IMAGES, RECORDINGS, split_of, TEXTS
from ssljax.data.splits import hash_of_indices, hash_of_names, held_out
from ssljax.errors import InputError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path_factory.mktemp("cache")))


def make(root: pathlib.Path, *files: str) -> pathlib.Path:
    """Empty files, "NAME" or "NAME*N" for N of them, whose names have a number in place of %."""
    for file in files:
        name, _, n = file.partition("*")
        for i in range(int(n or 1)):
            path = root / name.replace("%", str(i))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def counts(found: Found) -> tuple[int, int]:
    return len(found.names["train"]), len(found.names["test"])


def left_out(line: str) -> int:
    """How many files a line says were left out."""
    _, _, rest = line.partition(". Left out: ")
    return sum(int(n.replace(",", "")) for n in re.findall(r"(?:^|, )([\d,]*\d) ", rest))


@pytest.mark.parametrize(
    "split, names",
    [
        ("train", "train training Train TRAIN seg_train trainset training_set train2017 TrainSet"),
        ("train", "Final_Training train-clean-100 images_train train_1"),
        ("test", "test testing Test seg_test test-other test1 test_set evaluation"),
        ("val", "val valid validation dev val2017 Dev-clean"),
        ("unlabelled", "unsup unsupervised unlabelled unlabeled unlabeled_images"),
        ("", "bullet_train training_shoes testament trains cat protest developer 2019 train_test"),
        ("", "invalid retrain été_train teste"),
    ],
)
def test_names_of_splits(split, names):
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)


# (files, training files, test files, classes, a part of the line)
TREES = {
    "class folders": (("cat/%.png*30", "dog/%.png*30"), None, None, "cat dog", "in 2 classes"),
    "one folder": (("%.png*50",), None, None, "", "without classes"),
    "one class": (("cat/%.png*50",), None, None, "", "without classes"),
    "upper case": (
        ("Train/cat/%.png*20", "Train/dog/%.png*20", "Test/cat/%.png*5"),
        40,
        5,
        "cat dog",
        "in 2 classes",
    ),
    "nested splits": (
        (
            *("seg_train/seg_train/a/%.jpg*20", "seg_train/seg_train/b/%.jpg*20"),
            *("seg_test/seg_test/b/%.jpg*5", "seg_pred/seg_pred/%.jpg*7"),
        ),
        40,
        5,
        "a b",
        "Left out: 7 in seg_pred",
    ),
    "splits in a wrapper": (
        ("x/train/a/1.png", "x/train/b/1.png", "x/dev/b/1.png"),
        2,
        1,
        "a b",
        "",
    ),
    "splits in each class": (
        ("cat/train/%.png*9", "dog/train/%.png*8", "cat/test/%.png*2", "dog/test/%.png*2"),
        17,
        4,
        "cat dog",
        "",
    ),
    "no test split": (
        ("train/a/%.png*40", "train/b/%.png*40"),
        None,
        None,
        "a b",
        "a tenth is held",
    ),
    "validation beside test": (
        ("train/a/1.png", "train/b/1.png", "test/a/1.png", "val/b/%.png*3"),
        2,
        1,
        "a b",
        "Left out: 3 in val",
    ),
    "a class of one split": (
        ("train/a/1.png", "train/b/1.png", "test/b/1.png", "test/c/1.png"),
        2,
        2,
        "a b c",
        "",
    ),
    "test without classes": (
        ("train/a/1.png", "train/b/1.png", "test/%.png*4"),
        2,
        4,
        "a b",
        "those to test are without classes",
    ),
    "test beside the training files": (
        ("%.png*9", "test/%.png*4"),
        9,
        4,
        "",
        "all but test is for",
    ),
    "test beside its classes": (
        ("cat/%.png*9", "dog/%.png*9", "test/cat/%.png*4"),
        18,
        4,
        "cat dog",
        "all but test is for training",
    ),
    "a class called train": (
        ("car/%.png*9", "plane/%.png*9", "train/%.png*9"),
        None,
        None,
        "car plane train",
        "train is read as a class",
    ),
    "a folder beside train": (
        ("train/cat/%.png*20", "train/dog/%.png*20", "extra/%.png*5"),
        None,
        None,
        "cat dog",
        "Left out: 5 in extra",
    ),
    "dates": (("2019/05/%.png*9", "2020/01/%.png*9"), None, None, "", "look like dates"),
    "numbered parts": (("00000/%.png*9", "00001/%.png*9"), None, None, "", ":classes takes"),
    "digits": (("0/%.png*9", "1/%.png*9"), None, None, "0 1", ""),
    "albums": (("x/y/1.png", "z/1.png", "u/v/w/%.png*9"), None, None, "", "different depths"),
    "folders in classes": (("a/x/%.png*9", "b/%.png*9"), None, None, "a b", "outer folders"),
    "files beside classes": (("a/%.png*9", "b/%.png*9", "1.png"), None, None, "a b", "1 beside"),
    "many files beside folders": (
        ("a/%.png*9", "b/%.png*9", "%.png*9"),
        None,
        None,
        "",
        "many lie",
    ),
    "unlabelled files": (
        ("train/a/1.png", "train/b/1.png", "train/unlabelled/%.png*6", "test/a/1.png"),
        2,
        1,
        "a b",
        "Left out: 6 in train/unlabelled",
    ),
    "folders without images": (
        ("a/%.png*9", "b/%.png*9", "__MACOSX/._a.png", ".git/x.png", "docs/x.md"),
        None,
        None,
        "a b",
        "1 .md",
    ),
    "Tiny ImageNet": (
        (
            *("train/n01/images/%.JPEG*20", "train/n02/images/%.JPEG*20", "val/images/%.JPEG*9"),
            *("test/images/%.JPEG*7", "wnids.txt", "train/n01/n01_boxes.txt"),
        ),
        40,
        7,
        "n01 n02",
        "a tenth of those to train). Left out: 9 in val",
    ),
    "a test split without the classes that validation has": (
        ("train/a/%.png*9", "train/b/%.png*9", "val/a/%.png*3", "test/%.png*5"),
        18,
        3,
        "a b",
        "those of validation are the test split. Left out: 5 in test",
    ),
    "a common beginning": (
        ("news-bydate-train/a/%.png*9", "news-bydate-train/b/1.png", "news-bydate-test/b/%.png*3"),
        10,
        3,
        "a b",
        "",
    ),
    "COCO": (("train2017/%.jpg*9", "val2017/%.jpg*4", "annotations/x.json"), 9, 4, "", "1 .json"),
    "masks": (
        ("images/%.jpg*20", "annotations/trimaps/%.png*20", "annotations/list.txt"),
        None,
        None,
        "",
        "Left out: 20 in annotations",
    ),
    "splits far below": (
        ("x/y/z/train/a/1.png", "x/y/z/train/b/1.png", "x/y/z/dev/b/1.png"),
        *(2, 1, "a b", ""),
    ),
    "other files": (
        ("a/%.png*9", "b/%.png*9", "a/%.tar*3", "b/%.mov*2"),
        None,
        None,
        "a b",
        "Left out: 3 .tar, 2 .mov",
    ),
}


@pytest.mark.parametrize("tree", TREES)
def test_what_is_read_as_splits_and_classes(tmp_path, tree):
    files, train, test, classes, said = TREES[tree]
    found = find_files(make(tmp_path / "set", *files), IMAGES)
    assert said in found.line and found.line.startswith(f"{tmp_path}/set: ")
    assert " ".join(found.class_names) == classes
    if train is not None:
        assert counts(found) == (train, test)
    assert f"{counts(found)[0]} to train, {counts(found)[1]} to test" in found.line
    for split, names in found.names.items():
        if found.labels[split] is not None:
            own = [found.class_names[c] for c in found.labels[split]]
            assert all(c in name.split("/") for c, name in zip(own, names))
    pictures = [p for p in (tmp_path / "set").rglob("*.*") if p.suffix in (".png", ".jpg")]
    assert sum(counts(found)) + left_out(found.line) >= len(pictures)
    assert not set(found.names["train"]) & set(found.names["test"])


@pytest.mark.parametrize(
    "files, named, message",
    [
        (("test/a/1.png",), "", "has a folder test but no folder train with images: put"),
        (
            ("cat/1.png", "dog/1.png", "test/1.png"),
            "",
            "folder test beside cat, dog, but no folder",
        ),
        (("valid/1.png", "invalid/1.png"), "", "give .*:classes if each of them is a class"),
        (
            ("train/cat/1.png", "train/dog/1.png", "test/cats/1.png"),
            "",
            "no class in both splits, but cat, dog to train and cats to test: rename .*:unlabelled",
        ),
        (("a.txt", "b.wav"), "", r"holds no images .*but 1 recording and 1 text: train an exper"),
        ((), "", "holds no images .*: put them there"),
        (("a.xyz",), "", "holds no images .*, only 1 .xyz: put them there"),
        (("a.tar",), "", r"holds no images, only 1 .tar: write shards .*prepare .* --to SHARDS"),
        (("a.parquet",), "", r"holds no images, only 1 .parquet: write shards of the images"),
        (("1.png", "2.png"), "extra", "has no folder extra with images: after a colon"),
    ],
)
def test_what_cannot_be_read(tmp_path, files, named, message):
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match=message) as e:
        find_files(make(tmp_path / "set", *files), IMAGES, named)
    assert "\n" not in str(e.value)


def test_too_few_files_to_hold_out(tmp_path):
    found = find_files(make(tmp_path / "set", "1.png"), IMAGES)
    assert [p.name for p in found.paths("train")] == ["1.png"]
    with pytest.raises(InputError, match="set has too few files to hold some out to test on"):
        found.paths("test")


def test_imdb_as_it_is_unpacked(tmp_path):
    root = make(
        tmp_path / "aclImdb",
        *("README", "imdbEr.txt", "imdb.vocab", "train/urls_pos.txt", "train/labeledBow.feat"),
        *("train/pos/%_7.txt*25", "train/neg/%_2.txt*25", "train/unsup/%_0.txt*50"),
        *("test/pos/%_9.txt*25", "test/neg/%_1.txt*25", "test/urls_neg.txt", "train/readme.txt"),
    )
    for top in root, tmp_path:
        found = find_files(top, TEXTS)
        assert counts(found) == (50, 50) and found.class_names == ["neg", "pos"]
        for split in "train", "test":
            own = [found.class_names[c] for c in found.labels[split]]
            assert [name.split("/")[-2] for name in found.names[split]] == own
        assert "50 in " in found.line and "train/unsup" in found.line
    for named in "unsupervised", "unsup", "unlabelled", "Unsup":
        found = find_files(root, TEXTS, named)
        assert all(name.startswith("train/unsup/") for name in found.names["train"])
        assert counts(found) == (50, 50) and found.labels["train"] is None
        assert set(found.labels["test"]) == {0, 1} and found.classes("train") == []


def test_another_folder_to_train_on(tmp_path):
    root = make(
        tmp_path / "set",
        *("train/a/%.png*9", "train/b/%.png*9", "test/a/%.png*4", "val/b/%.png*3"),
        *("extra/a/%.png*30", "extra/b/%.png*5"),
    )
    names = lambda named: {
        split: sorted({name.split("/")[0] for name in own})
        for split, own in find_files(root, IMAGES, named).names.items()
    }
    assert names("extra") == {"train": ["extra"], "test": ["test"]}
    assert names("Extra") == names("extra")
    assert names("val") == {"train": ["val"], "test": ["test"]}
    assert names("test") == {"train": ["test"], "test": ["val"]}
    assert names("train") == names("") == {"train": ["train"], "test": ["test"]}
    found = find_files(root, IMAGES, "extra")
    assert np.bincount(found.labels["train"]).tolist() == [30, 5]
    assert find_files(root, IMAGES, "unlabelled").labels == {"train": None, "test": None}


@pytest.mark.parametrize("validation", [False, True])
def test_one_folder_of_a_set_without_splits(tmp_path, validation):
    root = make(tmp_path / "set", "a/%.png*30", "b/x/%.png*20", "c/%.png*10")
    found = find_files(root, IMAGES, "b", validation)
    names = [name for own in found.names.values() for name in own]
    held_out_too = 20 - len(names)
    assert all(name.startswith("b/x/") for name in names) and len(set(names)) == len(names)
    assert 0 < len(found.names["test"]) < len(found.names["train"]) < 20
    assert (held_out_too > 0) == validation and found.class_names == []


def test_doubtful_folders_are_read_as_asked(tmp_path):
    root = make(tmp_path / "set", "2019/05/%.png*9", "2020/01/%.png*9")
    assert find_files(root, IMAGES, "classes").class_names == ["2019", "2020"]
    root = make(tmp_path / "other", "car/%.png*9", "test/%.png*9")
    assert find_files(root, IMAGES, "classes").class_names == ["car", "test"]
    root = make(tmp_path / "third", "train/000/%.png*9", "train/001/%.png*9", "test/001/%.png*9")
    found = find_files(root, IMAGES, "classes")
    assert found.class_names == ["000", "001"] and counts(found) == (18, 9)


def test_speakers_of_librispeech(tmp_path):
    speakers = "train-clean-100/%/1/%.flac*9", "train-clean-360/7/2/%.flac*9"
    root = make(tmp_path / "set", *speakers, "dev-clean/20/2/%.flac*4", "test-other/21/2/%.flac*5")
    with pytest.raises(InputError, match="no class in both splits"):
        find_files(root, RECORDINGS)
    found = find_files(root, RECORDINGS, "unlabelled")
    assert counts(found) == (18, 5) and "4 in dev-clean" in found.line
    found = find_files(root / "train-clean-100", RECORDINGS)  # 9 speakers, of a file each.
    assert found.class_names == [str(i) for i in range(9)]


# Lists.


def listed_set(root: pathlib.Path, **lists: str) -> pathlib.Path:
    make(root, "yes/%.wav*9", "no/%.wav*9", "up to/%, é.wav*3")
    for name, text in lists.items():
        (root / f"{name}.txt").write_text(text, encoding="utf-8")
    return root


def test_lists_of_test_files(tmp_path):
    lists = {"testing_list": "yes/1.wav\nno/2.wav\n\n./up to/1, é.wav\n", "README": "yes/3.wav"}
    root = listed_set(tmp_path / "set", **lists, validation_list="no/3.wav\r\nno/4.wav")
    found = find_files(root, RECORDINGS)
    assert sorted(found.names["test"]) == ["no/2.wav", "up to/1, é.wav", "yes/1.wav"]
    assert counts(found) == (16, 3) and found.class_names == ["no", "up to", "yes"]
    assert "split by testing_list.txt and validation_list.txt" in found.line
    assert "2 in validation_list.txt" in found.line
    assert not set(found.names["train"]) & {"no/3.wav", "no/4.wav", "yes/1.wav"}


@pytest.mark.parametrize("form", ["{} 3", "{},3", "{}\t0", '"{}",cat', "{},cat,x"])
def test_lists_with_labels(tmp_path, form):
    train, test = ["yes/1.wav", "no/3.wav", "up to/2, é.wav"], ["no/1.wav"]
    if form.endswith("x"):
        train = train[:2]  # A name with a comma can't be told from what follows.
    lists = {
        name: "\n".join(form.format(x) for x in own)
        for name, own in (("train", train), ("test", test))
    }
    found = find_files(listed_set(tmp_path / "set", **lists), RECORDINGS)
    assert (sorted(found.names["train"]), found.names["test"]) == (sorted(train), test)
    assert sum(counts(found)) + left_out(found.line.replace("2 .txt", "")) == 21


def test_lists_that_are_wrong(tmp_path):
    root = listed_set(tmp_path / "a", train="yes/1.wav\nyes/2.wav", test="yes/2.wav")
    with pytest.raises(InputError, match="both test.txt and train.txt name yes/2.wav"):
        find_files(root, RECORDINGS)
    root = listed_set(tmp_path / "b", test="yes/1.wav\nyes/77.wav\nyes/1.wav")
    found = find_files(root, RECORDINGS)
    assert counts(found) == (20, 1) and "1 named in a list but missing" in found.line
    root = listed_set(tmp_path / "c", test="some words", train="other words")
    assert "split by" not in find_files(root, RECORDINGS).line


def test_lists_of_texts_are_no_texts(tmp_path):
    root = make(tmp_path / "set", "a/%.txt*9")
    (root / "test.txt").write_text("a/3.txt\na/4.txt")
    found = find_files(root, TEXTS)
    assert found.names["test"] == ["a/3.txt", "a/4.txt"] and len(found.names["train"]) == 7


# Links.


def test_class_names_are_unicode(tmp_path):
    root = make(tmp_path / "set", "caf\udce9/%\udce9.png*9", "tea/%.png*9")
    found = find_files(root, IMAGES)
    assert found.class_names == [r"caf\udce9", "tea"] and set(found.labels["train"]) == {0, 1}
    assert all(path.is_file() for split in ("train", "test") for path in found.paths(split))


def test_links_are_followed_and_loops_are_not(tmp_path):
    make(tmp_path / "elsewhere", "cat/%.png*9", "one.png")
    root = make(tmp_path / "set", "dog/%.png*9")
    (root / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    (root / "cat again").symlink_to("cat")
    (root / "dog" / "extra.png").symlink_to(tmp_path / "elsewhere" / "one.png")
    (root / "dog" / "loop").symlink_to("..")
    (root / "self").symlink_to("self")
    (root / "gone.png").symlink_to("nowhere")
    found = find_files(root, IMAGES)
    assert found.class_names == ["cat", "dog"] and sum(counts(found)) == 19
    assert "9 found twice, by links" in found.line and "3 broken links" in found.line


def test_a_folder_that_is_in_both_splits_is_named(tmp_path):
    root = make(tmp_path / "set", "pool/%.png*9")
    for split in "train", "test":
        (root / split).symlink_to("pool")
    found = find_files(root, IMAGES)
    assert "train and test are one folder, so what is tested has been trained on" in found.line
    assert counts(found) == (9, 9) and "9 in pool" in found.line


# Held out.


def test_held_out_examples_of_each_class():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(1, 40))
        labels, hashes = rng.integers(0, 5, n), rng.integers(0, 2**64, n, np.uint64)
        out = held_out(hashes, labels)
        for c in np.unique(labels):  # As it is written, one class after the other.
            own = np.flatnonzero(labels == c)
            expected = {i for i in own if hashes[i] / 2**64 < 0.1}
            if len(own) > 1:
                expected |= {min(own, key=lambda i: hashes[i])}
            expected -= {max(own, key=lambda i: hashes[i])}
            assert set(own[out[own]]) == expected
    assert not held_out(hashes[:1]).any()


def test_hashes_are_uniform_independent_of_each_other_and_fixed():
    for make_hashes in (
        lambda purpose: hash_of_indices(20_000, purpose),
        lambda purpose: hash_of_names((f"a/{i:05}.png" for i in range(20_000)), purpose),
    ):
        test, validation = (make_hashes(p) / 2**64 for p in ("test", "validation"))
        for x in test, validation:
            assert abs(np.histogram(x, 10, (0, 1))[0] - 2000).max() < 200
        assert abs(np.corrcoef(test, validation)[0, 1]) < 0.03
        assert abs(np.corrcoef(test[1:], test[:-1])[0, 1]) < 0.03
    name = "ü/é.png"
    expected = hashlib.blake2b(name.encode(), digest_size=8, person=b"test").digest()
    for form in "NFC", "NFD":
        own = hash_of_names([unicodedata.normalize(form, name)], "test")
        assert own[0] == int.from_bytes(expected, "little")
    assert hash_of_indices(9, "test")[:4].tolist() == hash_of_indices(4, "test").tolist()


def test_validation_does_not_depend_on_the_test_split(tmp_path):
    root = make(tmp_path / "set", "train/a/%.png*90", "train/b/%.png*90", "test/a/%.png*9")
    found = find_files(root, IMAGES, validation=True)
    train = {name for split in found.names.values() for name in split}
    assert train == set(find_files(root, IMAGES).names["train"])
    assert 5 <= len(found.names["test"]) <= 35 and "9 to test are not read" in found.line
    (root / "test").rename(tmp_path / "gone")
    without = find_files(root, IMAGES, validation=True)
    tested = set(find_files(root, IMAGES).names["test"])
    assert not tested & {name for split in without.names.values() for name in split}
    assert f"{len(tested)} others are held out to test, and not read" in without.line
    assert set(without.names["test"]) | tested >= set(found.names["test"])
    assert len(without.names["test"]) > 5


NAMES = st.text("ab ,.-éß日'%", min_size=1, max_size=5).filter(
    lambda name: name[0] != "." and name.strip()
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda parts: "/".join(parts) + ".png")


def write_tree(root: pathlib.Path, paths: set[str]) -> int:
    """Empty files at those paths that can be; gives their number."""
    n = 0
    for path in sorted(paths):
        try:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch(exist_ok=False)
            n += 1
        except OSError:  # A file is in the way of a folder.
            pass
    return n


SPLITS = st.sampled_from(["", "", "train/", "test/", "val/", "extra/", "Test/", "unsup/"])


@settings(deadline=None, max_examples=150)
@given(st.sets(st.tuples(SPLITS, PATHS).map("".join), min_size=1, max_size=25), st.booleans())
def test_every_file_is_in_one_split_or_counted(tmp_path_factory, paths, validation):
    root = tmp_path_factory.mktemp("tree") / "-a, é"
    n = write_tree(root, paths)
    try:
        found = find_files(root, IMAGES, validation=validation)
    except InputError as e:
        assert re.search("no folder train|no class in both|two lists", str(e))
        return
    used = [name for split in ("train", "test") for name in found.names[split]]
    assert len(used) == len(set(used)) and all((root / name).is_file() for name in used)
    unread = re.findall(r"; ([\d,]+) (?:to test are not|others are held)", found.line)
    unread = sum(int(x.replace(",", "")) for x in unread)
    assert len(used) + unread + left_out(found.line) == n
    for split in ("train", "test"):
        labels = found.labels[split]
        assert labels is None or len(labels) == len(found.names[split])


@settings(deadline=None, max_examples=100)
@given(st.sets(PATHS, min_size=2, max_size=40), st.sets(PATHS, max_size=40))
def test_splits_stay_when_files_are_added(tmp_path_factory, paths, more):
    root = tmp_path_factory.mktemp("tree") / "set"
    write_tree(root, paths)
    before = find_files(root, IMAGES)
    write_tree(root, more)
    after = find_files(root, IMAGES)
    of = {name: split for split, names in after.names.items() for name in names}
    known = after.labels["train"]
    known = np.zeros(len(after.names["train"]), int) if known is None else known
    # Of a class whose hashes all say test, one is kept to train on.
    alone = {n for n, c in zip(after.names["train"], known) if (known == c).sum() == 1}
    for split, names in before.names.items():
        hashes = hash_of_names(names, "test")
        for name, h in zip(names, hashes.tolist()):
            by_hash = "test" if h / 2**64 < 0.1 else "train"
            # Only what was held out (or kept) to have one at all may move.
            stays = of.get(name, split) == split or name in alone
            assert stays or split != by_hash or by_hash == "train"
            if len(before.names["test"]) > 8:
                assert name in alone or of.get(name, split) in (split, by_hash)


# The listing.


def test_a_listing_is_cached_until_a_folder_changes(tmp_path, monkeypatch):
    root = make(tmp_path / "set", "a/é.png", "b/c/%.png*3", ".hidden/x.png", "b/\udce9.png")
    for folder in [root, *(p for p in root.rglob("*") if p.is_dir())]:
        os.utime(folder, (1e9, 1e9))
    first = listing.list_files(root)
    assert first.folders == ["", "a", "b", "b/c"] and first.hidden == 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda path: pytest.fail("It is listed again."))
        again = listing.list_files(root)
    assert (
        again.files == first.files == [[], ["é.png"], ["\udce9.png"], ["0.png", "1.png", "2.png"]]
    )
    assert (again.folders, again.hidden, again.broken) == (first.folders, 1, 0)
    make(root, "b/c/new.png")
    assert "new.png" in listing.list_files(root).files[3]
    (root / "a" / "é.png").unlink()  # Just now: a further change may leave the time as it is.
    assert listing.list_files(root).files[1] == []
    make(root, "a/é.png")
    assert listing.list_files(root).files[1] == ["é.png"]


def test_a_listing_is_not_cached_while_a_change_may_leave_the_time_as_it_is(tmp_path):
    root = make(tmp_path / "set", "1.png")
    now = time.time_ns()
    for n in 1, 2:
        make(root, f"{n}.png")
        os.utime(root, ns=(now, now))  # As a clock of whole seconds would have it.
        assert len(listing.list_files(root).files[0]) == n


def test_an_empty_folder_is_listed(tmp_path):
    os.utime(tmp_path, (1e9, 1e9))
    for _ in range(2):
        found = listing.list_files(tmp_path)
        assert found.folders == [""] and found.files == [[]]
