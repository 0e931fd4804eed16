"""Data: the order of examples, the two feeds, and what images() reads or refuses."""

import itertools
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import numpy as np
from PIL import Image
import pytest
from sklearn.datasets import load_digits, load_sample_images

from ssljax import sharding
from ssljax.data import cache, decode, feed, Images, images, sources, tfds
from ssljax.data.decode import Decoder, fit
from ssljax.data.feed import local_rows, Rows, Streamed
from ssljax.data.order import indices, order
from ssljax.data.sources import Arrays, OnDisk
from ssljax.errors import InputError
from tests.conftest import ROOT

MESHES = [(1, 1), (2, 1), (8, 1), (2, 4)]


def mesh_of(data: int, fsdp: int = 1) -> jax.sharding.Mesh:
    return jax.make_mesh(
        (data, fsdp),
        ("data", "fsdp"),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
        devices=jax.devices()[: data * fsdp],
    )


def random_set(n: int = 50) -> Arrays:
    rng = np.random.default_rng(n)
    return Arrays(
        rng.integers(0, 256, (n, 4, 3, 1), np.uint8),
        rng.integers(0, 5, n).astype(np.int32),
        list("abcde"),
    )


class Counted(Arrays):
    """Counts the examples that are read."""

    def read(self, at):
        with LOCK:
            READS.extend(at.tolist())
        return super().read(at)


LOCK, READS = threading.Lock(), []


@pytest.fixture
def reads():
    READS.clear()
    return READS


def run_python(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **env},
        timeout=120,
        capture_output=True,
        text=True,
    )


# The order.

seeds, epochs = st.integers(-(2**31), 2**32 - 1), st.integers(0, 10**6)


@settings(deadline=None, max_examples=50)
@given(seeds, epochs, st.integers(1, 300))
def test_order_is_a_permutation_by_seed_and_epoch_alone(seed, epoch, n):
    first = order(seed, epoch, n)
    assert first.dtype == np.int32 and sorted(first.tolist()) == list(range(n))
    np.random.seed(epoch % 7)  # Neither NumPy's global state nor earlier calls matter.
    order(seed + 1, epoch, n), order(seed, epoch + 1, n)
    order.cache_clear()
    np.testing.assert_array_equal(order(seed, epoch, n), first)


@settings(deadline=None, max_examples=50)
@given(st.tuples(seeds, epochs), st.tuples(seeds, epochs))
def test_order_differs_between_epochs_and_seeds(a, b):
    assert np.array_equal(order(*a, 64), order(*b, 64)) == (a == b)


def test_order_of_neighbouring_seeds_and_epochs_differs():
    orders = {tuple(order(seed, epoch, 64)) for seed in range(8) for epoch in range(8)}
    assert len(orders) == 64


def test_order_is_shared_and_so_read_only():
    with pytest.raises(ValueError):
        order(0, 0, 10)[0] = 1
    with pytest.raises(ValueError):
        indices(0, 0, 10, 4)[:] = 1


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(1, 60), st.data())
def test_indices_cover_each_epoch_except_the_remainder(seed, epoch, n, data):
    batch_size = data.draw(st.integers(1, n))
    steps = n // batch_size
    seen = np.concatenate([indices(seed, epoch * steps + i, n, batch_size) for i in range(steps)])
    assert len(seen) == steps * batch_size == n - n % batch_size
    np.testing.assert_array_equal(seen, order(seed, epoch, n)[: len(seen)])
    assert len(set(seen.tolist())) == len(seen)


# The feeds.


def batches(data, seed: int, start: int, count: int, mesh) -> list[dict]:
    """Batches as a run makes them: resident and fed arrays are arguments of a jitted function."""
    with jax.set_mesh(mesh):
        resident = jax.device_put(data.resident(), sharding.replicated(mesh))
        gather = jax.jit(data.batch)
        fed = data.feed(seed, start, mesh)
        out = [gather(resident, x) for x in itertools.islice(fed, count)]
        fed.close()
    return out


def expected(source: Arrays, seed: int, step: int, batch_size: int) -> dict:
    at = indices(seed, step, len(source), batch_size)
    return {"image": source.image[at], "label": source.labels[at]}


def assert_same(a: dict, b: dict) -> None:
    assert set(a) == set(b) == {"image", "label"}
    for k in a:
        assert a[k].dtype == b[k].dtype
        np.testing.assert_array_equal(np.asarray(a[k]), np.asarray(b[k]))


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("kind", [feed, Streamed])
def test_batches_match_numpy_on_any_mesh(kind, shape):
    source = random_set(50)  # Three batches of 16 an epoch: eight steps pass two borders.
    for step, batch in enumerate(batches(kind(source, 16), 3, 0, 8, mesh_of(*shape))):
        want = expected(source, 3, step, 16)
        assert_same(batch, want)
        for x in batch.values():
            assert len(x.sharding.device_set) == shape[0] * shape[1]


@pytest.mark.parametrize("start", [1, 2, 3, 5, 10**9])
@pytest.mark.parametrize("kind", [feed, Streamed])
def test_starting_later_gives_the_tail(kind, start):
    source = random_set(50)
    for i, batch in enumerate(batches(kind(source, 16), 0, start, 4, mesh_of(2))):
        assert_same(batch, expected(source, 0, start + i, 16))


