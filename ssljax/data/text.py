"""Text: documents by name, tokenizers, arrays of tokens, and feeds of them that lie on the devices."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
import hashlib
import inspect
import itertools
import os
import pathlib
import re
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import tokenizers
from tokenizers import (
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    Regex,
    Tokenizer,
    trainers,
)

from ssljax import sharding
from ssljax.data import sources
from ssljax.errors import InputError

Tree = Any
EMBEDDED = "python"
END = "<|endoftext|>"  # Between documents, in a byte-level vocabulary.
LARGE = 2**20  # Characters from which on what was found of texts is kept between runs.
BERT = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
)  # The first ids of a WordPiece vocabulary, in this order.


@dataclass(frozen=True, eq=False)
class Documents:
    """Texts, and the class of each where the set has classes."""

    text: list[str]
    labels: np.ndarray | None = None  # (n,) int32
    class_names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.text)


def documents(data: str, split: str) -> Documents:
    """The "train" or "test" split of a text set; InputError says what is wrong with the name, the set or a file.

    `data` is "python" (embedded: the reference manual of the Python that runs this, a tenth of its topics for testing),
    a text file in UTF-8 (its first 90 % of characters, and the rest), a folder of .txt files (train/ and test/; or every
    tenth file for testing; in folders of classes or without), the common beginning of X.train.txt, X.valid.txt
    and X.test.txt (".../X", or their folder; this has the split "valid" too), or a TFDS set with texts that has been
    prepared (whose splits are its own). Several, with commas between them, are put together.

    To choose settings by, DATA:validation never reads the test split: its "test" is a tenth of each class of the
    training texts, of all where there are no classes, or the last tenth of each where they are fewer than five; its
    "train" is the rest.
    """
    if whole := sources.held_out_of(data):
        return held_out(documents(whole, "train"), whole, split)
    path = pathlib.Path(data).expanduser()
    if data == EMBEDDED:
        return Documents(_python(split))
    if path.is_file():
        text = _read(path)
        cut = int(len(text) * 0.9)
        halves = {"train": text[:cut], "test": text[cut:]}
        return Documents([halves[_known(data, split, halves)]])
    if "," in data:
        parts = [documents(part.strip(), split) for part in data.split(",")]
        return Documents([text for part in parts for text in part.text])
    if splits := _splits(path):
        return Documents([_read(splits[_known(data, split, splits)])])
    if path.is_dir():
        return _folder(path, split)
    if path.suffix or (os.sep in data and not sources.has_config(data)):
        raise InputError(f"There is no file or folder {data}: check the path given as --data.")
    return _tfds(data, split)


def held_out(whole: Documents, data: str, split: str) -> Documents:
    """Nine tenths of the training texts of `data` as "train", what is left as "test"; InputError where nothing is."""
    _known(f"{data}:{sources.HELD_OUT}", split, ("train", "test"))
    if whole.labels is None and len(whole) < 5:
        cuts = [int(len(text) * 0.9) for text in whole.text]
        return Documents(
            [text[:cut] if split == "train" else text[cut:] for text, cut in zip(whole.text, cuts)]
        )
    labels = np.zeros(len(whole), np.int32) if whole.labels is None else whole.labels
    at = sources.held_out(data, labels)[split]
    return replace(
        whole,
        text=[whole.text[i] for i in at],
        labels=None if whole.labels is None else whole.labels[at],
    )


def _known(data: str, split: str, splits) -> str:
    if split not in splits:
        raise InputError(f"{data} has no {split} split; it has {', '.join(splits)}.")
    return split


def _read(path: pathlib.Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as e:
        raise InputError(
            f"{path} is not UTF-8 (byte {e.start} is {e.object[e.start]:#04x}): convert it, as in `iconv "
            f"-f latin1 -t utf-8`."
        ) from None
    except OSError as e:
        raise InputError(
            f"{path} can't be read ({e.strerror}): check the path given as --data."
        ) from e
    if not text.strip():
        raise InputError(f"{path} is empty: there is nothing to learn from in it.")
    return text


def _python(split: str) -> list[str]:
    """Topics of the manual that are not parts of others; of those for training, what is in test topics goes."""
    from pydoc_data.topics import topics

    long = {k: long_paragraphs(v) for k, v in topics.items()}
    kept, seen = [], set()
    for k in sorted(topics, key=lambda k: (-len(topics[k]), k)):
        if len(long[k] & seen) <= len(long[k]) / 2:
            kept.append(k)
            seen |= long[k]
    kept.sort()
    test = {
        kept[i] for i in np.random.default_rng(0).permutation(len(kept))[: round(len(kept) / 10)]
    }
    if _known(EMBEDDED, split, ("train", "test")) == "test":
        return [topics[k] for k in kept if k in test]
    tested = set().union(*(long[k] for k in test))
    return [without(topics[k], tested) + "\n" for k in kept if k not in test]


def long_paragraphs(text: str) -> set[str]:
    """Those of more than 40 characters, with single spaces."""
    return {" ".join(p.split()) for p in text.split("\n\n") if len(p) > 40}


def without(text: str, paragraphs: set[str]) -> str:
    """The paragraphs of `text` that are neither empty nor, with single spaces, among `paragraphs`."""
    return "\n\n".join(
        p for p in text.split("\n\n") if p.strip() and " ".join(p.split()) not in paragraphs
    )


def _splits(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """The files X.train.txt, X.valid.txt, X.test.txt that are there, where `path` is X or the folder with one X."""
    if path.is_dir():
        stems = {f.name.removesuffix(".train.txt") for f in path.glob("*.train.txt")}
        path = path / stems.pop() if len(stems) == 1 else path
    files = {
        split: path.with_name(f"{path.name}.{split}.txt") for split in ("train", "valid", "test")
    }
    return {split: f for split, f in files.items() if f.exists()} if files["train"].exists() else {}


def _folder(root: pathlib.Path, split: str) -> Documents:
    own = (root / "train").is_dir() or (root / "test").is_dir()
    top = root / split if own else root
    files = sorted(
        f
        for f in top.rglob("*.txt")
        if not any(p.startswith(".") for p in f.relative_to(top).parts)
    )
    if not own and len(files) > 1:
        _known(str(root), split, ("train", "test"))
        files = [f for i, f in enumerate(files) if (i % 10 == 0) == (split == "test")]
    elif not own and files:
        raise InputError(
            f"{root} holds one .txt file, which makes no two splits: give the file itself as --data."
        )
    if not files:
        raise InputError(
            f"{top} holds no .txt files: put the texts there, or give another folder as --data."
        )
    tops = [root / s for s in ("train", "test")] if own else [root]
    names = sorted({d.name for t in tops for d in t.glob("*/") if not d.name.startswith(".")})
    classes = [f.relative_to(top).parts[0] for f in files]
    text = [_read(f) for f in files]
    if len(names) > 1 and set(classes) <= set(names):
        return Documents(text, np.array([names.index(c) for c in classes], np.int32), names)
    return Documents(text)


def _tfds(name: str, split: str) -> Documents:
    instead = f"or take --data {EMBEDDED}, which is embedded and needs no download"
    builder = sources.tfds_builder(
        name,
        [EMBEDDED],
        f"give a TFDS name, a text file, a folder of .txt files, or {EMBEDDED}, which is embedded",
    )
    features = builder.info.features
    if "text" not in features:
        raise InputError(f"{name} holds {', '.join(features)}, and no text: it is not a text set.")
    sources.check_prepared(name, builder, instead)
    rows = sources.data_source(name, builder, _known(name, split, builder.info.splits), instead)
    rows = list(sources.all_rows(rows))
    text = [row["text"].decode() if isinstance(row["text"], bytes) else row["text"] for row in rows]
    labels = np.array([row["label"] for row in rows], np.int32) if "label" in features else None
    if (
        labels is None or labels.min() < 0
    ):  # -1 where a split has none, as in imdb_reviews/unsupervised.
        return Documents(text)
    return Documents(text, labels, list(getattr(features["label"], "names", None) or []))


def characters(docs: Documents) -> Tokenizer:
    """One token a character, in the order of Unicode; [UNK], id 0, is what these documents don't hold."""
    vocabulary = ["[UNK]", *sorted(set().union(*docs.text))]
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(vocabulary)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def words(
    docs: Documents, min_count: int = 1, size: int | None = None, newline: str = "<eos>"
) -> Tokenizer:
    """What white space parts, most frequent first, of those that occur `min_count` times at most `size`; and [UNK].

    The end of a line is the word `newline`, as is usual for the Penn Treebank; "" for none. Where the texts have a word
    <unk> for rare ones, as that has, it stands for the unknown too.
    """
    unknown = "<unk>" if _holds(docs, "<unk>") else "[UNK]"
    # White space as Rust has it, where the package cuts: to Python \x1c to \x1f are white too.
    count = Counter(
        itertools.chain.from_iterable(
            re.findall(r"[\S\x1c-\x1f]+", text.replace("\n", f" {newline} ") if newline else text)
            for text in docs.text
        )
    )
    ranked = sorted(
        (w for w in count if count[w] >= min_count and w != unknown), key=lambda w: (-count[w], w)
    )
    vocabulary = [unknown, *ranked][:size]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unknown))
    if newline:
        tokenizer.normalizer = normalizers.Replace("\n", f" {newline} ")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _holds(docs: Documents, word: str) -> bool:
    return any(word in text for text in docs.text)


