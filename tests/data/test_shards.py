"""Shards hold a folder's images to the byte, survive kills, and train as the folder does."""

import concurrent.futures
import io
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
import pyarrow as pa
import pyarrow.parquet
import pytest
from sklearn.datasets import load_sample_images

from ssljax import Experiment, minimize, Run, train, TrainState
from ssljax.data import augment, feed, PlainImages, prepare, shards, sources
from ssljax.data.folders import find_files, IMAGES
from ssljax.data.image_files import image_folder
from ssljax.data.prepare import main, prepare_shards
from ssljax.errors import InputError

SMALL = 30_000  # Bytes of a shard: some ten of the pictures below.


def encoded(pixels, form="JPEG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@pytest.fixture(scope="module")
def files():
    """{name: bytes} of 96 parts of scikit-learn's photographs, of different sizes."""
    rng, found = np.random.default_rng(0), {}
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        for i in range(48):
            height, width = rng.integers(24, 90, 2)
            top, left = rng.integers(photo.shape[0] - 90), rng.integers(photo.shape[1] - 90)
            pixels = photo[top : top + height, left : left + width]
            form, suffix = ("PNG", "png") if i % 8 == 0 else ("JPEG", "jpg")
            split = "test" if i % 4 == 0 else "train"
            found[f"{split}/{name}/{i:02d} é.{suffix}"] = encoded(pixels, form)
    return found


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


@pytest.fixture
def folder(tmp_path, files):
    return write(tmp_path / "photos", files)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, files):
    """A folder of images, and of its shards; not to be changed."""
    root = tmp_path_factory.mktemp("prepared")
    source = write(root / "photos", files)
    prepare_shards(str(source), str(root / "shards"), workers=1, shard_bytes=SMALL)
    return source, root / "shards"


def content_of(root):
    return {p.name: p.read_bytes() for p in root.iterdir()}


def records(root, split):
    index = shards.read_index(root)
    return list(shards.Shards(root, index["splits"][split]["shards"])), index


def labels_of(root, split):
    return shards.sidecar(root, shards.read_index(root)["splits"][split]["labels"])


def test_shards_hold_each_file_once_in_the_order_of_the_folder(prepared, files):
    source, root = prepared
    found = find_files(source, IMAGES)
    for split in ("train", "test"):
        held, index = records(root, split)
        assert len(index["splits"][split]["shards"]) > 2
        assert [name for _, name, _ in held] == found.names[split]
        assert [label for label, _, _ in held] == found.labels[split].tolist()
        assert all(content == files[name] for _, name, content in held)
        np.testing.assert_array_equal(labels_of(root, split), found.labels[split])
        assert shards.read_names(root, index["splits"][split]) == found.names[split]
    assert index["class_names"] == ["china", "flower"]


def is_running(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_command_is_resumed_to_the_same_bytes(prepared, tmp_path):
    source, whole = prepared
    target = tmp_path / "shards"
    command = [sys.executable, "-m", "ssljax.data.prepare", str(source), "--to", str(target)]
    command += ["--shard-bytes", str(SMALL), "--workers", "2"]
    slow = tmp_path / "sitecustomize.py"  # Workers read it too: a shard takes half a second.
    slow.write_text("import os, time\nfsync = os.fsync\nos.fsync = lambda f: time.sleep(0.5)\n")
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    log = target / prepare.UNFINISHED
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > 2):
        time.sleep(0.05)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = children.read_text().split() if children.exists() else []
    process.kill()
    assert process.wait() == -signal.SIGKILL
    ends = time.monotonic() + 20
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < ends, "a worker goes on without its parent"
        time.sleep(0.05)
    finished = [json.loads(line)["file"] for line in log.read_text().splitlines()[1:]]
    before = {name: (target / name).stat().st_mtime_ns for name in finished}
    assert 2 <= len(before) < len(list(whole.glob("*.array_record")))
    with log.open("a") as file:  # What a kill within a write leaves.
        file.write('{"file": "train-000')
    prepare_shards(str(source), str(target), workers=1, shard_bytes=SMALL)
    assert content_of(target) == content_of(whole)
    assert before == {name: (target / name).stat().st_mtime_ns for name in finished}


