"""Text: what documents() reads or refuses, tokenizers, rows of tokens, and their feeds."""

from dataclasses import replace
import os
import pathlib
import subprocess
import sys
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import numpy as np
import pytest
from tokenizers import normalizers

from ssljax.data import tokenizers as tokenizers_module
from ssljax.data.documents import Documents, documents
from ssljax.data.feed import Rows
from ssljax.data.order import indices
from ssljax.data.text_files import text_parts
from ssljax.data.token_feeds import document_rows, pack, Streams, tokenized, Windows
from ssljax.data.token_rows import masked_tokenizer, token_rows, word_starts
from ssljax.data.tokenizers import (
    bpe,
    characters,
    counts_of,
    encode,
    END,
    load_tokenizer,
    masked_bpe,
    SPECIAL_TOKENS,
    unknown_share,
    wordpiece,
    words,
)
from ssljax.errors import InputError
from tests.conftest import ROOT
from tests.test_data import batches, mesh_of, prepared

MADE = {
    "characters": lambda d: characters(d),
    "words": lambda d: words(d),
    "bpe": lambda d: bpe(d, 400),
    "wordpiece": lambda d: wordpiece(d, 500),
}


@pytest.fixture(scope="module")
def manual() -> Documents:
    return Documents(documents("python", "train").text[:8])