def bpe(docs: Documents, size: int) -> Tokenizer:
    """Byte-pair encoding of bytes (GPT-2, Radford et al., 2019): any text but one that holds END itself, which is id 0,
    is told without loss.

    InputError for a size below 257, the bytes and END.
    """
    _at_least(size, 257, "the 256 bytes and the end of a document")
    return _trained(_bpe, docs, size)


def _bpe(docs: Documents, size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        docs.text,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[END],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return tokenizer


def wordpiece(docs: Documents, size: int) -> Tokenizer:
    """WordPiece as in BERT (Devlin et al., 2018, arXiv:1810.04805): lower case, with the tokens of `BERT` first."""
    return _trained(_wordpiece, docs, size)


def _wordpiece(docs: Documents, size: int) -> Tokenizer:
    normalizer = normalizers.BertNormalizer(lowercase=True)
    count = Counter(
        itertools.chain.from_iterable(normalizer.normalize_str(text) for text in docs.text)
    )
    letters = sorted(
        c for c, _ in sorted(count.items(), key=lambda x: (-x[1], x[0]))[:1000] if not c.isspace()
    )
    _at_least(
        size,
        len(BERT) + 2 * len(letters),
        "the special tokens and each character, first or not in its word",
    )
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    # The trainer numbers the characters within words as it meets them, in an order that differs from run to run, and
    # breaks ties by these numbers; as special tokens they have their numbers beforehand.
    trained.train_from_iterator(
        docs.text,
        trainers.WordPieceTrainer(
            vocab_size=size,
            special_tokens=[*BERT, *letters, *(f"##{c}" for c in letters)],
            show_progress=False,
            initial_alphabet=letters,
            limit_alphabet=len(letters),
        ),
    )
    tokenizer = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(BERT))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def _trained(make: Callable[[Documents, int], Tokenizer], docs: Documents, size: int) -> Tokenizer:
    recipe = f"{inspect.getsource(make)} {size}"  # What an older recipe has made is not taken for this one's.
    return Tokenizer.from_str(
        str(_cached(recipe, docs, lambda: {"json": np.array(make(docs, size).to_str())})["json"])
    )