def test_an_interrupt_keeps_finished_shards_and_leaves_no_parts(
    prepared, tmp_path, monkeypatch, capsys
):
    source, whole = prepared
    arguments = [str(source), "--to", str(tmp_path / "out"), "--workers", "1"]
    arguments += ["--shard-bytes", str(SMALL)]
    done, write_shard = [], prepare.write_shard

    def third_is_interrupted(target, expected, job):
        if len(done) == 2:
            (target / f"{job.file}.1.part").write_bytes(b"x")
            raise KeyboardInterrupt
        done.append(job.file)
        return write_shard(target, expected, job)

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "write_shard", third_is_interrupted)
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
    assert stopped.value.code == 130
    assert "run the same command again" in capsys.readouterr().err
    assert set(content_of(tmp_path / "out")) == {*done, prepare.UNFINISHED}
    main(arguments)
    assert content_of(tmp_path / "out") == content_of(whole)
    assert "2 of" in capsys.readouterr().out


def flip(path):
    content = bytearray(path.read_bytes())
    at = content.find(b"\xff\xd8\xff") + 200  # Within a JPEG.
    content[at] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "name", "when"),
    [
        (flip, "train-00001-of-{:05d}.array_record", "read"),
        (cut, "test-00000-of-{:05d}.array_record", "opened"),
        (pathlib.Path.unlink, "train-00000-of-{:05d}.array_record", "opened"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\7"), "train-labels.npy", "opened"),
    ],
)
def test_damage_is_found_and_the_same_command_repairs_it(prepared, tmp_path, damage, name, when):
    source, whole = prepared
    root = tmp_path / "shards"
    shutil.copytree(whole, root)
    n = len(list(root.glob(f"{name.partition('-')[0]}-*.array_record")))
    broken = root / name.format(n)
    damage(broken)
    with pytest.raises(InputError, match=rf"{broken.name} is (damaged|missing).*once more") as e:
        shard_set, _ = shards.shard_images(root, "train", 16)
        shard_set.read(np.arange(len(shard_set)))
    assert "\n" not in str(e.value)
    prepare_shards(str(source), str(root), workers=1, shard_bytes=SMALL)
    assert content_of(root) == content_of(whole)


def test_a_damaged_shard_is_not_written_from_images_that_have_changed(
    folder, prepared, tmp_path, files
):
    root = tmp_path / "shards"
    shutil.copytree(prepared[1], root)
    broken = next(root.glob("train-00000*"))
    flip(broken)
    before = content_of(root)
    name = find_files(folder, IMAGES).names["train"][0]
    (folder / name).write_bytes(files[name][:-3] + b"abc")  # The same name and size.
    with pytest.raises(InputError, match=f"{broken.name} can't be written anew.*have changed"):
        prepare_shards(str(folder), str(root), workers=1, shard_bytes=SMALL)
    after = content_of(root)
    after.pop(prepare.UNFINISHED)
    assert after == before


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_tars(root, files, names):
    """Two tars to train, one to test, each of every image with its class's number and a caption."""
    root.mkdir()
    for split, usual, count in (("train", "train", 2), ("test", "val", 1)):
        for i, part in enumerate(np.array_split(names[split], count)):
            members = []
            for j, name in enumerate(part.tolist()):
                label = ["china", "flower"].index(name.split("/")[1])
                members.append((f"./{j:05d}.{name.rpartition('.')[2]}", files[name]))
                members.append((f"./{j:05d}.cls", f"{label}".encode()))
                members.append((f"./{j:05d}.txt", f"a picture, number {j}".encode()))
            tar_of(root / f"{usual}-{i}.tar", members)


def write_parquet(root, files, names):
    """Files in the layout of Hugging Face's data sets, with row groups of seven."""
    root.mkdir()
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["china", "flower"], "_type": "ClassLabel"},
    }
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    for split, usual, count in (("train", "train", 2), ("test", "validation", 1)):
        for i, part in enumerate(np.array_split(names[split], count)):
            rows = [
                {
                    "image": {"bytes": files[n], "path": n.rpartition("/")[2]},
                    "label": ["china", "flower"].index(n.split("/")[1]),
                }
                for n in part.tolist()
            ]
            file = root / f"{usual}-{i:05d}-of-{count:05d}.parquet"
            table = pa.Table.from_pylist(rows, schema)
            pyarrow.parquet.write_table(table, file, row_group_size=7)