def test_the_whole_set_as_one_batch_and_single_examples():
    for n in (5, 1):
        for kind in (feed, Streamed):
            for i, batch in enumerate(batches(kind(random_set(5), n), 0, 0, 7, mesh_of(1))):
                assert_same(batch, expected(random_set(5), 0, i, n))


def test_resident_batch_that_the_devices_do_not_divide():
    for i, batch in enumerate(batches(feed(random_set(), 6), 0, 0, 9, mesh_of(8))):
        assert_same(batch, expected(random_set(), 0, i, 6))


def test_seeds_have_their_own_order():
    a, b = (batches(feed(random_set(), 16), seed, 0, 1, mesh_of(1))[0]["image"] for seed in (0, 1))
    assert not np.array_equal(a, b)


def large_constants(text: str, size: int) -> list[str]:
    shapes = re.findall(r"stablehlo\.constant dense<[^>]*> : tensor<((?:\d+x)+)\w+>", text)
    return [s for s in shapes if np.prod([int(d) for d in s.split("x") if d]) >= size]


def test_resident_arrays_are_arguments_of_the_program():
    source = random_set(200)
    data = feed(source, 16)
    resident, fed = data.resident(), next(data.feed(0, 0, mesh_of(1)))
    text = jax.jit(data.batch).lower(resident, fed).as_text()
    assert not large_constants(text, len(source)) and len(text) < source.image.nbytes
    assert re.search(r"@main\(.*tensor<200x4x3x1xui8>", text)
    constant = (
        jax.jit(lambda fed: data.batch(jax.tree.map(jax.numpy.asarray, resident), fed))
        .lower(fed)
        .as_text()
    )
    assert large_constants(constant, len(source)), "This test would not see a constant."


def test_resident_feed_carries_indices_alone():
    fed = next(feed(random_set(), 16).feed(0, 0, mesh_of(8)))
    assert isinstance(fed, np.ndarray) and fed.shape == (16,) and fed.dtype == np.int32


def test_streamed_batches_lie_split_over_the_devices():
    source, mesh = random_set(), mesh_of(2, 4)
    assert Streamed(source, 16).resident() == ()
    for x, want in zip(
        *(
            list(b.values())
            for b in (next(Streamed(source, 16).feed(0, 0, mesh)), expected(source, 0, 0, 16))
        )
    ):
        assert x.sharding.is_equivalent_to(jax.NamedSharding(mesh, sharding.BATCH), x.ndim)
        for shard in x.addressable_shards:
            assert len(shard.data) == 2
            np.testing.assert_array_equal(shard.data, want[shard.index])


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (2, 4), (1, 8)])
@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_local_rows_split_the_batch_over_processes(shape, processes):
    along = jax.NamedSharding(mesh_of(*shape), sharding.BATCH)

    class OfProcess:
        def __init__(self, devices):
            self.devices = devices

        def addressable_devices_indices_map(self, global_shape):
            return {
                d: i
                for d, i in along.devices_indices_map(global_shape).items()
                if d in self.devices
            }

    devices = np.array(jax.devices()).reshape(processes, -1)
    rows = [local_rows(OfProcess(set(own)), 24) for own in devices]
    assert all(len(r) == 24 // processes and r == sorted(r) for r in rows)
    assert sorted(itertools.chain(*rows)) == list(range(24))


def test_streamed_read_ahead_is_bounded(reads):
    base = random_set(5000)
    data = Streamed(Counted(base.image, base.labels, base.class_names), 16, ahead=3, sent=2)
    assert not reads
    fed = data.feed(0, 7, mesh_of(2))
    assert not reads  # Nothing before the first batch is asked for.
    next(fed)
    time.sleep(0.2)
    assert len(reads) <= (1 + 3 + 2) * 16, "The first batch waits for others."
    next(fed)
    deadline = time.time() + 10
    while len(reads) < 7 * 16 and time.time() < deadline:
        time.sleep(0.01)
    assert len(reads) >= 7 * 16, "It does not read ahead."
    time.sleep(0.2)
    # Two were taken, two are on the devices, three are read, and each thread may hold one.
    assert len(reads) <= (2 + 2 + 3 + 2) * 16, "It reads further ahead than it was asked to."
    assert set(reads) <= set(
        np.concatenate([indices(0, s, 5000, 16) for s in range(7, 16)]).tolist()
    )
    assert len(set(reads)) == len(reads)  # No example is decoded twice.
    fed.close()
    time.sleep(0.1)
    stopped = len(reads)
    time.sleep(0.2)
    assert len(reads) == stopped


def test_closing_or_abandoning_a_stream_does_not_hang():
    code = """if True:
        import itertools, time
        import jax, numpy as np
        from ssljax import sharding
        from ssljax.data.feed import Streamed
        from ssljax.data.sources import OnDisk

        def image(i):
            time.sleep(0.01)
            return np.zeros((4, 4, 1), np.uint8)

        source = OnDisk(image, np.zeros(1000, np.int32), ["a"], (4, 4, 1))
        mesh = sharding.make_mesh()
        closed, abandoned, dropped = (Streamed(source, 16).feed(s, 0, mesh) for s in range(3))
        next(closed), next(abandoned), next(dropped)
        source.read(np.arange(20))
        closed.close()
        del dropped
        print("done", flush=True)
    """
    done = run_python(code)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr


def test_a_broken_image_in_a_stream_reaches_the_reader_as_input_error():
    def image(i):
        if i == 17:
            raise InputError("17.png can't be read")
        return np.zeros((4, 4, 1), np.uint8)

    data = Streamed(OnDisk(image, np.zeros(50, np.int32), ["a"], (4, 4, 1)), 10)
    with pytest.raises(InputError, match="17.png"):
        list(itertools.islice(data.feed(0, 0, mesh_of(1)), 5))


PROCESS = """if True:
    import json, sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.experimental import multihost_utils
    jax.distributed.initialize("127.0.0.1:{port}", 2, int(sys.argv[1]))
    from ssljax import sharding
    from ssljax.data.feed import Streamed
    from ssljax.data.sources import OnDisk
    from ssljax.errors import InputError
    from ssljax.data.decode import Unreadable
    from ssljax.evals.features import features, raw_pixels

    reads = []

    def image(i):
        reads.append(i)
        if i in (5, 6, 30):
            raise Unreadable(f"{{i}}.png can't be read")
        return np.full((2, 3, 1), i, np.uint8)

    source = OnDisk(image, np.arange(50, dtype=np.int32), ["a"], (2, 3, 1), skip_bad=True)
    mesh, found = sharding.make_mesh(), []
    fed = Streamed(source, 16, ahead=1, sent=1).feed(0, 2, mesh)
    for _ in range(4):  # Over the border of an epoch.
        batch = multihost_utils.process_allgather(next(fed), tiled=True)
        found.append([batch["image"][:, 0, 0, 0].tolist(), batch["label"].tolist()])
    fed.close()
    with jax.set_mesh(mesh):
        reads.clear()
        at = features(lambda state, x: x.reshape(len(x), -1) + 0.0, {{}}, source, 8)[:, 0]
        of_features = list(reads)
        reads.clear()
        raw = raw_pixels(source, np.arange(7, 29), chunk=8)[:, 0] * 255
    out = dict(found=found, features=at.tolist(), reads=of_features)
    print(json.dumps(jax.tree.map(int, out | dict(raw=raw.tolist(), raw_reads=reads))))
"""


def test_two_processes_read_each_example_once():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS.format(port=port), str(i)],
            env=env,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
        )
        for i in range(2)
    ]
    said = [w.communicate(timeout=120)[0] for w in workers]
    assert [w.returncode for w in workers] == [0, 0], said
    a, b = (json.loads(text.splitlines()[-1]) for text in said)
    taken = {5: 7, 6: 7, 30: 31}
    assert a["found"] == b["found"]
    for step, (image, label) in enumerate(a["found"], 2):
        assert image == label == [taken.get(i, i) for i in indices(0, step, 50, 16).tolist()]
    assert a["features"] == b["features"] == [taken.get(i, i) for i in range(50)]
    assert a["raw"] == b["raw"] == list(range(7, 29))
    # What fills up the last part, and what replaces a file, is read by both.
    once = set(range(48)) - {5, 6, 7, 30, 31}
    assert not set(a["reads"]) & set(b["reads"]) & once
    assert set(a["reads"]) | set(b["reads"]) >= once
    assert len(a["reads"]) < 40 and len(b["reads"]) < 40
    assert not set(a["raw_reads"]) & set(b["raw_reads"]) & set(range(7, 23))