def _cached(
    what: str, docs: Documents, make: Callable[[], Mapping[str, np.ndarray]]
) -> Mapping[str, np.ndarray]:
    """What is made of these documents, from the cache where they are large: tens of megabytes take minutes."""
    if sum(map(len, docs.text)) < LARGE:
        return make()
    key = hashlib.sha256(f"{tokenizers.__version__} {what}".encode())
    for text in docs.text:
        key.update(f" {len(text)} {text}".encode())
    path = sources.cache_file(key.hexdigest())
    if path.exists():
        with np.load(path) as file:
            return dict(file)
    made = make()
    sources.store(path, **made)
    return made


def _at_least(size: int, least: int, what: str) -> None:
    if size < least:
        raise InputError(f"A vocabulary of {size} can't hold {what}: choose at least {least}.")


def load_tokenizer(run_folder: str | pathlib.Path) -> Tokenizer:
    """The tokenizer that a run keeps as tokenizer.json; InputError where there is none."""
    path = pathlib.Path(run_folder).expanduser() / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{run_folder} holds no tokenizer.json: give the folder of a run on text.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as e:  # The package raises nothing narrower.
        raise InputError(f"{path} can't be read as a tokenizer ({e}).") from e


def encode(tokenizer: Tokenizer, docs: Documents) -> tuple[np.ndarray, np.ndarray]:
    """All tokens, (n,) int32, without special ones; document i is tokens[offsets[i]:offsets[i + 1]]."""
    made = _cached(tokenizer.to_str(), docs, lambda: _encode(tokenizer, docs))
    return made["tokens"], made["offsets"]