@pytest.mark.parametrize("writer", [write_tars, write_parquet])
def test_tars_and_parquet_files_give_the_set_of_the_folder(prepared, files, tmp_path, writer):
    source, whole = prepared
    writer(tmp_path / "archives", files, find_files(source, IMAGES).names)
    prepare_shards(str(tmp_path / "archives"), str(tmp_path / "out"), workers=1, shard_bytes=SMALL)
    for split in ("train", "test"):
        (held, index), (expected, _) = records(tmp_path / "out", split), records(whole, split)
        assert len(index["splits"][split]["shards"]) > 2
        assert [(label, x) for label, _, x in held] == [(label, x) for label, _, x in expected]
        assert len({name for _, name, _ in held}) == len(held)
        np.testing.assert_array_equal(labels_of(tmp_path / "out", split), labels_of(whole, split))
    assert index["class_names"] == (["china", "flower"] if writer is write_parquet else ["0", "1"])


def tar_with(files, sidecar, suffix):
    """Members of a tar of all images, of which image i has the sidecar `sidecar(i)`."""
    members = []
    for i, content in enumerate(files.values()):
        members.append((f"a/{i:03d}.jpg", content))
        if (text := sidecar(i)) is not None:
            members.append((f"a/{i:03d}.{suffix}", text.encode()))
    return members


@pytest.mark.parametrize(
    ("suffix", "sidecar", "classes"),
    [
        ("cls", lambda i: ["cat\n", "dog\n"][i % 2], ["cat", "dog"]),
        ("json", lambda i: json.dumps({"label": i % 3, "width": 5}), ["0", "1", "2"]),
        ("txt", lambda i: ["dog", "cat"][i % 2], ["cat", "dog"]),
        ("txt", lambda i: f"caption {i // 2}", []),
        ("cls", lambda i: None, []),
    ],
)
def test_labels_of_tars(files, tmp_path, capsys, suffix, sidecar, classes):
    path = tmp_path / "pictures.tar"
    tar_of(path, [*tar_with(files, sidecar, suffix), ("notes.pdf", b"x")])
    prepare_shards(str(path), str(tmp_path / "out"), workers=1)
    index = shards.read_index(tmp_path / "out")
    assert index["class_names"] == classes
    said = capsys.readouterr().out
    assert "1 members that are not" in said and "a tenth is held out" in said
    order = list(files.values())
    for split in ("train", "test"):
        for label, _, content in records(tmp_path / "out", split)[0]:
            text = sidecar(order.index(content))
            if classes:
                given = json.loads(text)["label"] if suffix == "json" else text.strip()
                assert classes[label] == str(given)
            else:
                assert label == -1
    assert index["splits"]["train"]["count"] + index["splits"]["test"]["count"] == len(files)


