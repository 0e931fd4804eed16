"""Large texts: on the disk as in memory, to the bit; token files; indices beyond 2^31."""

import errno
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ssljax.data import documents as documents_module
from ssljax.data import order as order_module
from ssljax.data import token_feeds, token_files
from ssljax.data.documents import Documents, documents, DocumentsOnDisk, evaluated, sample
from ssljax.data.order import indices, permuted
from ssljax.data.token_feeds import Packed, PackedRows, Streams, tokenized, Windows
from ssljax.data.token_files import token_file
from ssljax.data.token_rows import token_rows, word_starts
from ssljax.data.tokenizers import bpe, encode
from ssljax.data.words import vocabulary, WordBlocks
from ssljax.errors import InputError
from tests.conftest import ROOT
from tests.test_data import batches, mesh_of

MANUAL = documents("python", "test").text


@pytest.fixture
def one_file(tmp_path):
    (tmp_path / "x.txt").write_text("\n".join(MANUAL)[:20_000] + " naïve e\u0301\n" * 20)
    return str(tmp_path / "x.txt")


@pytest.fixture
def lines(tmp_path):
    rows = [text[i : i + 700] for text in MANUAL for i in range(0, 7000, 700)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in rows))
    return str(tmp_path / "x.jsonl")


@pytest.fixture
def large(monkeypatch, tmp_path):
    """Makes every set a large one, in a cache of its own, encoded in small batches."""

    def make(**changes):
        monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("ssljax.data.tokenizers.BATCH", 3000)
        monkeypatch.setattr(documents_module, "IN_MEMORY", 0)
        for name, value in changes.items():
            monkeypatch.setattr(documents_module, name, value)

    return make


@pytest.mark.parametrize("data", ["one_file", "lines"])
@pytest.mark.parametrize("part", ["", ":validation"])
def test_documents_on_a_disk_equal_those_in_memory(request, large, data, part):
    data = request.getfixturevalue(data)
    before = [documents(f"{data}{part}", split) for split in ("train", "test")]
    large()
    after = [documents(f"{data}{part}", split) for split in ("train", "test")]
    for a, b in zip(before, after):
        assert isinstance(a, Documents) and isinstance(b, DocumentsOnDisk)
        assert a.text == ["".join(parts) for parts in b.parts()] == evaluated(b).text
        assert a.lengths.tolist() == b.lengths.tolist()
        ends = [["".join(parts) for parts in docs.ending("\n").parts()] for docs in (a, b)]
        assert ends[0] == ends[1] and all(text.endswith("\n") for text in ends[0])


@pytest.mark.parametrize("data", ["one_file", "lines"])
@pytest.mark.parametrize("kind, vocabulary", [("words", 300), ("characters", 0), ("bpe", 400)])
def test_tokens_and_batches_of_large_texts_equal_those_in_memory(
    request, large, monkeypatch, data, kind, vocabulary
):
    data = request.getfixturevalue(data)
    a = tokenized(data, kind, vocabulary)
    large()
    b = tokenized(data, kind, vocabulary)
    assert b.train.dtype == np.uint16 and isinstance(b.train, np.memmap)
    assert a.tokenizer.to_str() == b.tokenizer.to_str()
    np.testing.assert_array_equal(a.train, b.train)
    np.testing.assert_array_equal(a.test, b.test)
    assert (a.characters, a.unknown) == (b.characters, b.unknown)
    np.testing.assert_array_equal(a.counts, b.counts)
    feeds = (lambda x: Windows(x, 8, 16), lambda x: Streams(x, 4, 10))
    wanted = [batches(feed(a.train), 3, 5, 2, mesh_of(1)) for feed in feeds]
    for most in (2**31, 10):  # On the devices, or from the file.
        monkeypatch.setattr(token_feeds, "RESIDENT_BYTES", most)
        assert (len(Windows(b.train, 8, 16).resident()) > 0) == (most > 10)
        for feed, want in zip(feeds, wanted):
            equal(batches(feed(b.train), 3, 5, 2, mesh_of(4)), want)