def _encode(tokenizer: Tokenizer, docs: Documents) -> Mapping[str, np.ndarray]:
    parts, sizes = [np.zeros(0, np.int32)], np.zeros(len(docs) + 1, np.int64)
    cut = [(i, part) for i, text in enumerate(docs.text, 1) for part in _cut(tokenizer, text)]
    ends = itertools.accumulate(len(part) for _, part in cut)
    # Some at a time: what the package makes of a token takes many times the room of its number.
    for _, some in itertools.groupby(zip(ends, cut), lambda x: x[0] // LARGE):
        whose, texts = zip(*(x[1] for x in some))
        for i, e in zip(whose, tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)):
            parts.append(np.array(e.ids, np.int32))
            sizes[i] += len(e.ids)
    return {"tokens": np.concatenate(parts), "offsets": np.cumsum(sizes)}


def _cut(tokenizer: Tokenizer, text: str) -> Iterator[str]:
    """A long text in parts that have the tokens of the whole: anywhere between characters that are tokens, and else
    behind an end of a line that words stand around."""
    anywhere = isinstance(tokenizer.pre_tokenizer, pre_tokenizers.Split)
    start, place = 0, re.compile("" if anywhere else r"(?<=\w)\n(?=[A-Za-z])")
    while len(text) - start > LARGE and (found := place.search(text, start + LARGE)):
        yield text[start : found.end()]
        start = found.end()
    yield text[start:]


class Tokenized(NamedTuple):
    """A text set for a model of what comes next."""

    tokenizer: Tokenizer
    train: np.ndarray  # (n,) int32, end to end.
    test: np.ndarray
    characters: int  # Of the test text; 0 where its tokens don't tell it without loss.
    unknown: float | None = (
        None  # Per cent of `test` that is the unknown token; None where the tokenizer has none.
    )

    @property
    def size(self) -> int:
        """Of the vocabulary."""
        return self.tokenizer.get_vocab_size()


def tokenized(data: str, kind: Literal["words", "characters", "bpe"], vocabulary: int) -> Tokenized:
    """The set `data` in tokens learned on its training split, of words and byte pairs at most `vocabulary`.

    Where it has several documents, each ends with END in byte pairs, and otherwise with a newline, added where there is
    none. Words that occur once are the unknown, so that it is learned, unless the text has its own <unk> for rare ones.
    """
    train, test = (documents(data, split) for split in ("train", "test"))
    several = max(len(train), len(test)) > 1
    if several and kind != "bpe":
        train, test = (
            replace(docs, text=[text.removesuffix("\n") + "\n" for text in docs.text])
            for docs in (train, test)
        )
    tokenizer = {
        "words": lambda: words(train, 1 if _holds(train, "<unk>") else 2, vocabulary),
        "characters": lambda: characters(train),
        "bpe": lambda: bpe(train, vocabulary),
    }[kind]()
    end = tokenizer.token_to_id(END) if several and kind == "bpe" else None
    x, y = (_joined(*encode(tokenizer, docs), end) for docs in (train, test))
    unknown = tokenizer.model.unk_token
    share = (
        None
        if unknown is None
        else 100 * float(np.sum(y == tokenizer.token_to_id(unknown))) / max(len(y), 1)
    )
    lost = kind == "words" or share or (_holds(test, END) and kind == "bpe")
    return Tokenized(tokenizer, x, y, 0 if lost else sum(map(len, test.text)), share)


def _joined(tokens: np.ndarray, offsets: np.ndarray, separator: int | None) -> np.ndarray:
    """The documents end to end, each followed by `separator`, if there is one."""
    return tokens if separator is None else np.insert(tokens, offsets[1:], separator)