@pytest.mark.parametrize("start", [0, 1, 4, 7])
def test_a_stream_resumed_with_other_numbers_of_threads_is_the_same(tmp_path, start, monkeypatch):
    def stream(threads: int, ahead: int, sent: int, first: int, count: int) -> list[dict]:
        monkeypatch.setattr(sources, "THREADS", threads)
        decode = Decoder(16)
        source = OnDisk(lambda i: decode(paths[i]), CLASSES[:20], [], (16, 16, 3), skip_bad=True)
        return batches(Streamed(source, 6, ahead, sent), 1, first, count, mesh_of(2))

    paths = [tmp_path / f"{i}.jpg" for i in range(20)]
    for i, path in enumerate(paths):
        save(path, PHOTO[10 * i : 10 * i + 40, 100:170])
    paths[7].write_bytes(b"")
    for a, b in zip(stream(1, 1, 1, 0, 9)[start:], stream(9, 5, 3, start, 9 - start)):
        assert_same(a, b)


def test_memory_of_a_stream_is_flat():
    code = """if True:
        import itertools, resource
        import jax, numpy as np
        from ssljax import sharding
        from ssljax.data.feed import Streamed
        from ssljax.data.sources import OnDisk

        image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
        source = OnDisk(lambda i: image + 1, None, [], image.shape, count=640)
        fed = Streamed(source, 64).feed(0, 0, sharding.make_mesh())  # 1.9 MB a batch.

        def pages() -> int:
            return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

        def epochs(n):
            for _ in itertools.islice(fed, 10 * n):
                pass
            return pages()

        before, after = epochs(4), epochs(12)
        fed.close()
        print((after - before) / 2**20)
    """
    done = run_python(code)
    # An epoch is 18 MB: had one in twelve been kept, this would be seen.
    assert done.returncode == 0 and float(done.stdout) < 18, (done.stdout, done.stderr)


@pytest.mark.parametrize("batch_size", [51, 0, -1])
def test_bad_batch_sizes(batch_size):
    with pytest.raises(
        InputError, match=rf"batch of {batch_size} .* 50 examples.* between 1 and 50"
    ):
        feed(random_set(50), batch_size)