def equal(a: list[dict], b: list[dict]) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for k in x:
            assert x[k].dtype == y[k].dtype
            np.testing.assert_array_equal(x[k], y[k])


class Split(list):
    """Rows of a TFDS split, with what the builder says of it."""

    __getitems__ = lambda self, at: [self[i] for i in at]
    num_bytes = 10**6
    num_examples = property(len)


@pytest.mark.parametrize("on_disk", [False, True])
def test_splits_of_tfds_by_name(large, monkeypatch, tmp_path, on_disk):
    texts = lambda split, n, labels: Split(
        {"text": f"{split} {i} e\u0301".encode(), "label": label}
        for i, label in zip(range(n), labels)
    )
    splits = {
        "train": texts("train", 20, [0, 1] * 10),
        "test": texts("test", 8, [1, 0] * 4),
        "unsupervised": texts("unsupervised", 40, [-1] * 40),
    }
    (tmp_path / "dataset_info.json").touch()
    label = SimpleNamespace(names=["neg", "pos"])
    info = SimpleNamespace(features={"text": None, "label": label}, splits=splits)
    builder = SimpleNamespace(info=info, data_path=tmp_path)
    monkeypatch.setattr("ssljax.data.tfds.builder_of", lambda name, *_: builder)
    monkeypatch.setattr("ssljax.data.tfds.check_prepared", lambda *_: None)
    monkeypatch.setattr("ssljax.data.tfds.data_source", lambda n, b, split, _: splits[split])
    if on_disk:
        large()

    def read(name, split):
        docs = documents(name, split)
        assert isinstance(docs, DocumentsOnDisk) == on_disk
        return ["".join(parts) for parts in docs.parts()], docs.labels

    wanted = lambda split: [f"{split} {i} é" for i in range(len(splits[split]))]
    text, labels = read("reviews", "train")
    assert text == wanted("train") and labels.tolist() == [0, 1] * 10
    assert read("reviews:unsupervised", "train") == (wanted("unsupervised"), None)
    assert read("reviews:unsupervised", "test") == (wanted("test"), None)
    halves = [read("reviews:test", split)[0] for split in ("train", "test")]
    assert sorted(halves[0] + halves[1]) == wanted("test") and 0 < len(halves[1]) < 3
    halves = [read("reviews:unsupervised:validation", split)[0] for split in ("train", "test")]
    assert sorted(halves[0] + halves[1]) == sorted(wanted("unsupervised"))
    assert len(halves[1]) == 4
    with pytest.raises(InputError, match="has no extra split; it has train, test, unsupervised"):
        documents("reviews:extra", "train")


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_rows_of_large_texts_equal_those_in_memory(lines, large, monkeypatch, kind):
    a = token_rows(lines, kind, 700, 16)
    large()
    b = token_rows(lines, kind, 700, 16)
    assert isinstance(b.train, PackedRows) and len(a.train) == len(b.train)
    np.testing.assert_array_equal(a.train, b.train[:])
    np.testing.assert_array_equal(a.train[[5, 0, 5]], b.train[np.array([5, 0, 5])])
    np.testing.assert_array_equal(a.test, b.test)
    starts = [word_starts(x.tokenizer, x.train, 0.5) for x in (a, b)]
    np.testing.assert_array_equal(*starts)
    want = batches(a.feed(8), 3, 5, 3, mesh_of(1))
    for most in (2**31, 10):
        monkeypatch.setattr(token_feeds, "RESIDENT_BYTES", most)
        equal(batches(b.feed(8), 3, 5, 3, mesh_of(4)), want)
    with pytest.raises(InputError, match="A batch of 999999 can't be drawn"):
        b.feed(999_999)


def test_words_of_large_texts_equal_those_in_memory(lines, large):
    a = vocabulary(lines, 2)
    large()
    b = vocabulary(lines, 2)
    assert a[0].to_str() == b[0].to_str() and a[3] == b[3]
    np.testing.assert_array_equal(a[1], b[1])
    np.testing.assert_array_equal(a[2], b[2])
    x, y = (next(WordBlocks(*v[1:3], 4, 8, 2, 1e-2).feed(3, 40, None)) for v in (a, b))
    np.testing.assert_array_equal(x, y)


