"""Files of texts: parts, formats, encodings, and where what is wrong is found."""

import gzip
import json
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from ssljax.data import text_files
from ssljax.data.documents import Documents, documents
from ssljax.data.text_files import compose, read_documents, text_parts
from ssljax.data.tokenizers import bpe, characters, encode, masked_bpe, wordpiece, words
from ssljax.errors import InputError

LEARNED_ON = Documents([text[:9000] for text in documents("python", "test").text])
TOKENIZERS = {
    "characters": characters(LEARNED_ON),
    "words": words(LEARNED_ON),
    "bpe": bpe(LEARNED_ON, 500),
    "masked_bpe": masked_bpe(LEARNED_ON, 800),
    "wordpiece": wordpiece(LEARNED_ON, 800),
}
ANY = st.characters(exclude_categories=["Cs"])
# Letters, marks, joiners, contractions and all kinds of white space, of which some are white to
# Python alone (\x1c), and line ends of Windows.
PIECES = st.sampled_from(
    [
        *"ab's. \n\t\r~é學।",
        "e\u0301",
        "\u0301",
        " don't",
        "\r\n",
        "\x1c",
        "\x85",
        "\u3000",
        "\u200d",
    ]
)
TEXTS = st.lists(PIECES | ANY, max_size=40).map("".join)


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted(min(p, len(text)) for p in places)
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)])]


@given(TEXTS, st.lists(st.integers(0, 60), max_size=5), st.integers(1, 12))
@settings(max_examples=300, deadline=None)
def test_parts_have_the_tokens_and_the_composed_form_of_the_whole(text, places, size):
    parts = list(text_parts(cut(text, places), size))
    assert "".join(parts) == text
    assert "".join(map(compose, parts)) == unicodedata.normalize("NFC", text)
    for name, tokenizer in TOKENIZERS.items():
        whole = tokenizer.encode(compose(text), add_special_tokens=False).ids
        found = [
            i for p in parts for i in tokenizer.encode(compose(p), add_special_tokens=False).ids
        ]
        assert found == whole, name
        if name == "characters":
            assert encode(tokenizer, Documents([compose(text)]))[0].tolist() == whole


def test_parts_are_as_small_as_the_text_allows():
    text = "word another\nthird " * 1000
    sizes = [len(part) for part in text_parts([text], 100)]
    assert max(sizes) <= 108 and len(sizes) > 150
    assert list(text_parts(["x" * 50, "y" * 50], 10)) == ["x" * 50 + "y" * 50]
    assert list(text_parts([])) == []


MANUAL = documents("python", "test").text[0][:3000] + " naïve 學習 e\u0301\n"


def write_all(folder, text: str) -> list:
    """The text in each format and encoding that is read."""
    rows = "".join(json.dumps({"id": i, "text": text}) + "\n" for i in range(1))
    windows = text.replace("\n", "\r\n")
    plain = {
        "a.txt": text.encode(),
        "bom.txt": text.encode("utf-8-sig"),
        "crlf.txt": windows.encode(),
        "crlf16.txt": windows.encode("utf-16"),
        "le.txt": b"\xff\xfe" + text.encode("utf-16-le"),
        "be.txt": b"\xfe\xff" + text.encode("utf-16-be"),
        "utf32.txt": text.encode("utf-32"),
        "a.jsonl": rows.encode(),
        "b.jsonl": ("\n" + json.dumps({"text": windows}, ensure_ascii=False)).encode("utf-16"),
    }
    plain |= {f"{k}.gz": gzip.compress(v[:99]) + gzip.compress(v[99:]) for k, v in plain.items()}
    for name, content in plain.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in plain]


