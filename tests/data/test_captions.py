"""Pictures and captions: tables, texts beside pictures, names of classes, and what is refused."""

import io
import json
import re
import shutil
import tarfile

import jax
import numpy as np
from PIL import Image
import pyarrow as pa
import pyarrow.parquet
import pytest
from sklearn.datasets import load_sample_images

from ssljax import sharding
from ssljax.data import images
from ssljax.data.captions import caption_rows, pair_feed, Pairs
from ssljax.data.order import indices
from ssljax.data.prepare import prepare_shards
from ssljax.data.sources import Arrays, OnDisk
from ssljax.errors import InputError

SUBJECTS = dict(zip(("flower", "temple"), load_sample_images().images[::-1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 parts of two photographs, each with a text beside it; the third has two captions."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(24):
        name = sorted(SUBJECTS)[i % 2]
        part = SUBJECTS[name][5 * i : 5 * i + 120, 4 * i : 4 * i + 160]
        Image.fromarray(part).save(root / f"{i:02}.png")
        more = "\n\nanother caption" if i == 2 else ""
        (root / f"{i:02}.txt").write_text(f"part {i} of a photograph of the {name}{more}\n")
    return root


def table(folder, name, lines):
    """A table beside the pictures, in a folder without texts."""
    target = folder.parent / f"{folder.name}-tables"
    if not target.is_dir():
        shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.txt"))
    (target / name).write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return str(target / name)


def said(captioned):
    """The captions of each picture, with its bytes."""
    found = {}
    for i, j in captioned.pairs:
        key = captioned.images.read(np.array([i]))["image"].tobytes()
        found.setdefault(key, []).append(captioned.captions[j])
    return found


def test_tables_and_texts_beside_pictures_give_the_same_pairs(folder, capsys):
    of_folder = Pairs(str(folder), 16).pairs()
    rows = []
    for i in range(24):
        for text in (folder / f"{i:02}.txt").read_text().split("\n"):
            rows += [(f"{i:02}.png", text)] if text else []
    plain = table(folder, "plain.csv", [f'{a},"{b}"' for a, b in rows])
    openclip = table(folder, "open.tsv", ["filepath\ttitle", *("\t".join(r) for r in rows)])
    wide = table(folder, "wide.csv", ["id,caption,image", *(f"7,{b},./{a}" for a, b in rows)])
    capsys.readouterr()
    for data in (plain, openclip, wide):
        found = Pairs(data, 16).pairs()
        for ours, theirs in zip(found[:2], of_folder[:2]):
            assert said(ours) == said(theirs)
        assert len(found.train) + len(found.test) == 25 and len(found.test.images) >= 1
        assert not found.prompts and not found.images.labelled
    line = capsys.readouterr().out
    assert "24 pictures with 25 captions, of which 25 are different" in line
    both = [set(said(c)) for c in of_folder[:2]]
    assert not both[0] & both[1]  # No picture is in both splits, whatever its captions.


def archived(folder, target, form):
    """The pictures of the folder with their texts, as others keep them, in `target`."""
    target.mkdir()
    pictures = sorted(folder.glob("*.png"))
    said = [file.with_suffix(".txt").read_text() for file in pictures]
    lists = [[line for line in text.splitlines() if line] for text in said]
    if form == "parquet":
        images = [{"bytes": file.read_bytes(), "path": file.name} for file in pictures]
        pyarrow.parquet.write_table(
            pa.table({"image": images, "caption": lists}), target / "train.parquet"
        )
        return
    for part in (0, 1):
        with tarfile.open(target / f"{part:05}.tar", "w") as tar:
            for file, text, own in list(zip(pictures, said, lists, strict=True))[part::2]:
                beside = {"txt": text.encode()}
                if form == "json":
                    beside = {"json": json.dumps({"caption": own, "width": 3}).encode()}
                elif form == "img2dataset":  # Whose .json has one of the captions alone.
                    beside["json"] = json.dumps({"caption": own[0], "key": 1}).encode()
                for suffix, content in {"png": file.read_bytes(), **beside}.items():
                    member = tarfile.TarInfo(f"{file.stem}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("split", ["", ":validation"])
def test_shards_of_a_folder_have_its_pairs(folder, tmp_path, split, streamed, monkeypatch, capsys):
    if streamed:
        monkeypatch.setattr("ssljax.data.sources.RESIDENT_BYTES", 0)
    prepare_shards(str(folder), str(tmp_path / "shards"), workers=1)
    prepare_shards(str(folder), str(tmp_path / "shards"), workers=1)  # Nothing is written anew.
    assert "anew" not in capsys.readouterr().out
    want, found = (Pairs(f"{x}{split}", 16).pairs() for x in (folder, tmp_path / "shards"))
    assert f"shards, without classes, {len(want.train.images)} to train" in capsys.readouterr().out
    assert isinstance(found.train.images, OnDisk if streamed else Arrays)
    for a, b in zip(want[:2], found[:2], strict=True):
        assert a.captions == b.captions and len(set(b.files.splitlines())) == 2
        np.testing.assert_array_equal(a.pairs, b.pairs)
        at = np.arange(len(a.images))
        np.testing.assert_array_equal(a.images.read(at)["image"], b.images.read(at)["image"])


@pytest.mark.parametrize("form", ["txt", "json", "img2dataset", "parquet"])
def test_captions_of_archives(folder, tmp_path, form, capsys):
    archived(folder, tmp_path / "archives", form)
    prepare_shards(str(tmp_path / "archives"), str(tmp_path / "shards"), workers=1)
    assert "; 25 captions of 24 images" in capsys.readouterr().out
    found, want = (Pairs(str(x), 16).pairs() for x in (tmp_path / "shards", folder))
    assert said(found.train) | said(found.test) == said(want.train) | said(want.test)
    assert not found.prompts and len(found.test) >= 1


def test_shards_without_captions_or_with_classes(folder, tmp_path, capsys):
    """Texts that are classes are no captions, and a caption that is missing is said."""
    pictures = shutil.copytree(folder, tmp_path / "pictures")
    (pictures / "03.txt").unlink()
    prepare_shards(str(pictures), str(tmp_path / "some"), workers=1)
    assert "; 24 captions of 23 images" in capsys.readouterr().out
    with pytest.raises(InputError, match="03.png in .* has no caption: write one where it came"):
        Pairs(str(tmp_path / "some"), 16).pairs()
    capsys.readouterr()
    with pytest.raises(InputError, match="Shards hold all images: prepare .*SHARDS:validation to"):
        prepare_shards(f"{pictures}:validation", str(tmp_path / "other"), workers=1)
    kept = Pairs(str(tmp_path / "some"), 16, skip_bad=True).pairs()
    assert "Left out 1 of" in capsys.readouterr().out
    assert len(kept.train) + len(kept.test) == 24
    (pictures / "03.txt").write_text("")
    archived(pictures, tmp_path / "few", "txt")
    prepare_shards(str(tmp_path / "few"), str(tmp_path / "fewer"), workers=1)
    assert "(their texts are captions) in 2 files" in capsys.readouterr().out
    (tmp_path / "fewer" / "train-captions.npy").unlink()
    with pytest.raises(InputError, match="train-captions.npy is missing: run the command that"):
        Pairs(str(tmp_path / "fewer"), 16).pairs()
    for i in range(24):
        (pictures / f"{i:02}.txt").write_text(["flower", "temple"][i % 2])
    archived(pictures, tmp_path / "classes", "txt")
    prepare_shards(str(tmp_path / "classes"), str(tmp_path / "named"), workers=1)
    named = Pairs(str(tmp_path / "named"), 16).pairs()
    assert named.prompts == ["a drawing of a flower", "a drawing of a temple"]
    assert set(named.train.captions) == set(named.prompts)
    for file in pictures.glob("*.txt"):
        file.unlink()
    prepare_shards(str(pictures), str(tmp_path / "none"), workers=1)
    with pytest.raises(InputError, match="has none, nor captions: give a .csv .*, shards of"):
        Pairs(str(tmp_path / "none"), 16).pairs()


def test_the_test_split_is_not_read_by_validation(folder):
    data = table(folder, "v.csv", [f"{i:02}.png,caption {i}" for i in range(24)])
    whole, part = Pairs(data, 16).pairs(), Pairs(f"{data}:validation", 16).pairs()
    test = set(whole.test.captions)
    assert set(part.train.captions) | set(part.test.captions) == set(whole.train.captions)
    assert not test & set(part.test.captions) and part.test.captions


def test_classes_are_named_by_the_template(capsys):
    sets = Pairs("digits", template="the digit {}, written").pairs()
    train = images("digits", "train")
    assert sets.prompts == [f"the digit {i}, written" for i in range(10)]
    assert sets.train.text == [sets.prompts[i] for i in train.labels]
    assert sets.images.labelled
    with pytest.raises(InputError, match="--template must have {}"):
        Pairs("digits", template="a digit").pairs()


def test_class_folders_with_texts_have_captions_and_prompts(folder, tmp_path):
    for i in range(24):
        name = sorted(SUBJECTS)[i % 2]
        (tmp_path / name).mkdir(exist_ok=True)
        for suffix in (".png", ".txt"):
            shutil.copy(folder / f"{i:02}{suffix}", tmp_path / name)
    sets = Pairs(str(tmp_path), 16, template="{}!").pairs()
    assert sets.prompts == ["flower!", "temple!"] and sets.images.labelled
    names = sets.images.train.class_names
    for i, j in sets.train.pairs:
        if "photograph" in sets.train.captions[j]:
            assert names[sets.train.images.labels[i]] in sets.train.captions[j]


def test_what_cannot_be_used_is_refused_or_counted(folder, tmp_path, capsys):
    rows = [f"{i:02}.png,caption {i}" for i in range(24)]
    for bad, words in (
        (["gone.png,a caption"], "line 1, names the picture gone.png, which is not there"),
        (["00.png,"], "line 1, has no caption"),
        (["00.png"], "line 1, has 1 column, of which none can be told"),
        ([rows[0], "01.png,one, two"], "line 2, has 3 columns and not 2"),
        (["a,b,c", "1,2,3"], "give two, or a header that names them filepath and title"),
    ):
        with pytest.raises(InputError, match=words):
            Pairs(table(folder, "bad.csv", bad), 16).pairs()
    (tmp_path / "latin.csv").write_bytes("00.png,café\n".encode("latin-1"))
    with pytest.raises(InputError, match="is not written in UTF-8"):
        Pairs(str(tmp_path / "latin.csv"), 16).pairs()
    with pytest.raises(InputError, match="can't be read .*check the path given as --data"):
        Pairs(str(tmp_path / "none.tsv"), 16).pairs()
    some = table(folder, "some.csv", [*rows, "gone.png,a caption", "00.png,"])
    with pytest.raises(InputError, match="1 others can't be used either.*--skip-bad leaves out"):
        Pairs(some, 16).pairs()
    found = Pairs(some, 16, skip_bad=True).pairs()
    assert len(found.train) + len(found.test) == 24
    assert "Left out 2 of 26 lines; the first: " in capsys.readouterr().out
    with pytest.raises(InputError, match="learns from labels, and .* has none, nor captions"):
        Pairs(str(folder.parent / f"{folder.name}-tables"), 16).pairs()


def test_texts_that_are_missing_or_empty(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "some")
    (root / "03.txt").unlink()
    (root / "05.txt").write_text(" \n")
    with pytest.raises(
        InputError, match=r"03.png has no caption: write 03.txt beside it \(1 other"
    ):
        Pairs(str(root), 16).pairs()
    left = Pairs(str(root), 16, skip_bad=True).pairs()
    assert len(left.train.images) + len(left.test.images) == 22


def test_texts_in_another_encoding_are_named_and_stop_nothing_else(folder, tmp_path, capsys):
    root = shutil.copytree(folder, tmp_path / "some")
    (root / "07.txt").write_bytes("un café\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"07.txt is not written in UTF-8 .*--skip-bad leaves"):
        Pairs(str(root), 16).pairs()
    left = Pairs(str(root), 16, skip_bad=True).pairs()
    assert len(left.train.images) + len(left.test.images) == 23
    assert "Left out 1 of 24 pictures; the first: " in capsys.readouterr().out
    prepare_shards(str(root), str(tmp_path / "shards"), workers=1)
    line = "; 24 captions of 23 images. Left out: 1 text that can't be read (07.txt)"
    assert line in capsys.readouterr().out
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for file in sorted(root.iterdir()):
            tar.add(file, file.name)
        for name in ("08", "09"):
            (root / f"{name}.json").write_text('{"caption": "not ended')
            tar.add(root / f"{name}.json", f"{name}.json")
    prepare_shards(str(tmp_path / "0.tar"), str(tmp_path / "of-tar"), workers=1)
    line = "; 24 captions of 23 images; a tenth .*3 texts .*0.tar/07.txt, 0.tar/08.json"
    assert re.search(line, capsys.readouterr().out)
    kept = Pairs(str(tmp_path / "of-tar"), 16, skip_bad=True).pairs()
    assert len(kept.train) + len(kept.test) == 24


def test_of_several_columns_of_captions_the_one_that_is_read_is_named(folder, tmp_path, capsys):
    note = "captions are of the column Title, and text and description are not read"
    lines = [f"no,{i:02}.png,title {i},no" for i in range(24)]
    data = table(folder, "several.csv", ["text,path,Title,description", *lines])
    found = Pairs(data, 16).pairs()
    assert set(found.train.text + found.test.text) == {f"title {i}" for i in range(24)}
    assert note in capsys.readouterr().out
    content = {
        "description": ["no"] * 24,
        "image": [(folder / f"{i:02}.png").read_bytes() for i in range(24)],
        "text": ["no"] * 24,
        "Title": [f"title {i}" for i in range(24)],
    }
    pyarrow.parquet.write_table(pa.table(content), tmp_path / "train.parquet")
    prepare_shards(str(tmp_path / "train.parquet"), str(tmp_path / "shards"), workers=1)
    assert note in capsys.readouterr().out
    found = Pairs(str(tmp_path / "shards"), 16).pairs()
    assert set(found.train.text + found.test.text) == {f"title {i}" for i in range(24)}


@pytest.mark.parametrize("memory", [True, False])
def test_pictures_that_cannot_be_read_take_their_captions_along(
    folder, tmp_path, memory, monkeypatch
):
    """Of a batch each caption is one of its picture's, also where another picture stands in."""
    root = shutil.copytree(folder, tmp_path / "some")
    damaged = ["04", "11", "12"]
    for name in damaged:
        (root / f"{name}.png").write_bytes((root / f"{name}.png").read_bytes()[:2000])
    if not memory:
        monkeypatch.setattr("ssljax.data.captions.fits_in_memory", lambda *_: False)
    with pytest.raises(InputError, match="can't be read"):
        sets = Pairs(str(root), 16).pairs()
        sets.train.images.read(np.arange(len(sets.train.images)))
    sets = Pairs(str(root), 16, skip_bad=True).pairs()
    assert isinstance(sets.train.images, Arrays if memory else OnDisk)
    _, rows = caption_rows(sets, "wordpiece", 300, 16)
    feed, mesh = (
        pair_feed(sets.train, rows["train"], 4),
        sharding.make_mesh(devices=jax.devices()[:1]),
    )
    whole = Pairs(str(folder), 16).pairs().train
    own, seen = said(whole), 0
    place = {row.tobytes(): text for row, text in zip(rows["train"], sets.train.captions)}
    with jax.set_mesh(mesh):
        fed = feed.feed(0, 0, mesh)
        for _ in range(len(sets.train) // 4):
            batch = feed.batch(feed.resident(), next(fed))
            for image, tokens in zip(np.asarray(batch["image"]), np.asarray(batch["tokens"])):
                assert place[tokens.tobytes()] in own[image.tobytes()]
                seen += 1
    assert seen >= 16


def test_streamed_and_resident_pairs_are_the_same(folder, monkeypatch):
    mesh, found = sharding.make_mesh(devices=jax.devices()[:1]), []
    for memory in (True, False):
        if not memory:
            monkeypatch.setattr("ssljax.data.captions.fits_in_memory", lambda *_: False)
        sets = Pairs(str(folder), 16).pairs(whole=True)
        rows = caption_rows(sets, "wordpiece", 300, 16)[1]["train"]
        feed = pair_feed(sets.train, rows, 6)
        with jax.set_mesh(mesh):
            batch = feed.batch(feed.resident(), next(feed.feed(3, 1, mesh)))
            found.append(jax.device_get(batch))
    jax.tree.map(np.testing.assert_array_equal, *found)
    picture, caption = sets.train.pairs[indices(3, 1, len(sets.train), 6)].T
    np.testing.assert_array_equal(found[0]["tokens"], rows[caption])
    np.testing.assert_array_equal(found[0]["image"], sets.train.images.read(picture)["image"])
    assert set(found[0]) == {"image", "aspect", "tokens"}


def test_captions_that_are_cut_are_counted(folder, capsys):
    sets = Pairs(str(folder), 16).pairs()
    _, rows = caption_rows(sets, "wordpiece", 300, 5)
    n = len(sets.train.captions)
    assert f"{n - 1:,} of {n:,} captions of train are longer than --length 5 and cut" in (
        capsys.readouterr().out
    )  # All but "another caption".
    assert rows["train"].shape == (n, 5) and rows["prompts"].shape == (0, 5)
