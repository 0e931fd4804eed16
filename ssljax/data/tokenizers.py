"""Tokenizers of text: characters, words, byte pairs and WordPiece; and texts as arrays of tokens."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
import hashlib
import inspect
import itertools
import pathlib
import re

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

from ssljax.data import cache
from ssljax.data.documents import Documents
from ssljax.errors import InputError

END = "<|endoftext|>"  # Between documents, in a byte-level vocabulary.
LARGE = 2**20  # Characters from which on what was found of texts is kept between runs.
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # The first ids of a WordPiece vocabulary.


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
    unknown = "<unk>" if holds(docs, "<unk>") else "[UNK]"
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


def holds(docs: Documents, word: str) -> bool:
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
    path = cache.cache_file(key.hexdigest())
    if cached := cache.read_cache(path):
        return cached
    made = make()
    cache.store(path, **made)
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