def write(folder: pathlib.Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return str(folder)


def test_manual_splits_share_no_paragraph():
    train, test = documents("python", "train"), documents("python", "test")
    assert (
        len(train) > 40 and len(test) > 4 and len(train) + len(test) <= 79 and train.labels is None
    )
    assert train.text == documents("python", "train").text
    long = lambda docs: {
        " ".join(p.split()) for text in docs.text for p in text.split("\n\n") if len(p) > 40
    }
    assert not long(train) & long(test)
    assert 250_000 < sum(map(len, train.text)) < 450_000
    with pytest.raises(InputError, match="python has no valid split; it has train, test"):
        documents("python", "valid")


def test_file_split_matches_nanogpt(tmp_path):
    file = tmp_path / "x.txt"
    file.write_bytes(
        "äb\r\ncdefghij".encode("utf-8-sig")
    )  # The mark of Windows' editors goes, and its line ends.
    assert documents(str(file), "train").text == ["äb\ncdefgh"] and documents(
        str(file), "test"
    ).text == ["ij"]
    with pytest.raises(InputError, match="has no valid split; it has train, test"):
        documents(str(file), "valid")
    other = tmp_path / "y.txt"
    other.write_text("0123456789")
    assert documents(f"{file}, {other}", "train").text == ["äb\ncdefgh", "012345678"]


def test_three_split_files(tmp_path):
    folder = write(
        tmp_path,
        {"ptb.train.txt": "a b", "ptb.valid.txt": "c", "ptb.test.txt": "d", "other.txt": "e"},
    )
    for data in (folder, os.path.join(folder, "ptb")):
        assert [documents(data, s).text for s in ("train", "valid", "test")] == [
            ["a b"],
            ["c"],
            ["d"],
        ]
        with pytest.raises(InputError, match="has no dev split; it has train, valid, test"):
            documents(data, "dev")
    (tmp_path / "ptb.valid.txt").unlink()
    with pytest.raises(InputError, match="has no valid split; it has train, test"):
        documents(folder, "valid")


def test_folders(tmp_path):
    plain = write(
        tmp_path / "plain",
        {f"{i:02}.txt": str(i) for i in range(12)} | {"a.md": "", ".hidden/x.txt": ""},
    )
    train, test = documents(plain, "train").text, documents(plain, "test").text
    assert sorted([*train, *test], key=int) == [str(i) for i in range(12)] and 1 <= len(test) <= 3
    own = write(
        tmp_path / "own", {"train/a.txt": "one", "train/b.txt": "two", "test/c.txt": "three"}
    )
    assert documents(own, "train").text == ["one", "two"] and documents(own, "test").labels is None
    classes = write(
        tmp_path / "classes",
        {"train/neg/1.txt": "bad", "train/pos/1.txt": "good", "test/pos/2.txt": "ok"},
    )
    train, test = documents(classes, "train"), documents(classes, "test")
    assert (
        train.labels.tolist() == [0, 1]
        and test.labels.tolist() == [1]
        and test.class_names == ["neg", "pos"]
    )
    plain = write(tmp_path / "parts", {f"{c}/{i}.txt": f"{c} {i}" for c in "ab" for i in range(10)})
    train, test = documents(plain, "train"), documents(plain, "test")
    assert set(test.labels) == {0, 1} and test.class_names == train.class_names == ["a", "b"]
    assert sorted([*train.text, *test.text]) == sorted(f"{c} {i}" for c in "ab" for i in range(10))
    for docs in train, test:
        assert [text[0] for text in docs.text] == ["ab"[c] for c in docs.labels]


def test_settings_depend_on_training_texts_alone(tmp_path):
    files = {
        f"{split}/{c}/{i}.txt": f"{split} {c} {i}"
        for split in ("train", "test")
        for c in "ab"
        for i in range(30)
    }
    data = write(tmp_path / "classes", files)
    (tmp_path / "classes" / "test").rename(tmp_path / "gone")  # Were it read, nothing could be.
    train, test = (documents(f"{data}:validation", split) for split in ("train", "test"))
    # Without a test split of its own, a tenth is held out for that too.
    of_test = documents(data, "test").text
    assert sorted(train.text + test.text + of_test) == sorted(
        v for v in files.values() if v.startswith("train")
    )
    assert set(test.labels) == {0, 1} and len(test) < 15 and train.class_names == ["a", "b"]
    for docs in (train, test):
        assert [text.split()[1] for text in docs.text] == [docs.class_names[c] for c in docs.labels]
    assert documents(f"{data}:validation", "test").text == test.text
    one = (
        write(tmp_path / "one", {"x.txt": "".join(chr(97 + i % 26) for i in range(1000))})
        + "/x.txt"
    )
    halves = [documents(f"{one}:validation", split).text[0] for split in ("train", "test")]
    assert "".join(halves) == documents(one, "train").text[0] and len(halves[1]) == 90
    three = write(
        tmp_path / "three", {"p.train.txt": "0123456789", "p.valid.txt": "v", "p.test.txt": "t"}
    )
    assert documents(f"{three}:validation", "test").text == ["9"]
    assert documents(f"{three},{one}:validation", "test").text == [
        "9",
        halves[1],
    ]  # Each text's own last tenth.
    a, b = (documents("python:validation", split).text for split in ("train", "test"))
    assert len(a) + len(b) == len(documents("python", "train").text) and not set(a) & set(b)
    with pytest.raises(InputError, match="has no valid split"):
        documents(f"{three}:validation", "valid")


@pytest.mark.parametrize(
    "files, data, message",
    [
        ({}, "none.txt", "There is no file or folder .*none.txt: check the path"),
        ({}, "a/b", "There is no file or folder .*a/b: check"),
        ({"x.txt": " \n"}, "x.txt", "x.txt is empty: there is nothing to learn from"),
        (
            {"one/x.txt": "a"},
            "one",
            "one holds one text, which makes no two splits: give the file itself",
        ),
        ({"d/x.md": "a"}, "d", "d holds no texts .*only 1 .md: put them there"),
        ({"d/x.png": ""}, "d", "d holds no texts .* but 1 image: train an experiment on images"),
        (
            {"x.png": ""},
            "x.png",
            "x.png is an image, and this experiment is on texts: train one on",
        ),
        ({"d/test/x.txt": "a"}, "d", "d has a folder test but no folder train with texts: put"),
        ({"d/train/x.txt": "", "d/train/y.txt": "", "d/test/z.txt": "a"}, "d", "x.txt is empty"),
        (
            {f"d/{x}.{split}.txt": "a" for x in "ab" for split in ("train", "test")},
            "d",
            "d holds several sets, a and b: give one, as in .*d/a, or several",
        ),
    ],
)
def test_missing_text_errors(tmp_path, files, data, message):
    write(tmp_path, files)
    with pytest.raises(InputError, match=message) as e:
        documents(str(tmp_path / data), "train")
    assert "\n" not in str(e.value)


def test_bytes_that_are_not_utf8(tmp_path):
    (tmp_path / "x.txt").write_bytes("caf\u00e9".encode("latin1"))
    with pytest.raises(
        InputError,
        match=r"x.txt is not UTF-8 \(byte 3 is 0xe9\): convert it, as in `iconv -f latin1",
    ):
        documents(str(tmp_path / "x.txt"), "train")


@pytest.mark.parametrize(
    "name, message",
    [
        ("imdb_review", "There is no data set imdb_review: did you mean imdb_reviews"),
        (
            "zzzzz",
            "There is no data set zzzzz: give a TFDS name, a text file, a folder of .txt files, "
            "or python",
        ),
        ("mnist", "mnist holds image, label, and no text: it is not a text set"),
        (
            "imdb_reviews",
            "imdb_reviews is not prepared in .*ssljax.data.prepare imdb_reviews` once, "
            "or take --data python",
        ),
    ],
)
def test_tfds_names(tmp_path, monkeypatch, name, message):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    with pytest.raises(InputError, match=message) as e:
        documents(name, "train")
    assert "\n" not in str(e.value)


def test_imdb_reviews():
    prepared("imdb_reviews")
    test = documents("imdb_reviews", "test")
    assert (
        len(test) == 25000
        and np.bincount(test.labels).tolist() == [12500, 12500]
        and test.labels.dtype == np.int32
    )
    assert test.class_names == ["neg", "pos"] and min(map(len, test.text)) > 10
    praise = np.array(["wonderful" in t for t in test.text])
    assert test.labels[praise].mean() > 0.7
    with pytest.raises(InputError, match="imdb_reviews has no valid split; it has .*test"):
        documents("imdb_reviews", "valid")


def test_tokenizers_are_the_same_in_another_process(manual, tmp_path):
    code = (
        "from tests.test_text import *; docs = Documents(documents('python', 'train').text[:8]); "
        "[(pathlib.Path(sys.argv[1]) / k).write_text(make(docs).to_str()) "
        "for k, make in MADE.items()]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for kind, make in MADE.items():
        made = make(manual).to_str()
        assert made == (tmp_path / kind).read_text()
        (tmp_path / "tokenizer.json").write_text(made)
        assert load_tokenizer(tmp_path).to_str() == made


def test_a_run_without_a_tokenizer(tmp_path):
    with pytest.raises(
        InputError, match="holds no tokenizer.json: give the folder of a run on text"
    ):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="tokenizer.json can't be read as a tokenizer"):
        load_tokenizer(tmp_path)


ANY = st.characters(exclude_categories=["Cs"])
TRAINED = bpe(Documents(documents("python", "test").text), 300)


@given(st.text(ANY).filter(lambda text: END not in text))
@settings(max_examples=200, deadline=None)
def test_byte_round_trip(text):
    assert TRAINED.decode(TRAINED.encode(text).ids) == text


def test_bpe_learns_frequent_words(manual):
    tokenizer = bpe(manual, 400)
    assert tokenizer.get_vocab_size() == 400 and tokenizer.token_to_id(END) == 0
    tokens, offsets = encode(tokenizer, manual)
    assert tokens.dtype == np.int32 and len(tokens) < 0.6 * sum(map(len, manual.text))
    for i in (0, 7):
        assert tokenizer.decode(tokens[offsets[i] : offsets[i + 1]].tolist()) == manual.text[i]
    with pytest.raises(
        InputError, match="A vocabulary of 256 can't hold the 256 bytes and the end of a document"
    ):
        bpe(manual, 256)


@pytest.mark.parametrize("kind", MADE)
def test_tokens_of_a_long_text_encoded_in_parts(kind, manual, monkeypatch):
    """Single line ends, runs of them, and one long line, which is cut between words."""
    docs = replace(
        manual, text=[*manual.text, "ab cd\nef\n\n  gh\n\tij\nkl " * 30, "one long line " * 50, "a"]
    )
    tokenizer = MADE[kind](docs)
    whole = [tokenizer.encode(text, add_special_tokens=False).ids for text in docs.text]
    monkeypatch.setattr(tokenizers_module, "BATCH", 500)
    monkeypatch.setattr("ssljax.data.documents.text_parts", lambda text: text_parts(text, 200))
    parts = [len(list(parts)) for parts in docs.parts()]
    assert sum(parts[:8]) > 20 and parts[8] > 1 and parts[9] == 4 and parts[10:] == [1]
    found = tokenizers_module._encode(tokenizer, docs)
    np.testing.assert_array_equal(found["tokens"], np.concatenate(whole))
    np.testing.assert_array_equal(found["offsets"], np.cumsum([0, *map(len, whole)]))


@given(
    st.lists(st.text(ANY, max_size=9) | st.text("abä \n\t~", max_size=9), min_size=1, max_size=4)
)
@settings(max_examples=200, deadline=None)
def test_characters_are_numbered_in_the_order_of_unicode(texts):
    docs = Documents(texts)
    texts = [normalizers.NFC().normalize_str(text) for text in texts]
    order = ["[UNK]", *sorted(set("".join(texts)))]
    tokenizer = characters(docs)
    tokens, offsets = encode(tokenizer, docs)
    for i, text in enumerate(texts):
        assert [order[t] for t in tokens[offsets[i] : offsets[i + 1]]] == list(text)
        assert tokenizer.decode(tokens[offsets[i] : offsets[i + 1]].tolist()) == text
    assert tokenizer.encode(min(set(map(chr, range(99))) - set(order))).ids == [0]


def test_words_are_ranked_by_count():
    docs = Documents(["b a b\nc b a\n"])
    tokenizer = words(docs)
    assert sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get) == [
        "[UNK]",
        "b",
        "<eos>",
        "a",
        "c",
    ]
    assert encode(tokenizer, docs)[0].tolist() == [1, 3, 1, 2, 4, 1, 3, 2]
    assert tokenizer.decode(tokenizer.encode("a d\n").ids) == "a [UNK] <eos>"
    assert set(words(docs, min_count=2, newline="").get_vocab()) == {"[UNK]", "a", "b"}
    assert set(words(docs, size=2).get_vocab()) == {"[UNK]", "b"}
    treebank = words(Documents([" the <unk> of \n"]))
    assert treebank.encode("zebra").tokens == ["<unk>"] and "[UNK]" not in treebank.get_vocab()