@pytest.mark.parametrize("chunk", [3, 2**20])
def test_formats_give_the_same_text(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(text_files, "CHUNK", chunk)
    for path in write_all(tmp_path, MANUAL):
        found = ["".join(parts) for parts in read_documents(path)]
        assert found == [unicodedata.normalize("NFC", MANUAL)], path.name


def test_zstd(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(InputError, match=r"a.jsonl.zst needs the package zstandard .*unzstd"):
        list(read_documents(path))
    monkeypatch.undo()
    zstandard = pytest.importorskip("zstandard")
    pack = zstandard.ZstdCompressor().compress
    data = (json.dumps({"text": MANUAL}) + "\n").encode()
    path.write_bytes(pack(data[:500]) + pack(data[500:]))
    assert ["".join(x) for x in read_documents(path)] == [compose(MANUAL)]
    path.write_bytes(pack(data)[:-9])
    with pytest.raises(InputError, match="a.jsonl.zst can't be decompressed .*cut short"):
        list(map("".join, read_documents(path)))


def test_parquet(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    texts = [f"{i} naïve e\u0301\r\n" for i in range(2500)]
    parquet.write_table(pa.table({"id": range(2500), "text": texts}), path, row_group_size=700)
    found = ["".join(parts) for parts in read_documents(path)]
    assert found == [compose(t).replace("\r\n", "\n") for t in texts]
    assert len(documents(str(path), "test")) == 250
    for columns, message in (
        ({"content": ["a"]}, r"no column of texts named text \(it has content: string\)"),
        ({"text": [1, 2]}, r"no column of texts named text \(it has text: int64\)"),
        ({"text": ["a", None]}, "a.parquet, row 2, has no text"),
    ):
        parquet.write_table(pa.table(columns), path)
        with pytest.raises(InputError, match=message):
            list(map("".join, read_documents(path)))
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="a.parquet can't be read as Parquet"):
        list(read_documents(path))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match="a.parquet needs the package pyarrow"):
        list(read_documents(path))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", b"x" * 50 + b"caf\xe9 ", r"is not UTF-8 \(byte 53 is 0xe9\): convert"),
        ("a.txt", b"\xef\xbb\xbf" + b"x" * 50 + b"caf\xe9 ", r"\(byte 56 is 0xe9\)"),
        ("a.txt", "\u00e9".encode()[:1], r"\(byte 0 is 0xc3\)"),
        ("a.txt", b"\xff\xfea\x00\x00\xdcb\x00", r"is not UTF-16 \(byte 4 is 0x00\)"),
        ("a.jsonl", b'{"text": "caf\xe9"}', r"is not UTF-8 \(byte 13 is 0xe9\)"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "b}\n', r"a.jsonl, line 3, is not JSON \(Unterm"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "a.jsonl, line 2, has no text: each line must"),
        ("a.jsonl", b'{"content": "a"}', "a.jsonl, line 1, has no text"),
        ("a.jsonl", b'{"text": null}', "a.jsonl, line 1, has no text"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}', "line 2, has half of a surrogate pair"),
        ("a.jsonl", b"[" * 200_000, "a.jsonl, line 1, is not JSON"),
        ("a.jsonl", b"\n \n", "a.jsonl is empty: there is nothing to learn"),
        ("a.txt.gz", gzip.compress(b"text " * 99, mtime=0)[:-9], "a.txt.gz can't be decompressed"),
        ("a.txt.gz", b"text", "a.txt.gz can't be decompressed .*damaged or cut short"),
        ("a.txt.gz", gzip.compress(b" \n", mtime=0), "a.txt.gz is empty"),
    ],
)
def test_errors_say_where(tmp_path, monkeypatch, name, content, message):
    monkeypatch.setattr(text_files, "CHUNK", 7)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as e:
        list(map("".join, read_documents(tmp_path / name)))
    assert "\n" not in str(e.value)


def test_every_tenth_line_is_held_out(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": f"text {i}", "n": i}) + "\n" for i in range(25)))
    assert documents(str(file), "test").text == ["text 0", "text 10", "text 20"]
    assert documents(str(file), "train").text == [f"text {i}" for i in range(25) if i % 10]
    file.write_text('{"text": "one"}')
    with pytest.raises(InputError, match="holds one document, which makes no two splits"):
        documents(str(file), "train")