def test_feed_kind_by_data_location():
    assert isinstance(feed(random_set(), 50), Rows)
    on_disk = OnDisk(
        lambda i: np.zeros((4, 4, 1), np.uint8), np.zeros(50, np.int32), ["a"], (4, 4, 1)
    )
    assert isinstance(feed(on_disk, 50), Streamed)


# Digits.


def test_digits():
    train, test = images("digits", "train"), images("digits", "test")
    assert (len(train), len(test)) == (1437, 360) and train.num_classes == test.num_classes == 10
    raw = load_digits()
    for got, at in (train, np.arange(1797) % 5 > 0), (test, np.arange(1797) % 5 == 0):
        assert got.shape == (8, 8, 1) and got.image.shape == (len(got), 8, 8, 1)
        assert got.image.dtype == np.uint8 and got.labels.dtype == np.int32
        np.testing.assert_array_equal(got.labels, raw.target[at])
        np.testing.assert_allclose(
            got.image[..., 0] / 255, raw.images[at] / 16, atol=0.5 / 255 + 1e-9
        )
    shared = {x.tobytes() for x in train.image} & {x.tobytes() for x in test.image}
    assert not shared
    assert images("digits", "test", 12).image.shape == (360, 12, 12, 1)


def test_an_unknown_split_is_not_taken_for_train():
    with pytest.raises(KeyError):
        images("digits", "val")


@pytest.mark.parametrize("kind", [Arrays, OnDisk])
def test_reading(kind):
    base = random_set(30)
    source = (
        base
        if kind is Arrays
        else OnDisk(lambda i: base.image[i], base.labels, base.class_names, base.shape)
    )
    assert len(source) == 30 and source.num_classes == 5 and source.shape == (4, 3, 1)
    for at in ([3], [29, 0, 0], list(range(20, 0, -1))):
        assert_same(source.read(np.array(at)), {"image": base.image[at], "label": base.labels[at]})


# Resizing.

PHOTO = load_sample_images().images[0]


@pytest.mark.parametrize(
    "height, width, size, resized, left, top",
    [
        (40, 60, 20, (30, 20), 5, 0),
        (60, 40, 20, (20, 30), 0, 5),
        (17, 23, 8, (10, 8), 1, 0),
        (30, 30, 7, (7, 7), 0, 0),
        (10, 15, 25, (37, 25), 6, 0),
        (3, 200, 5, (333, 5), 164, 0),
        (100, 101, 10, (10, 10), 0, 0),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_fit_matches_pillow_bilinear_center_crop(height, width, size, resized, left, top, channels):
    x = PHOTO[100 : 100 + height, 200 : 200 + width, :channels]
    whole = Image.fromarray(x[..., 0] if channels == 1 else x).resize(
        resized, Image.Resampling.BILINEAR
    )
    want = np.asarray(whole).reshape(resized[1], resized[0], channels)[
        top : top + size, left : left + size
    ]
    got = fit(x, size)
    assert got.dtype == np.uint8 and got.shape == (size, size, channels)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_fit_with_other_channel_counts(channels):
    x = np.random.default_rng(0).integers(0, 256, (9, 12, channels), np.uint8)
    np.testing.assert_array_equal(
        fit(x, 6), np.concatenate([fit(x[..., i : i + 1], 6) for i in range(channels)], -1)
    )


def test_a_negative_size():
    with pytest.raises(InputError, match="--image-size .* not -4"):
        images("digits", "train", -4)


IMAGE = np.random.default_rng(0).integers(0, 256, (6, 5, 5, 3), np.uint8)
LABEL = np.array([2, 0, 1, 2, 0, 3])


# Held out of the training split.

OF_CLASS = 100, 70, 55, 5


def numbered(path: pathlib.Path, **more) -> np.ndarray:
    """Writes training images whose pixels are the index, unequal classes; gives the labels."""
    labels = np.random.default_rng(1).permutation(np.repeat(range(4), OF_CLASS))
    image = np.broadcast_to(
        np.arange(len(labels), dtype=np.uint8)[:, None, None], (len(labels), 3, 3)
    )
    np.savez(path, train_images=image, train_labels=labels, **more)
    return labels


def numbers(source) -> np.ndarray:
    return source.read(np.arange(len(source)))["image"][:, 0, 0, 0]


def test_held_out_tenth_of_each_class_without_the_test_split(tmp_path):
    tests = dict(test_images=np.full((9, 3, 3), 255, np.uint8), test_labels=np.arange(9) % 4)
    labels = numbered(tmp_path / "set.npz", **tests)
    train, test = (images(f"{tmp_path}/set.npz:validation", split) for split in ("train", "test"))
    assert not set(numbers(train)) & set(numbers(test))
    assert sorted([*numbers(train), *numbers(test)]) == list(range(len(labels)))
    for part in train, test:
        np.testing.assert_array_equal(part.labels, labels[numbers(part)])
        assert part.num_classes == 4 and (np.diff(numbers(part).astype(int)) > 0).all()
    assert np.bincount(test.labels).tolist() == [10, 7, 5, 1]
    tests = {name: x[:1] for name, x in tests.items()}
    numbered(tmp_path / "other.npz", **tests)
    again = images(f"{tmp_path}/other.npz:validation", "test")
    np.testing.assert_array_equal(numbers(again), numbers(test))


def test_held_out_examples_are_deterministic():
    whole = images("digits", "train")
    held = images("digits:validation", "test")
    np.random.seed(3)
    at = [int(np.flatnonzero((whole.image == x).all((1, 2, 3)))[0]) for x in held.image]
    assert len(at) == 142 and at[:6] == [3, 17, 41, 51, 58, 60]  # Others would spoil comparisons.
    np.testing.assert_array_equal(images("digits:validation", "test").image, held.image)
    small = images("digits:validation", "test", 4)
    np.testing.assert_array_equal(small.image, images("digits", "train", 4).image[at])
    np.testing.assert_array_equal(
        images("digits:validation", "train").image, np.delete(whole.image, at, 0)
    )


def test_held_out_reads_only_the_tfds_training_split(monkeypatch):
    asked, whole = [], random_set(200)
    monkeypatch.setattr(
        tfds, "tfds_images", lambda *what, **how: (asked.append(what) or whole, "mnist: ...")
    )
    train, test = (images("mnist:3.0.1:validation", split, 8) for split in ("train", "test"))
    assert set(asked) == {("mnist:3.0.1", "train", 8, "")}
    assert np.bincount(train.labels).min() > 0 and np.bincount(test.labels).min() > 0
    with pytest.raises(KeyError):
        images("mnist:validation", "validation")


def test_large_and_small_folders_have_the_same_splits(tmp_path, monkeypatch):
    digit_folder(tmp_path / "a:b" / "train", range(100))  # A colon in a folder's name stays one.
    name = f"{tmp_path}/a:b"
    for data in name, f"{name}:validation":
        resident = [images(data, split) for split in ("train", "test")]
        with monkeypatch.context() as patch:
            patch.setattr(sources, "RESIDENT_BYTES", 0)
            on_disk = [images(data, split) for split in ("train", "test")]
        for a, b in zip(resident, on_disk):
            assert isinstance(a, Arrays) and isinstance(b, OnDisk) and len(a) == len(b)
            assert_same(a.read(np.arange(len(a))), b.read(np.arange(len(a))))
            assert set(a.labels) == set(range(10))
    whole = [len(images(name, split)) for split in ("train", "test")]
    assert sum(whole) == 100 and sum(len(x) for x in resident) == whole[0]


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "digits:valid",
            "digits:valid is no set: after the colon only validation can stand, as in",
        ),
        (
            "digits:",
            "digits: is no set: after a colon a split can stand, .* as in digits:validation",
        ),
        ("mnist:valid", "mnist has no valid split; it has .*give one of those as in mnist:t"),
        ("mnist:3.0.1:x", "mnist:3.0.1 has no x split; it has"),
        ("nowhere/set.npz:val", "There is no file nowhere/set.npz: check"),
        ("nowhere/set:val", "There is no folder or .npz file nowhere/set: check"),
    ],
)
def test_unknown_splits_after_a_colon(name, message):
    if name.startswith("mnist"):
        prepared("mnist")
    with pytest.raises(InputError, match=message) as e:
        images(name, "train")
    assert "\n" not in str(e.value)