def test_word_counts_match_tokenization():
    white = [chr(i) for i in range(0x3100) if chr(i).isspace()]
    assert {"\x1c", "\x85", "\u3000"} <= set(white)  # To Rust the first is not white.
    docs = Documents([f"a{c}b a{c}b" for c in white])
    tokenizer = words(docs, newline="")
    tokens, vocabulary = encode(tokenizer, docs)[0], tokenizer.get_vocab()
    assert set(tokens.tolist()) == set(range(1, len(vocabulary))) and "a\x1cb" in vocabulary


@pytest.mark.parametrize("kind, vocabulary", [("words", 99), ("characters", 0), ("bpe", 300)])
def test_boundaries_after_each_of_several_texts(tmp_path, kind, vocabulary):
    """The boundary is END, or a newline without one; decoding loses nothing but rare words."""
    files = {"a.txt": "to be or to be\n" * 9 + "to be", "b.txt": "or not to be\n" * 9 + "to be\n"}
    folder = pathlib.Path(write(tmp_path, files))
    for names in (["a.txt"], ["a.txt", "b.txt"]):
        data, several = ",".join(str(folder / n) for n in names), len(names) > 1
        read, make = (
            tokenized(data, kind, vocabulary),
            {
                "words": lambda d: words(d, 2),
                "characters": characters,
                "bpe": lambda d: bpe(d, vocabulary),
            }[kind],
        )
        for split, found in (("train", read.train), ("test", read.test)):
            text = documents(data, split).text
            text = (
                [t if t[-1] == "\n" else t + "\n" for t in text]
                if several and kind != "bpe"
                else text
            )
            end = [0] if several and kind == "bpe" else []
            want = [i for t in text for i in [*read.tokenizer.encode(t).ids, *end]]
            assert found.tolist() == want and found.dtype == np.int32
            if split == "train":
                assert make(Documents(text)).to_str() == read.tokenizer.to_str()
        assert read.size == read.tokenizer.get_vocab_size()
        assert read.characters == (sum(map(len, text)) if kind != "words" else 0)
    last = {"words": "<eos>", "characters": "\n", "bpe": END}[kind]
    assert (
        read.tokenizer.id_to_token(int(read.train[-1]))
        == read.tokenizer.id_to_token(int(read.test[-1]))
        == last
    )