def test_what_cannot_be_read_is_left_out_and_said(folder, files, tmp_path, capsys):
    good = next(iter(files.values()))
    write(
        folder,
        {
            "train/china/empty.jpg": b"",
            "train/china/truncated.jpg": good[: len(good) // 2],
            "train/flower/text.png": b"no image",
        },
    )
    prepare_shards(str(folder), str(tmp_path / "out"), workers=1, shard_bytes=SMALL)
    held, index = records(tmp_path / "out", "train")
    left = [x for e in index["splits"]["train"]["shards"] for x in e["left_out"]]
    assert {x["name"].rpartition("/")[2] for x in left} == {
        "empty.jpg",
        "truncated.jpg",
        "text.png",
    }
    assert {name for _, name, _ in held} == {name for name in files if name.startswith("train")}
    kept = [["china", "flower"].index(name.split("/")[1]) for _, name, _ in held]
    np.testing.assert_array_equal(labels_of(tmp_path / "out", "train"), kept)
    said = capsys.readouterr().out.splitlines()[-1]
    assert "Left out: 1 such as" in said and "truncated" in said and "text.png" in said


def test_size_resizes_the_shorter_side_of_larger_images_and_keeps_the_others(
    folder, files, tmp_path
):
    turned = Image.open(io.BytesIO(files["train/china/01 é.jpg"])).resize((80, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # Shown turned by a quarter: 60 wide and 80 high.
    turned.save(folder / "train/china/turned.jpg", exif=exif)
    prepare_shards(str(folder), str(tmp_path / "out"), size=48, workers=1)
    changed = 0
    for _, name, content in records(tmp_path / "out", "train")[0]:
        original, image = (Image.open(x) for x in (folder / name, io.BytesIO(content)))
        assert image.format == original.format
        if min(original.size) <= 48:
            assert content == (folder / name).read_bytes()
            continue
        changed += 1
        assert min(image.size) == 48
        upright = original.transpose(Image.Transpose.ROTATE_270) if "turned" in name else original
        expected = upright.resize(image.size, Image.Resampling.BILINEAR)
        error = np.abs(np.asarray(image, float) - np.asarray(expected, float)).mean()
        assert error < 4
    assert changed > 5


@pytest.mark.parametrize("how", [{}, {"whole": True}, {"validation": True}, {"part": 0.875}])
@pytest.mark.parametrize("streamed", [False, True])
def test_shards_are_read_as_their_folder_is(prepared, monkeypatch, tmp_path, how, streamed):
    monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path))
    if streamed:
        monkeypatch.setattr(sources, "RESIDENT_BYTES", 0)
    source, root = prepared
    for split in ("train", "test"):
        expected, _ = image_folder(source, split, 24, **how)
        for _ in range(2):  # The second time from the cache.
            found, line = shards.shard_images(root, split, 24, **how)
            assert isinstance(found, sources.OnDisk) == streamed
            assert found.shape == expected.shape and found.class_names == expected.class_names
            at = np.random.default_rng(0).permutation(len(expected))[:20]
            held, own = found.read(at), expected.read(at)
            assert held.keys() == own.keys()
            for name in own:
                np.testing.assert_array_equal(held[name], own[name])
            np.testing.assert_array_equal(found.labels, expected.labels)
    assert "2 classes" in line


def test_shards_without_labels(prepared):
    _, root = prepared
    found, line = shards.shard_images(root, "train", 16, "unlabelled")
    assert found.labels is None and found.class_names == [] and "without classes" in line
    with pytest.raises(InputError, match="shards have the splits"):
        shards.shard_images(root, "train", 16, "val")


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(x) for x in arguments])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    return said


def test_targets_that_are_refused(folder, tmp_path, capsys, files):
    target = tmp_path / "out"
    other = write(tmp_path / "other", {"notes.txt": b"mine"})
    assert "give it as --to DIR" in refused([folder], capsys)
    assert "outside" in refused([folder, "--to", folder / "train/out"], capsys)
    assert "holds other files (notes.txt)" in refused([folder, "--to", other], capsys)
    assert "is no folder" in refused([folder, "--to", other / "notes.txt"], capsys)
    assert "There is no folder" in refused([tmp_path / "nothing", "--to", target], capsys)
    assert "holds no images" in refused([other, "--to", target], capsys)
    assert "is one file" in refused([other / "notes.txt", "--to", target], capsys)
    assert "no name in UTF-8" in refused([folder, "--to", f"{target}\udcff"], capsys)
    assert "no flag --shards" in refused([folder, "--shards", "3"], capsys)
    assert "at least 1" in refused([folder, "--to", target, "--shard-bytes", "0"], capsys)
    assert "Name a data set" in refused([], capsys)
    assert not target.exists() and content_of(other) == {"notes.txt": b"mine"}
    main([str(folder), "--to", str(target), "--workers", "1"])
    before = content_of(target)
    assert "of other images" in refused([folder, "--to", target, "--size", "20"], capsys)
    assert "holds shards already" in refused([target, "--to", tmp_path / "again"], capsys)
    assert content_of(target) == before
    tar_of(folder / "train.tar", [("1.jpg", next(iter(files.values())))])
    assert "1 .tar and 96 images" in refused([folder, "--to", target], capsys)