def test_segments_of_words_are_each_read_once_in_an_epoch(monkeypatch):
    monkeypatch.setattr("ssljax.data.words.SEGMENT", 300)
    n = 1000
    data = WordBlocks(np.arange(n), np.ones(n, int), 4, 5, 2, 0)
    assert data.segments == 4 and data.steps == 4 * (250 // 20)
    got = np.stack(list(itertools.islice(data.feed(1, 0, None), 2 * data.steps)))[:, :, 2:-2]
    for epoch in np.split(got, 2):
        which = [np.unique(part // 250).tolist() for part in np.split(epoch, 4)]
        assert sorted(which) == [[0], [1], [2], [3]]
        assert len(set(epoch.ravel())) == data.steps * 20, "No word twice."
    assert (got[: data.steps] != got[data.steps :]).any()
    later = next(data.feed(1, data.steps + 17, None))[:, 2:-2]
    np.testing.assert_array_equal(later, got[data.steps + 17])


def test_tokenizers_are_learned_on_an_even_sample(lines, large, capsys):
    large(SAMPLE=9000)
    train = documents(lines, "train")
    part = sample(train)
    texts = ["".join(parts) for parts in part.parts()]
    total = int(train.lengths.sum())
    assert f"learned on {part.lengths.sum():,} of {total:,} characters" in capsys.readouterr().out
    assert 7500 < sum(map(len, texts)) <= 9000
    taken, before = np.cumsum([len(text) for text in texts]), np.cumsum(train.lengths)
    assert np.abs(taken - 9000 / total * before).max() <= 700  # The longest part.
    learned = bpe(Documents(texts), 400)
    assert tokenized(lines, "bpe", 400).tokenizer.to_str() == learned.to_str()


def test_some_of_a_large_held_out_text_is_evaluated(lines, one_file, large, capsys):
    large(EVALUATED=1000)
    text = "".join(next(documents(one_file, "test").parts()))
    assert evaluated(documents(one_file, "test")).text == [text[:1000]]
    read = tokenized(one_file, "bpe", 400)
    assert read.characters == 1000
    assert read.tokenizer.decode(read.test.tolist()) == text[:1000]
    assert "of which 1,000 characters are evaluated" in capsys.readouterr().out
    held_out = documents(lines, "test")
    found = evaluated(held_out).text
    every = int(held_out.lengths.sum()) // 1000
    whole = ["".join(parts) for parts in held_out.parts()]
    assert every > 1 and sum(map(len, found)) == 1000
    assert all(whole[i * every].startswith(text) for i, text in enumerate(found))


def test_token_files_are_made_once_and_anew_for_another_text(one_file, large, monkeypatch):
    large()
    docs = documents(one_file, "train")
    tokenizer = bpe(docs, 400)
    first = jax.tree.map(np.array, token_file(tokenizer, docs, end=0))
    assert first.tokens[-1] == 0 and first.offsets.tolist() == [0, len(first.tokens)]
    with monkeypatch.context() as m:
        m.setattr(token_files, "encoded", None)
        np.testing.assert_array_equal(token_file(tokenizer, docs, end=0).tokens, first.tokens)
        with pytest.raises(TypeError):
            token_file(tokenizer, docs)
    folder = next((documents_module.cache.cache_dir() / "tokens").iterdir())
    os.truncate(folder / "tokens", 10)  # A damaged one is made again.
    np.testing.assert_array_equal(token_file(tokenizer, docs, end=0).tokens, first.tokens)
    with open(one_file, "a") as file:
        file.write("more of it\n" * 99)
    other = token_file(tokenizer, documents(one_file, "train"), end=0)
    assert len(other.tokens) > len(first.tokens)


def test_a_kill_leaves_no_half_token_file(lines, large, monkeypatch, tmp_path):
    large()
    code = (
        "import os, sys; from ssljax.data import documents, token_files, tokenizers as t\n"
        "documents.IN_MEMORY, t.BATCH = 0, 3000\n"
        "docs = documents.documents(sys.argv[1], 'train'); whole = token_files.encoded\n"
        "def some(*args):\n"
        "    for i, x in enumerate(whole(*args)):\n"
        "        if i == 3: os._exit(9)\n"
        "        yield x\n"
        "token_files.encoded = some; token_files.token_file(t.bpe(docs, 400), docs)"
    )
    done = subprocess.run([sys.executable, "-c", code, lines], cwd=ROOT, capture_output=True)
    assert done.returncode == 9, done.stderr
    tokens = tmp_path / "cache" / "tokens"
    assert [p.suffix for p in tokens.iterdir()] == [".part"]
    docs = documents(lines, "train")
    tokenizer = bpe(docs, 400)
    monkeypatch.setattr(token_files, "ABANDONED", time.time())
    token_file(tokenizer, docs)
    assert len(list(tokens.iterdir())) == 2  # It may be another process's that still writes.
    monkeypatch.setattr(token_files, "ABANDONED", -1)
    (whole,) = (p for p in tokens.iterdir() if p.suffix != ".part")
    os.truncate(whole / "tokens", 10)
    found = token_file(tokenizer, docs)
    assert [p.suffix for p in tokens.iterdir()] == [""]
    whole = Documents(["".join(parts) for parts in docs.parts()])
    for a, b in zip(found, encode(tokenizer, whole)):
        np.testing.assert_array_equal(a, b)


def test_another_process_may_be_faster(one_file, large, monkeypatch):
    large()
    docs = documents(one_file, "train")
    tokenizer, whole = bpe(docs, 400), token_files._write_into

    def slow(part, *args):
        monkeypatch.setattr(token_files, "_write_into", whole)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        token_file(tokenizer, docs)
        whole(part, *args)

    monkeypatch.setattr(token_files, "_write_into", slow)
    found = token_file(tokenizer, docs)
    assert found.offsets[-1] == len(found.tokens) > 0
    assert len(list((documents_module.cache.cache_dir() / "tokens").iterdir())) == 1


def test_a_full_disk_names_the_cache(one_file, large, monkeypatch, tmp_path):
    large()
    docs = documents(one_file, "train")
    tokenizer = bpe(docs, 400)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match=r"cache \(No space left on device\): set \$SSLJAX_CACHE"):
        token_file(tokenizer, docs)
    assert not list((tmp_path / "cache" / "tokens").iterdir())


BIG = 3_000_000_000


@pytest.fixture
def huge(tmp_path):
    """3e9 tokens that take no disk but where some stand: token i is i % 60,000."""
    path = tmp_path / "tokens"
    with open(path, "wb") as file:
        file.truncate(2 * BIG)
    tokens = np.memmap(path, np.uint16, "r+")

    def fill(begin: int, n: int) -> None:
        tokens[begin : begin + n] = np.arange(begin, begin + n) % 60_000

    return tokens, fill


def test_windows_beyond_2_to_the_31(huge):
    tokens, fill = huge
    data = Windows(tokens, 8, 16)
    at = np.random.default_rng((3, 7)).integers(BIG - 16, size=8)
    assert at.max() > 2**31 and data.resident() == ()
    for i in at.tolist():
        fill(i, 17)
    found = batches(data, 3, 7, 1, mesh_of(4))[0]["tokens"]
    np.testing.assert_array_equal(found, (at[:, None] + np.arange(17)) % 60_000)


def test_streams_beyond_2_to_the_31(huge):
    tokens, fill = huge
    data = Streams(tokens, 4, 16)
    assert data.steps == (BIG - 1) // 4 // 16
    begins = [(BIG - 1) // 4 * i + (data.steps - 1) * 16 for i in range(4)]
    for i in begins:
        fill(i, 17)
    last, first = batches(data, 0, data.steps - 1, 2, mesh_of(1))
    wanted = (np.array(begins)[:, None] + np.arange(17)) % 60_000
    np.testing.assert_array_equal(last["tokens"], wanted)
    assert first["first"].all() and not last["first"].any()


def test_rows_beyond_2_to_the_31(huge):
    tokens, fill = huge
    rows = PackedRows(tokens, 17, cls=2)
    n = BIG // 16
    assert len(rows) == n > order_module.LISTED
    at = indices(5, 11, n, 8)
    for i in at.tolist():
        fill(16 * i, 16)
    found = np.asarray(batches(Packed(rows, 8), 5, 11, 1, mesh_of(4))[0]["tokens"])
    assert (found[:, 0] == 2).all() and at.max() * 16 > 2**31
    np.testing.assert_array_equal(found[:, 1:], (16 * at[:, None] + np.arange(16)) % 60_000)


@pytest.mark.parametrize("n", [1, 2, 3, 17, 64, 65, 1000, 4097])
def test_permuted_is_a_permutation(n):
    for epoch in range(3):
        assert sorted(permuted(7, epoch, n, np.arange(n)).tolist()) == list(range(n))
    if n > 60:
        assert (permuted(7, 0, n, np.arange(n)) != permuted(7, 1, n, np.arange(n))).mean() > 0.9
        assert (permuted(7, 0, n, np.arange(n)) != permuted(8, 0, n, np.arange(n))).mean() > 0.9


def test_permuted_is_spread_evenly_and_has_no_order():
    n, k = BIG, 100_000
    x = permuted(-1, 4, n, np.arange(k))
    assert len(np.unique(x)) == k and x.min() >= 0 and x.max() < n
    counts = np.bincount(x * 100 // n, minlength=100)
    assert ((counts - k / 100) ** 2 / (k / 100)).sum() < 160  # chi2 of 99 degrees; p = 1e-4.
    rank = x / n
    assert abs(np.corrcoef(rank[:-1], rank[1:])[0, 1]) < 5 / np.sqrt(k)
    assert abs(np.corrcoef(rank, np.arange(k))[0, 1]) < 5 / np.sqrt(k)


def test_indices_of_an_epoch_are_all_once_above_the_listed_size(monkeypatch):
    monkeypatch.setattr(order_module, "LISTED", 50)
    epoch = np.concatenate([indices(3, step, 103, 10) for step in range(10)])
    assert len(set(epoch.tolist())) == 100 and epoch.max() < 103
    assert indices(3, 10, 103, 10).tolist() != epoch[:10].tolist()
    monkeypatch.undo()
    np.testing.assert_array_equal(indices(3, 0, 50, 50), order_module.order(3, 0, 50))


def test_two_processes_read_the_rows_of_one(tmp_path):
    np.arange(5000, dtype=np.uint16).tofile(tmp_path / "tokens")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    code = (
        "import sys, jax, numpy as np; i = int(sys.argv[2])\n"
        f"jax.distributed.initialize('127.0.0.1:{port}', 2, i)\n"
        "from ssljax import sharding; from ssljax.data import token_feeds\n"
        "token_feeds.RESIDENT_BYTES = 0\n"
        "tokens = np.memmap(sys.argv[1] + '/tokens', np.uint16, 'r')\n"
        "read, own = token_feeds._rows, []\n"
        "token_feeds._rows = lambda x, at, n: own.append(len(at)) or read(x, at, n)\n"
        "fed = next(token_feeds.Windows(tokens, 8, 5).feed(3, 7, sharding.make_mesh()))\n"
        "assert sum(own) == 4, own\n"
        "rows = [(s.index[0].start or 0, np.asarray(s.data)) for s in fed.addressable_shards]\n"
        "rows = [x for _, x in sorted(rows, key=lambda row: row[0])]\n"
        "np.save(f'{sys.argv[1]}/{i}', np.concatenate(rows))"
    )
    env = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(i)], env=env, cwd=ROOT)
        for i in range(2)
    ]
    assert [w.wait(timeout=240) for w in workers] == [0, 0]
    found = np.concatenate([np.load(tmp_path / f"{i}.npy") for i in range(2)])
    data = Windows(np.arange(5000, dtype=np.uint16), 8, 5)
    np.testing.assert_array_equal(found, batches(data, 3, 7, 1, mesh_of(1))[0]["tokens"])