def test_unknown_token_counts(tmp_path):
    """Rare training words count, so that it is learned, unless the text has an unknown word."""
    data = write(tmp_path, {"x.train.txt": "a a b b c\na\n", "x.test.txt": "a d c\nb\n"})
    read = tokenized(data, "words", 9)
    assert set(read.tokenizer.get_vocab()) == {"[UNK]", "a", "b", "<eos>"} and read.characters == 0
    assert (read.train == 0).tolist() == [False] * 4 + [True] + [False] * 3
    assert read.test.tolist().count(0) == 2 and read.unknown == pytest.approx(100 * 2 / 6)
    read = tokenized(data, "characters", 0)
    assert read.unknown == pytest.approx(100 / 8) and read.characters == 0  # The d.
    read = tokenized(data, "bpe", 257)
    assert read.unknown is None and read.characters == 8
    (tmp_path / "x.test.txt").write_text(f"a{END}b")
    assert tokenized(data, "bpe", 257).characters == 0
    (tmp_path / "x.test.txt").write_text("a b")
    read = tokenized(data, "characters", 0)
    assert read.unknown == 0 and read.characters == 3
    treebank = write(
        tmp_path / "treebank", {"x.train.txt": " a <unk> c\n", "x.test.txt": " a c d <unk>\n"}
    )
    read = tokenized(treebank, "words", 9)
    assert set(read.tokenizer.get_vocab()) == {
        "<unk>",
        "a",
        "c",
        "<eos>",
    } and read.unknown == pytest.approx(40)