def pack(
    tokens: np.ndarray, offsets: np.ndarray, length: int, separator: int | None = None
) -> np.ndarray:
    """The documents end to end, each followed by `separator`, cut into rows: (n, length) int32, without the last rest.

    InputError where they don't fill one row.
    """
    tokens = _joined(tokens, offsets, separator)
    if len(tokens) < length:
        raise InputError(
            f"A text of {len(tokens)} tokens does not fill a row of {length}: choose a shorter length, or "
            "more text."
        )
    return tokens[: len(tokens) // length * length].reshape(-1, length).astype(np.int32)


def rows(
    tokens: np.ndarray,
    offsets: np.ndarray,
    length: int,
    pad: int,
    first: int | None = None,
    last: int | None = None,
) -> np.ndarray:
    """One row for each document, cut or padded: (n, length) int32.

    `first` and `last` are put around each document ([CLS] and [SEP]), within the length.
    """
    before, after = int(first is not None), int(last is not None)
    own = np.minimum(np.diff(offsets), length - before - after)
    column = np.arange(length)[None] - before
    inside = (column >= 0) & (column < own[:, None])
    out = np.where(
        inside,
        tokens[np.where(inside, offsets[:-1, None] + column, 0)] if len(tokens) else pad,
        pad,
    )
    if before:
        out[:, 0] = first
    if after:
        out[np.arange(len(out)), before + own] = last
    return out.astype(np.int32)


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of `length` tokens and the one after, at places drawn for each step: {"tokens": (b, length + 1)}.

    As nanoGPT draws them. InputError where the text is shorter than a window.
    """

    tokens: np.ndarray
    batch_size: int
    length: int

    def __post_init__(self) -> None:
        _long_enough(
            len(self.tokens), self.length + 1, f"a context of {self.length} and the token after it"
        )

    def resident(self) -> np.ndarray:
        return np.asarray(self.tokens, np.int32)

    def feed(self, seed: int, start: int, mesh: Mesh) -> Iterator[np.ndarray]:
        for step in itertools.count(start):
            rng = np.random.default_rng((seed % 2**64, step))
            yield rng.integers(len(self.tokens) - self.length, size=self.batch_size, dtype=np.int32)

    def batch(self, resident: jax.Array, fed: jax.Array) -> dict[str, jax.Array]:
        return {"tokens": _windows(resident, fed, self.length)}


@dataclass(frozen=True, eq=False)
class Streams:
    """The text as `batch_size` streams, of which each step has the next `length` tokens, for truncated backpropagation.

    {"tokens": (b, length + 1), of which the last is the first of the next step, "first": (b,) bool, true where the
    streams begin anew, so that what was carried is to be forgotten}. An epoch takes `steps` steps; seeds don't matter.
    InputError where the text is too short for one.
    """

    tokens: np.ndarray
    batch_size: int
    length: int

    def __post_init__(self) -> None:
        _long_enough(
            len(self.tokens),
            self.batch_size * self.length + 1,
            f"{self.batch_size} streams of {self.length} tokens and the one after them",
        )

    @property
    def steps(self) -> int:
        return (len(self.tokens) - 1) // self.batch_size // self.length

    def resident(self) -> np.ndarray:
        return np.asarray(self.tokens, np.int32)

    def feed(self, seed: int, start: int, mesh: Mesh) -> Iterator[Tree]:
        begins = (np.arange(self.batch_size) * ((len(self.tokens) - 1) // self.batch_size)).astype(
            np.int32
        )
        for step in itertools.count(start):
            at = step % self.steps
            yield {
                "at": begins + np.int32(at * self.length),
                "first": np.full(self.batch_size, at == 0),
            }

    def batch(self, resident: jax.Array, fed: Tree) -> dict[str, jax.Array]:
        return {
            "tokens": _windows(resident, fed["at"], self.length),
            "first": sharding.over_batch(fed["first"]),
        }


def _long_enough(n: int, least: int, what: str) -> None:
    if n < least:
        raise InputError(
            f"A text of {n} tokens is too short for {what}: choose a shorter one, or more text."
        )


def _windows(tokens: jax.Array, at: jax.Array, length: int) -> jax.Array:
    return sharding.over_batch(tokens[sharding.over_batch(at)[:, None] + jnp.arange(length + 1)])