def test_archives_that_are_refused(files, tmp_path, capsys):
    content = next(iter(files.values()))
    path = tmp_path / "train.tar"

    def said():
        return refused([path, "--to", tmp_path / "out", "--workers", "1"], capsys)

    tar_of(path, [("a.jpg", content), ("b.jpg", content), ("a.png", content)])
    assert "two images of one name, a.jpg and a.png" in said()
    tar_of(path, [("a.jpg", content), ("a.cls", b"1"), ("b.jpg", content)])
    assert "1 of 2 images to train have no label, such as train.tar/b.jpg" in said()
    tar_of(path, [("a.jpg", content), ("a.cls", b"1"), ("b.jpg", content), ("b.cls", b"cat")])
    assert "some are texts" in said()
    path.write_bytes(b"no tar" * 200)
    assert "can't be read as a tar" in said()
    path = tmp_path / "train.parquet"
    path.write_bytes(b"no parquet" * 200)
    assert "can't be read as a Parquet file" in said()
    paths = {"image": [{"bytes": None, "path": "1.jpg"}] * 20}
    pyarrow.parquet.write_table(pa.table(paths), path)
    assert "needs a column image of bytes" in said()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pyarrow.parquet.write_table(pa.table({"image": pa.array(paths["image"], kind)}), path)
    assert "paths of images (1.jpg) and not their bytes" in said()
    pyarrow.parquet.write_table(pa.table({"text": ["a"]}), path)
    assert "it holds text (string)" in said()


def test_a_full_disk_is_said_and_keeps_what_is_finished(prepared, tmp_path, capsys):
    source, whole = prepared
    arguments = [source, "--to", tmp_path / "out", "--workers", 1, "--shard-bytes", SMALL]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        said = refused(arguments, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "can't be written (" in said and "File too large" in said and "make room" in said
    assert not list((tmp_path / "out").glob("*.part"))
    main([str(x) for x in arguments])
    assert content_of(tmp_path / "out") == content_of(whole)


def test_a_file_that_may_not_be_read_stops_the_command(folder, tmp_path, capsys, monkeypatch):
    name = find_files(folder, IMAGES).names["train"][5]
    read = pathlib.Path.read_bytes

    def read_bytes(path):
        if path == folder / name:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", read_bytes)
    said = refused([folder, "--to", tmp_path / "out", "--workers", "1"], capsys)
    assert f"{folder / name} can't be read (Permission denied)" in said


def weights_after_training(data, workdir, part):
    """Of a linear autoencoder, after an epoch on random squares of the photographs."""
    train_set = PlainImages(data=str(data), image_size=16).read(whole=True).train
    tx = optax.adam(1e-2)

    def init(key, batch):
        return TrainState.create(tx, {"w": 0.1 * jax.random.normal(key, (16 * 16 * 3, 4))})

    def loss(params, state, batch, key):
        x = augment.to_float(batch["image"]).reshape(len(batch["image"]), -1)
        error = x @ params["w"] @ params["w"].T - x + jax.random.normal(key, x.shape)
        value = jnp.mean(error**2 * batch["aspect"][:, None])
        return value, ({}, {"loss": value})

    exp = Experiment(init=init, step=minimize(tx, loss), data=feed(train_set, 8), num_steps=9)
    assert isinstance(train_set, part)
    return np.asarray(train(exp, Run(workdir=str(workdir))).params["w"])


@pytest.mark.parametrize("streamed", [False, True])
def test_training_from_shards_equals_training_from_the_folder(
    prepared, monkeypatch, tmp_path, streamed, one_device
):
    monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path / "cache"))
    if streamed:
        monkeypatch.setattr(sources, "RESIDENT_BYTES", 0)
    part = sources.OnDisk if streamed else sources.Arrays
    folder, shard_set = (
        weights_after_training(data, tmp_path / f"run{i}", part) for i, data in enumerate(prepared)
    )
    np.testing.assert_array_equal(folder, shard_set)
    assert np.abs(folder).max() > 0.3


def test_an_error_of_one_worker_ends_all_after_what_has_begun(monkeypatch):
    # Threads in place of processes, which take seconds to start.
    monkeypatch.setattr(
        prepare, "ProcessPoolExecutor", lambda n, *_: concurrent.futures.ThreadPoolExecutor(n)
    )
    begun = []

    def do(i):
        begun.append(i)
        time.sleep(0.01)
        if i == 4:
            raise InputError("The disk is full.")
        return 10 * i

    found = {}
    with pytest.raises(InputError, match="full"):
        found.update(prepare._each(do, [(i,) for i in range(100)], 2))
    assert found == {i: 10 * i for i in begun if i != 4} and 4 <= len(found) < 50