def test_wordpiece_matches_bert(manual):
    tokenizer = wordpiece(manual, 500)
    assert (
        tuple(tokenizer.id_to_token(i) for i in range(5)) == SPECIAL_TOKENS
        and tokenizer.get_vocab_size() == 500
    )
    text = "The Assert statement, with expressions"
    pieces = tokenizer.encode(text).tokens
    assert pieces[0] == "[CLS]" and pieces[-1] == "[SEP]"
    vocabulary = tokenizer.get_vocab()
    want = []
    for word in [
        "the",
        "assert",
        "statement",
        ",",
        "with",
        "expressions",
    ]:  # The longest piece first, as BERT's paper has it.
        at = 0
        while at < len(word):
            end = next(
                e
                for e in range(len(word), at, -1)
                if ("##" if at else "") + word[at:e] in vocabulary
            )
            want, at = [*want, ("##" if at else "") + word[at:end]], end
    assert pieces[1:-1] == want
    assert tokenizer.decode(tokenizer.encode(text).ids) == "the assert statement, with expressions"
    assert encode(tokenizer, Documents([text]))[0].tolist() == tokenizer.encode(text).ids[1:-1]
    with pytest.raises(
        InputError,
        match="A vocabulary of 20 can't hold the special tokens and the 62 different characters "
        "of the text, .*: choose at least 102, or --tokens bpe",
    ):
        wordpiece(manual, 20)