def test_holding_out_from_too_few_images(tmp_path):
    np.savez(tmp_path / "set.npz", x_train=IMAGE, y_train=LABEL)
    for split in "train", "test":
        with pytest.raises(InputError, match="set.npz has no class of 5 training examples or more"):
            images(f"{tmp_path}/set.npz:validation", split)


# Folders.

DIGITS, CLASSES = np.round(load_digits().images * (255 / 16)).astype(np.uint8), load_digits().target


def save(path: pathlib.Path, image: np.ndarray, mode: str | None = None, **options) -> np.ndarray:
    """Writes an image and gives back what Pillow reads from it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image)
    (picture.convert(mode) if mode else picture).save(path, **options)
    with Image.open(path) as picture:
        return np.asarray(picture)


def digit_folder(root: pathlib.Path, at: range) -> None:
    for i in at:
        save(root / f"class {CLASSES[i]}" / f"{i:03}.png", DIGITS[i])


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_folder_with_its_own_splits(tmp_path, name):
    root = tmp_path / "a set"
    digit_folder(root / "train", range(30))
    digit_folder(root / name, range(30, 50))
    train, test = images(str(root), "train"), images(f"{root}/", "test")
    assert (
        isinstance(train, Arrays)
        and (len(train), len(test)) == (30, 20)
        and train.shape == (8, 8, 1)
    )
    assert train.class_names == test.class_names == [f"class {i}" for i in range(10)]
    for got, at in (train, np.arange(30)), (test, np.arange(30, 50)):
        at = at[np.argsort(CLASSES[at], kind="stable")]
        np.testing.assert_array_equal(got.image[..., 0], DIGITS[at])
        np.testing.assert_array_equal(got.labels, CLASSES[at])
        assert got.image.dtype == np.uint8 and got.labels.dtype == np.int32


def test_folder_without_splits_holds_a_tenth_out(tmp_path):
    digit_folder(tmp_path, range(60))
    train, test = images(str(tmp_path), "train"), images(str(tmp_path), "test")
    assert train.class_names == test.class_names and 10 <= len(test) <= 20
    assert set(train.labels) == set(test.labels) == set(range(10))
    seen = []
    for source in train, test:
        for image, label in zip(source.image[..., 0], source.labels):
            at = [i for i in range(60) if (DIGITS[i] == image).all() and i not in seen]
            assert CLASSES[at[0]] == label
            seen.append(at[0])
    assert sorted(seen) == list(range(60))
    np.testing.assert_array_equal(images(str(tmp_path), "train").image, train.image)


def test_folder_classes_have_the_same_numbers_in_both_splits(tmp_path):
    for path in "train/cat", "train/dog", "train/eel", "test/dog", "test/fox":
        save(tmp_path / path / "1.png", DIGITS[0])
    train, test = images(str(tmp_path), "train"), images(str(tmp_path), "test")
    assert train.class_names == test.class_names == ["cat", "dog", "eel", "fox"]
    assert train.labels.tolist() == [0, 1, 2] and test.labels.tolist() == [1, 3]


def test_folder_without_classes(tmp_path, capsys):
    for i in range(30):
        save(tmp_path / "some" / f"{i % 3}" / "deep" / f"{i}.png", DIGITS[i])
        save(tmp_path / f"{i}.png", DIGITS[i])
    (tmp_path / "a.md").touch()
    train, test = images(str(tmp_path), "train"), images(str(tmp_path), "test")
    assert train.labels is None and test.labels is None and train.class_names == []
    assert len(train) + len(test) == 60 and set(train.read(np.arange(3))) == {"image"}
    assert capsys.readouterr().out.count(f"{tmp_path}: 60 images without classes") == 1
    on = [x.tobytes() for source in (train, test) for x in source.image[..., 0]]
    assert sorted(on) == sorted(x.tobytes() for x in [*DIGITS[:30], *DIGITS[:30]])


def test_labels_are_needed_in_both_splits_where_they_are_learned_from(tmp_path):
    digit_folder(tmp_path / "train", range(30))
    for i in range(5):
        save(tmp_path / "test" / f"{i}.png", DIGITS[i])
    sets = Images(str(tmp_path)).read()
    assert sets.train.labels is not None and sets.test.labels is None and not sets.labelled
    with pytest.raises(InputError, match="test images of .* have none: give .*:validation, which"):
        Images(str(tmp_path)).read(labels=True)
    assert Images(f"{tmp_path}:validation").read(labels=True).labelled


def test_both_splits_have_the_same_channels_and_size(tmp_path):
    for i in range(5):
        save(tmp_path / "train" / f"{i}.png", DIGITS[i])
        save(tmp_path / "test" / f"{i}.png", PHOTO[:8, 8 * i : 8 * i + 8])
    assert images(str(tmp_path), "train").shape == images(str(tmp_path), "test").shape == (8, 8, 3)
    save(tmp_path / "test" / "6.png", PHOTO[:40, :40])
    with pytest.raises(InputError, match="not all square and of one size .*give --image-size 8"):
        images(str(tmp_path), "train")


def test_what_is_no_folder_of_images(tmp_path):
    for name, message in (
        ("x.txt", "x.txt is a text, and this experiment is on images: train one on text"),
        ("x.png", "x.png is one file: give the folder that the images are in, or an .npz"),
        ("texts/x.txt", "texts holds no images .* but 1 text: train an experiment on text"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        folder = "texts" if "/" in name else name
        with pytest.raises(InputError, match=message):
            images(str(tmp_path / folder), "train")


def test_no_such_folder(tmp_path):
    with pytest.raises(InputError, match="There is no folder or .npz file .*nowhere: check"):
        images(str(tmp_path / "nowhere"), "train")


def test_a_tfds_name_may_have_a_configuration():
    with pytest.raises(
        InputError,
        match="cifar10_corrupted/fog_1 is not prepared in .*fog_1.*ssljax.data.prepare cifar",
    ):
        images("cifar10_corrupted/fog_1", "test")
    with pytest.raises(InputError, match="There is no data set cifar10_corrupted/mist"):
        images("cifar10_corrupted/mist", "test")


def test_hidden_and_other_files_are_left_out(tmp_path):
    top = tmp_path / "train" / "cat"
    save(top / "1.png", DIGITS[1])
    save(top / "inner" / "2.PNG", DIGITS[2])
    save(top / ".ipynb_checkpoints" / "1-checkpoint.png", DIGITS[3])
    (top / "._1.png").write_bytes(b"a resource fork of macOS")
    for name in ".DS_Store", "notes.txt", "Thumbs.db", "png":
        (top / name).write_text("text")
    (tmp_path / "train" / ".git").mkdir()
    (tmp_path / "train" / "README.md").write_text("text")
    for name in "cat", "dog":
        save(tmp_path / "test" / name / "1.png", DIGITS[4])
    source = images(str(tmp_path), "train")
    np.testing.assert_array_equal(source.image[..., 0], DIGITS[1:3])
    assert source.class_names == ["cat", "dog"]


def test_a_hidden_folder_on_the_way_to_the_set_does_not_hide_it(tmp_path):
    save(tmp_path / ".cache" / "set" / "train" / "cat" / "1.png", DIGITS[1])
    assert len(images(str(tmp_path / ".cache" / "set"), "train")) == 1


def test_jpeg_colour_and_upper_case_suffixes(tmp_path):
    want = [
        save(tmp_path / "train" / "a" / name, PHOTO[:48, i : i + 48])
        for i, name in enumerate(["1.jpg", "2.JPEG"])
    ]
    want += [save(tmp_path / "train" / "b" / "3.WebP", PHOTO[:48, 5:53], lossless=True)]
    save(tmp_path / "test" / "b" / "1.png", PHOTO[:48, :48])
    source = images(str(tmp_path), "train")
    assert source.shape == (48, 48, 3)
    np.testing.assert_array_equal(source.image, want)
    assert source.labels.tolist() == [0, 0, 1]


def test_images_of_different_sizes(tmp_path):
    small = save(tmp_path / "train" / "a" / "1.png", PHOTO[:30, :40])
    large = save(tmp_path / "train" / "b" / "2.png", PHOTO[:64, :50])
    with pytest.raises(
        InputError, match=r"not all square and of one size \(40x30, 50x64, ...\): give --image-size"
    ):
        images(str(tmp_path), "train")
    source = images(str(tmp_path), "train", 16)
    assert source.shape == (16, 16, 3)
    np.testing.assert_array_equal(source.image, [fit(small, 16), fit(large, 16)])


def test_one_size_that_is_not_square(tmp_path):
    save(tmp_path / "train" / "a" / "1.png", PHOTO[:30, :40])
    with pytest.raises(InputError, match="not all square .*40x30.*give --image-size"):
        images(str(tmp_path), "train")


def test_one_odd_size_among_many_is_found_too(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MOST_HEADERS", 10)
    monkeypatch.setattr(decode, "SOME_HEADERS", 10)  # Those of 0, 5, 10 and so on.
    for i in range(46):
        save(tmp_path / "train" / f"{i:03}.png", DIGITS[i] if i != 33 else DIGITS[i][:6])
    save(tmp_path / "test" / "1.png", DIGITS[1])
    with pytest.raises(InputError, match="033.png is 8x6, others are 8x8: give --image-size"):
        images(str(tmp_path), "train")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("which", [0, 2])
def test_a_truncated_image_is_named(tmp_path, suffix, which):
    for i in range(4):
        save(tmp_path / "train" / "a" / f"{i}.{suffix}", PHOTO[:64, :64])
    broken = tmp_path / "train" / "a" / f"{which}.{suffix}"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size * 2 // 3])
    with pytest.raises(
        InputError, match=f"{which}.{suffix} can't be read as an image .*: repair or remove it"
    ):
        [images(str(tmp_path), split) for split in ("train", "test")]


def test_text_called_png_is_named(tmp_path):
    save(tmp_path / "train" / "a" / "1.png", DIGITS[0])
    (tmp_path / "train" / "a" / "2.png").write_text("<html>404</html>")
    with pytest.raises(InputError, match="2.png can't be read as an image"):
        images(str(tmp_path), "train")


@pytest.mark.parametrize("first", ["gray", "colour"])
def test_gray_and_colour_mixed_are_colour(tmp_path, first):
    gray = save(tmp_path / "train" / "a" / ("1.png" if first == "gray" else "3.png"), DIGITS[0])
    colour = save(tmp_path / "train" / "a" / "2.png", PHOTO[:8, :8])
    save(tmp_path / "test" / "1.png", DIGITS[1])
    source = images(str(tmp_path), "train")
    assert source.shape == (8, 8, 3)
    want = [np.repeat(gray[..., None], 3, -1), colour]
    np.testing.assert_array_equal(source.image, want if first == "gray" else want[::-1])


@pytest.mark.parametrize("mode, channels", [("L", 1), ("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3)])
def test_pixels_of_other_kinds(tmp_path, mode, channels):
    path = tmp_path / "train" / "a" / "1.png"
    save(path, PHOTO[:32, :32], mode)
    source = images(str(tmp_path), "train")
    assert source.shape == (32, 32, channels) and source.image.dtype == np.uint8
    with Image.open(path) as picture:
        want = np.asarray(picture.convert("L" if channels == 1 else "RGB")).reshape(
            32, 32, channels
        )
    np.testing.assert_array_equal(source.image[0], want)


def test_sixteen_bits_keep_their_range(tmp_path):
    save(tmp_path / "train" / "a" / "1.png", DIGITS[0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(images(str(tmp_path), "train").image[0, ..., 0], DIGITS[0])


def test_large_folders_are_read_from_disk_as_they_are_in_memory(tmp_path, monkeypatch):
    digit_folder(tmp_path, range(40))
    resident = images(str(tmp_path), "train", 6)
    monkeypatch.setattr(sources, "RESIDENT_BYTES", 0)
    on_disk = images(str(tmp_path), "train", 6)
    assert isinstance(resident, Arrays) and isinstance(on_disk, OnDisk)
    assert len(on_disk) == len(resident) and on_disk.shape == resident.shape == (6, 6, 1)
    assert on_disk.class_names == resident.class_names
    at = np.arange(len(resident))
    assert_same(on_disk.read(at), resident.read(at))
    for a, b in zip(*(batches(feed(s, 16), 0, 0, 5, mesh_of(2)) for s in (on_disk, resident))):
        assert_same(a, b)


# TensorFlow Datasets.


@pytest.mark.parametrize(
    "name, near",
    [
        ("cifar1", "cifar10"),
        ("CIFAR10", "cifar10"),
        ("mnits", "mnist"),
        ("fashion-mnist", "fashion_mnist"),
        ("mnist:9.9.9", "mnist"),
        ("digit", "digits"),
    ],
)
def test_an_unknown_name_gets_a_suggestion(name, near):
    with pytest.raises(
        InputError, match=rf"There is no data set {name}: did you mean .*\b{near}\b"
    ) as e:
        images(name, "train")
    assert "doodles, which is embedded" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["qqqqqqqq", "my data!", "set.tar"])
def test_a_name_without_a_suggestion(name):
    with pytest.raises(
        InputError, match=f"There is no data set {name}: give a TFDS name, a folder"
    ):
        images(name, "train")


def test_a_set_that_is_not_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    with pytest.raises(InputError, match="cifar10 is not prepared in") as e:
        images("cifar10", "train")
    message = str(e.value)
    assert str(tmp_path) in message and "python -m ssljax.data.prepare cifar10`" in message
    assert "--data doodles" in message and "\n" not in message


@pytest.mark.parametrize(
    "name, message",
    [
        ("imdb_reviews", "imdb_reviews holds text, label, and no image: it is no image set"),
        ("div2k", "div2k has several images, lr and hr, and none is called image: give"),
    ],
)
def test_a_set_without_an_image_is_refused_before_its_download(
    tmp_path, monkeypatch, name, message
):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    with pytest.raises(InputError, match=message):
        images(name, "train")


def prepared(name: str) -> str:
    import tensorflow_datasets as tfds

    if not tfds.builder(name).is_prepared():
        pytest.skip(f"{name} is not prepared: .venv/bin/python -m ssljax.data.prepare {name}")
    return name


@pytest.mark.parametrize(
    "name, shape",
    [("mnist", (28, 28, 1)), ("fashion_mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))],
)
def test_prepared_sets(name, shape, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    prepared(name)
    monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path))
    test = images(name, "test")
    rows = tfds.data_source(name, split="test")
    assert isinstance(test, Arrays) and len(test) == len(rows) == 10000 and test.shape == shape
    assert test.image.dtype == np.uint8 and test.labels.dtype == np.int32 and test.num_classes == 10
    assert np.bincount(test.labels).min() > 800
    for i in (0, 1, 999, 1000, 4321, 9999):
        np.testing.assert_array_equal(test.image[i], rows[i]["image"])
        assert test.labels[i] == rows[i]["label"]

    if name == "fashion_mnist":  # Enough to have read the training labels of two.
        return
    monkeypatch.setattr(
        sources, "RESIDENT_BYTES", 0
    )  # The training split, read as a set that does not fit.
    train = images(name, "train")
    rows = tfds.data_source(name, split="train")
    assert isinstance(train, OnDisk) and len(train) == len(rows) == {"cifar10": 50000}.get(
        name, 60000
    )
    at = np.array([0, 7, len(rows) - 1])
    assert_same(
        train.read(at),
        {
            "image": np.stack([rows[int(i)]["image"] for i in at]),
            "label": np.array([rows[int(i)]["label"] for i in at], np.int32),
        },
    )


def test_decoded_cache_returns_the_same_images(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    name = prepared("fashion_mnist")
    monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path))
    first, small = images(name, "test"), images(name, "test", 10)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "RESIDENT_BYTES", 0)
        patch.setenv("SSLJAX_CACHE", str(tmp_path / "other"))
        on_disk, small_on_disk = images(name, "test"), images(name, "test", 10)
    assert isinstance(on_disk, OnDisk) and isinstance(small_on_disk, OnDisk)
    at = np.array([5, 9999, 0, 77, 123, 1234, 8, 9, 10])
    assert_same(on_disk.read(at), first.read(at))
    assert_same(small_on_disk.read(at), small.read(at))
    np.testing.assert_array_equal(on_disk.labels, first.labels)
    np.testing.assert_array_equal(small.image[3], fit(first.image[3], 10))

    def no_reading(*args, **kwargs):
        raise AssertionError("The set is decoded again.")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "as_data_source", no_reading)
    for again, before in (images(name, "test"), first), (images(name, "test", 10), small):
        np.testing.assert_array_equal(again.image, before.image)
        np.testing.assert_array_equal(again.labels, before.labels)
        assert (
            again.class_names
            == before.class_names
            == tfds.builder(name).info.features["label"].names
        )
    with pytest.raises(
        AssertionError, match="decoded again"
    ):  # Another size or split has a file of its own.
        images(name, "test", 11)
    assert not list(tmp_path.rglob("*.part*"))


def test_unwritable_cache_does_not_stop_reading(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path / "file"))
    path = cache.cache_file("key")
    assert path.is_relative_to(tmp_path / "file")
    cache.store(path, image=IMAGE)
    assert not path.exists()


def test_a_split_that_a_set_does_not_have():
    with pytest.raises(InputError, match="mnist has no validation split; it has .*test"):
        images(prepared("mnist"), "validation")


def test_reading_needs_no_tensorflow(tmp_path):
    name = prepared("mnist")
    (
        tmp_path / "tensorflow"
    ).mkdir()  # Stands for an installed TensorFlow, and shows when it is imported.
    (tmp_path / "tensorflow" / "__init__.py").write_text("import os; os._exit(3)")
    code = f"""if True:
        import sys
        from ssljax.data import images
        from ssljax.errors import InputError
        assert len(images("{name}", "test")) == 10000
        try:
            images("cifar1", "test")
        except InputError:
            assert "tensorflow" not in sys.modules
            print("done")
    """
    done = run_python(code, PYTHONPATH=f"{tmp_path}:{ROOT}", SSLJAX_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0 and done.stdout.endswith("done\n"), (
        done.returncode,
        done.stderr[-2000:],
    )