SCRIPTS = {
    "hindi": "हिन्दी में लिखा हुआ एक छोटा पाठ। यह भाषा देवनागरी में लिखी जाती है। ",
    "thai": "ภาษาไทยเขียนโดยไม่มีช่องว่างระหว่างคำและมีวรรณยุกต์",
    "japanese": "カタカナとひらがなと漢字をまぜて書く。ガギグゲゴ",
    "chinese": "学习没有标签的表示是一个有趣的问题。",
    "korean": "한국어로 쓴 짧은 글입니다. ",
    "arabic": "اللُّغَةُ الْعَرَبِيَّةُ جميلة أحمد ",
    "hebrew": "שָׁלוֹם עוֹלָם ",
    "greek": "Ελληνικό κείμενο με τόνους ",
    "vietnamese": "Tiếng Việt có dấu thanh ",
    "emoji": "I ❤️ you 🥰👨‍👩‍👧 ok 🫠 ",
    "proteins": "MKVLATGWERTYIPSDFGHKLCNQ" * 40,
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("kind", ["characters", "words", "bpe", "masked_bpe", "wordpiece"])
def test_scripts_in_both_normal_forms(script, kind):
    """No character of a text is unknown, and both forms have the same tokens or are lossless."""
    make = MADE | {"masked_bpe": lambda d: masked_bpe(d, 700)}
    composed, decomposed = (
        unicodedata.normalize(form, SCRIPTS[script] * 20) for form in ("NFC", "NFD")
    )
    tokenizer = make[kind](Documents([composed]))
    tokens = encode(tokenizer, Documents([composed]))[0]
    assert not unknown_share(tokenizer, counts_of(tokenizer, tokens))
    if kind in ("bpe", "masked_bpe"):
        for text in (composed, decomposed):
            ids = encode(tokenizer, Documents([text]))[0].tolist()
            assert tokenizer.decode(ids) == text
        return
    np.testing.assert_array_equal(encode(tokenizer, Documents([decomposed]))[0], tokens)
    assert make[kind](Documents([decomposed])).to_str() == tokenizer.to_str()
    found = tokenizer.decode(tokens.tolist())
    if kind == "characters":
        assert found == composed
    elif kind == "wordpiece":  # It keeps all but case and white space.
        assert "".join(found.split()) == "".join(composed.lower().split())


def test_documents_are_read_in_composed_form(tmp_path):
    for form in ("NFC", "NFD"):
        text = unicodedata.normalize(form, "é한ü " * 20)
        (tmp_path / "x.txt").write_text(text, encoding="utf-8")
        assert documents(str(tmp_path / "x.txt"), "train").text == ["é한ü " * 18]


def test_bpe_words_keep_combining_marks():
    for tokenizer in (bpe(Documents(["a"]), 300), masked_bpe(Documents(["a"]), 600)):
        split = tokenizer.pre_tokenizer.pre_tokenize_str
        for text, n in (("हिन्दी में", 2), ("e\u0301te\u0301 ภาษา", 2), ("don’t stop", 4)):
            assert len(split(text)) == n
    assert len(split("学习没有 标签")) == 6  # Masked models have Chinese characters as words.


def test_long_words_are_cut():
    """A word's search takes quadratic time, so that none may be as long as its text."""
    text = "".join(np.random.default_rng(0).choice(list("acdefghiklmnpqrstvwy"), 20_000))
    for make in (lambda d: bpe(d, 400), lambda d: masked_bpe(d, 700), lambda d: wordpiece(d, 400)):
        tokenizer = make(Documents([text]))
        words = tokenizer.pre_tokenizer.pre_tokenize_str(text)
        assert "".join(word for word, _ in words) == text
        assert max(len(word) for word, _ in words) <= 128
        assert len(words) <= 20_000 / 90 + 1
        tokens = encode(tokenizer, Documents([text]))[0]
        assert not unknown_share(tokenizer, counts_of(tokenizer, tokens))
        assert len(tokens) < 14_000
        assert "".join(tokenizer.decode(tokens.tolist()).split()) == text


def test_rare_characters_are_not_lost():
    """Text with 1,500 characters, a third of them once: all are in WordPiece's vocabulary."""
    letters = [chr(0x4E00 + i) for i in range(1500)]
    docs = Documents(["".join(letters) + "".join(letters[:1000])])
    tokenizer = wordpiece(docs, 1600)
    assert unknown_share(tokenizer, counts_of(tokenizer, encode(tokenizer, docs)[0])) == 0
    with pytest.raises(InputError, match="1500 different characters .* or --tokens bpe"):
        wordpiece(docs, 1500)
    # A character that is not there is unknown alone, without its word.
    small = wordpiece(Documents(["abcd abcd"]), 30)
    assert small.encode("abéd", add_special_tokens=False).tokens[1] == "[UNK]"
    tokens = encode(small, Documents(["ab éd"]))[0]
    assert unknown_share(small, counts_of(small, tokens)) == pytest.approx(100 / 3)


@pytest.mark.parametrize("read", ["tokenized", "token_rows"])
def test_unknown_tokens_are_reported_and_too_many_refused(tmp_path, capsys, read):
    make = {
        "tokenized": lambda data: tokenized(data, "characters", 0),
        "token_rows": lambda data: token_rows(data, "wordpiece", 60, 8),
    }[read]
    data = write(tmp_path, {"x.train.txt": "a b c d " * 9, "x.test.txt": "a b c é " * 9})
    make(data)
    share = {"tokenized": "12.50", "token_rows": "22.86"}[read]
    out = capsys.readouterr().out
    *_, texts, unknown = (line.removeprefix("data      ") for line in out.splitlines())
    assert unknown == f"unknown tokens: 0.00 % of the training text, {share} % held out"
    n = {"tokenized": "72 tokens", "token_rows": "35 tokens"}[read]
    assert texts.startswith("texts: 1 to learn from (72 characters, ") and texts.endswith(f"{n})")
    write(tmp_path, {"x.test.txt": "学习没有标签的表示" * 9})
    with pytest.raises(
        InputError, match="100.0 % of the tokens of the held-out text are unknown .*--tokens bpe"
    ):
        make(data)
    if read == "token_rows":
        token_rows(data, "bpe", 600, 8)
    else:
        assert tokenized(data, "bpe", 300).unknown is None
        write(tmp_path, {"x.train.txt": " ".join(map(str, range(99))), "x.test.txt": "1 2"})
        with pytest.raises(InputError, match="100.0 % of the tokens of the training text"):
            tokenized(data, "words", 200)


def test_word_starts():
    text = " ".join(["reading (unread) readings re read 123"] * 20)
    for kind, inside in (("wordpiece", "##"), ("bpe", "\x7f")):
        tokenizer = masked_tokenizer(Documents([text]), kind, 600)
        rows = encode(tokenizer, Documents([text]))[0][None]
        starts = word_starts(tokenizer, rows, 0.5)
        names = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
        assert starts.tolist() == [not name.startswith(inside) for name in names]
        words = ["reading", "(", "unread", ")", "readings", "re", "read", "123"]
        assert starts[rows].sum() == 20 * len(words)
    line = Documents(["".join(np.random.default_rng(0).choice(list("abcdefgh"), 900))])
    tokenizer = masked_tokenizer(line, "bpe", 560)
    rows = pack(*encode(tokenizer, line), 63)
    with pytest.raises(InputError, match="more than the 9 tokens .*leave out --whole-words"):
        word_starts(tokenizer, rows, 0.15)


def test_large_texts_are_encoded_once(manual, tmp_path, monkeypatch):
    plain = bpe(manual, 400)
    tokens, offsets = encode(plain, manual)
    monkeypatch.setattr("ssljax.data.tokenizers.LARGE", 1)
    monkeypatch.setenv("SSLJAX_CACHE", str(tmp_path))
    for _ in range(2):
        tokenizer = bpe(manual, 400)
        assert tokenizer.to_str() == plain.to_str()
        for a, b in zip(encode(tokenizer, manual), (tokens, offsets)):
            np.testing.assert_array_equal(a, b)
        assert len(list((tmp_path / "data").glob("*.npz"))) == 2
        monkeypatch.setattr("tokenizers.trainers", None)  # From here on the cache has it.
        monkeypatch.setattr("ssljax.data.tokenizers._encode", None)
    monkeypatch.setattr("inspect.getsource", lambda function: "another recipe")
    with pytest.raises(AttributeError, match="BpeTrainer"):
        bpe(manual, 400)
    monkeypatch.undo()
    assert bpe(Documents(manual.text[:7]), 400).to_str() != plain.to_str()


documents_of_tokens = st.lists(st.lists(st.integers(1, 9), max_size=7), min_size=1, max_size=6)


def flat(docs: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([t for d in docs for t in d], np.int32), np.cumsum([0, *map(len, docs)])


@given(documents_of_tokens, st.integers(1, 5), st.sampled_from([None, 0]))
@settings(max_examples=100, deadline=None)
def test_packing(docs, length, separator):
    whole = [t for d in docs for t in (d if separator is None else [*d, separator])]
    if len(whole) < length:
        with pytest.raises(
            InputError,
            match=f"A text of {len(whole)} tokens does not fill a row of {length}: choose",
        ):
            pack(*flat(docs), length, separator)
    else:
        packed = pack(*flat(docs), length, separator)
        assert (
            packed.dtype == np.int32
            and packed.shape[1] == length
            and 0 <= len(whole) - packed.size < length
        )
        assert packed.ravel().tolist() == whole[: packed.size]


@given(
    documents_of_tokens, st.integers(2, 9), st.sampled_from([(None, None), (11, None), (11, 12)])
)
@settings(max_examples=100, deadline=None)
def test_rows_of_documents(docs, length, around):
    first, last = around
    out = document_rows(*flat(docs), length, 0, first, last)
    for i, doc in enumerate(docs):
        before, after = [first] * (first is not None), [last] * (last is not None)
        one = before + doc[: length - len(before) - len(after)] + after
        assert out[i].tolist() == one + [0] * (length - len(one))
    assert out.dtype == np.int32


def test_windows_are_a_function_of_seed_and_step():
    tokens = np.arange(100, 160)
    data = Windows(tokens, 8, 5)
    first = batches(data, 3, 0, 60, mesh_of(1))
    for a, b in zip(first[20:], batches(data, 3, 20, 4, mesh_of(8))):
        np.testing.assert_array_equal(a["tokens"], b["tokens"])
    x = np.stack([b["tokens"] for b in first])
    assert (
        x.shape == (60, 8, 6)
        and (np.diff(x, axis=-1) == 1).all()
        and x.min() == 100
        and x.max() == 159
    )
    assert len(np.unique(x[..., 0])) == 55, "480 draws of the 55 places find them all."
    assert not np.array_equal(x[0], batches(data, 4, 0, 1, mesh_of(1))[0]["tokens"])
    with pytest.raises(
        InputError,
        match="A text of 60 tokens is too short for a context of 60 and the token after it",
    ):
        Windows(tokens, 8, 60)
    whole = batches(Windows(tokens, 2, 59), 0, 0, 1, mesh_of(1))[0]["tokens"]
    assert np.asarray(whole).tolist() == [tokens.tolist()] * 2


def test_streams_continue_across_steps():
    tokens = np.arange(1000, 1085)  # 4 streams of 21, of which an epoch has 4 steps of 5.
    data = Streams(tokens, 4, 5)
    got = batches(data, 0, 0, 9, mesh_of(4))
    assert data.steps == 4 and [bool(b["first"][0]) for b in got] == [i % 4 == 0 for i in range(9)]
    for step, batch in enumerate(got):
        for i, stream in enumerate(np.asarray(batch["tokens"])):
            begin = 21 * i + 5 * (step % 4)
            assert stream.tolist() == tokens[begin : begin + 6].tolist()
    for a, b in zip(got[3:], batches(data, 7, 3, 3, mesh_of(1))):
        jax.tree.map(np.testing.assert_array_equal, dict(a), dict(b))
    with pytest.raises(
        InputError, match="A text of 20 tokens is too short for 4 streams of 5 tokens and the"
    ):
        Streams(tokens[:20], 4, 5)


def test_rows_of_any_arrays():
    arrays = {
        "tokens": np.arange(60).reshape(20, 3),
        "length": np.arange(20),
        "label": np.arange(20) % 2,
    }
    for step, batch in enumerate(batches(Rows(arrays, 8), 1, 0, 4, mesh_of(8))):
        at = indices(1, step, 20, 8)
        assert set(batch) == set(arrays)
        for k, v in arrays.items():
            np.testing.assert_array_equal(batch[k], v[at])
    with pytest.raises(InputError, match="A batch of 21 can't be drawn from a set of 20 examples"):
        Rows(arrays, 21)
