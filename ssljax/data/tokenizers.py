"""Tokenizers of text: characters, words, byte pairs, WordPiece; and texts as arrays of tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
import hashlib
import inspect
import itertools
import json
import pathlib
import re
import sys
from typing import Any, TYPE_CHECKING

import numpy as np

from ssljax import extras
from ssljax.data import cache, described
from ssljax.data.documents import AnyDocuments, Documents, identity
from ssljax.data.text_files import compose
from ssljax.errors import InputError
from ssljax.processes import say

if TYPE_CHECKING:
    from tokenizers import pre_tokenizers, Tokenizer

END = "<|endoftext|>"  # Between documents, in the byte pairs of a model of the next token.
PAD_AND_STOP = ("<pad>", "</s>")  # First ids of an encoder and decoder,
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(100))  # and its last, for spans left out: T5's.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # First ids of a masked model.
LARGE = 2**20  # Characters from which on tokenizers and tokens of texts are cached.
BATCH = 2**21  # Characters that are encoded at once, in parts, on all cores.
LONGEST = 128  # Characters of a word in byte pairs: their search takes quadratic time in a word.
CONTINUES = "\x7f"  # Begins the byte pairs inside words; no byte is written as this character.
MOSTLY = 50.0  # Percent of unknown tokens above which a text is refused.

RUN = f"{{1,{LONGEST}}}"
WORD = rf" ?[\p{{L}}\p{{M}}]{RUN}"
HAN_ALONE = rf" ?\p{{Han}}\p{{M}}*| ?[\p{{L}}\p{{M}}&&[^\p{{Han}}]]{RUN}"
OTHERS = rf" ?\p{{N}}{RUN}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]{RUN}|\s{RUN}(?!\S)|\s{RUN}"


def package() -> Any:
    """The package tokenizers; InputError where it is not installed."""
    return extras.load("tokenizers", "Text")


def characters(docs: AnyDocuments) -> Tokenizer:
    """One token for each character of the text in composed form (NFC), in the order of Unicode.

    [UNK], id 0, is any character that these documents don't hold. A character is a code point:
    marks that have no composed form with their letter, and the parts of an emoji, are tokens.
    """
    return _learned(_characters, docs)


def _characters(docs: AnyDocuments) -> Tokenizer:
    tk = package()
    normalizer = tk.normalizers.NFC()
    composed = (t if t.isascii() else normalizer.normalize_str(t) for t in _parts(docs))
    vocabulary = ["[UNK]", *sorted(set().union(*composed))]
    tokenizer = tk.Tokenizer(tk.models.WordLevel({c: i for i, c in enumerate(vocabulary)}, "[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = tk.pre_tokenizers.Split(tk.Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = tk.decoders.Fuse()
    return tokenizer


def words(
    docs: AnyDocuments, min_count: int | None = 1, size: int | None = None, newline: str = "<eos>"
) -> Tokenizer:
    """Words between white space, in composed form (NFC), most frequent first; and [UNK].

    The vocabulary has the words that occur `min_count` times, and at most `size` tokens. The end of
    a line is the word `newline`, as is usual for the Penn Treebank; "" for none. Where the texts
    have a word <unk> for rare words, as the Penn Treebank has, it is the unknown token. None for
    `min_count` is 1 for such texts and 2 for others, so that the unknown token is learned. Scripts
    that are written without spaces (Chinese, Japanese, Thai, ...) need spaces put between words, or
    `bpe` or `characters`.
    """
    return _learned(_words, docs, min_count, size, newline)


def _words(docs: AnyDocuments, min_count: int | None, size: int | None, newline: str) -> Tokenizer:
    tk = package()
    own = contains(docs, "<unk>")
    unknown = "<unk>" if own else "[UNK]"
    if min_count is None:
        min_count = 1 if own else 2
    # White space as in Rust, where the package splits: to Python \x1c to \x1f are white space too.
    found = (
        re.findall(r"[\S\x1c-\x1f]+", text.replace("\n", f" {newline} ") if newline else text)
        for text in map(compose, _parts(docs))
    )
    count = Counter(itertools.chain.from_iterable(found))
    ranked = sorted(
        (w for w in count if count[w] >= min_count and w != unknown), key=lambda w: (-count[w], w)
    )
    vocabulary = [unknown, *ranked][:size]
    tokenizer = tk.Tokenizer(tk.models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unknown))
    line_ends = [tk.normalizers.Replace("\n", f" {newline} ")] if newline else []
    tokenizer.normalizer = tk.normalizers.Sequence([tk.normalizers.NFC(), *line_ends])
    tokenizer.pre_tokenizer = tk.pre_tokenizers.WhitespaceSplit()
    return tokenizer


def contains(docs: AnyDocuments, word: str) -> bool:
    """Whether one of the texts has this string, without white space, in it."""
    return any(word in text for text in _parts(docs))


def _parts(docs: AnyDocuments) -> Iterator[str]:
    return itertools.chain.from_iterable(docs.parts())


def bpe(docs: AnyDocuments, size: int) -> Tokenizer:
    """Byte-pair encoding of bytes (GPT-2, Radford et al., 2019), lossless; END is id 0.

    Two deviations from GPT-2's words: marks belong to their letter (Devanagari, Thai, accents that
    are written apart), and words are cut after `LONGEST` characters. Only text that holds END
    itself is not encoded without loss. InputError for a size below 257, the bytes and END.
    """
    _at_least(size, 257, "the 256 bytes and the end of a document")
    return _learned(_bpe, docs, size)


def _bpe(docs: AnyDocuments, size: int, special: Sequence[str] = (END,)) -> Tokenizer:
    tk = package()
    tokenizer = tk.Tokenizer(tk.models.BPE())
    tokenizer.pre_tokenizer = _byte_level(f"'(?:[sdmt]|ll|ve|re)|{WORD}|{OTHERS}")
    tokenizer.decoder = tk.decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _parts(docs),
        tk.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(special),
            show_progress=False,
            initial_alphabet=tk.pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return tokenizer


def text_to_text(docs: AnyDocuments, size: int) -> Tokenizer:
    """Byte pairs as those of `bpe`, for an encoder and a decoder: T5's special tokens.

    `PAD_AND_STOP` are the first two of the `size` tokens, and `SENTINELS` come after them. Only
    text that holds one of these itself is not encoded without loss. InputError for a size below
    258, the bytes and the first two.
    """
    _at_least(size, 258, "the 256 bytes, the padding and the end of a text")
    return _learned(_text_to_text, docs, size)


def _text_to_text(docs: AnyDocuments, size: int) -> Tokenizer:
    tokenizer = _bpe(docs, size, PAD_AND_STOP)
    tokenizer.add_special_tokens(list(SENTINELS))
    stop = PAD_AND_STOP[1]
    tokenizer.post_processor = package().processors.TemplateProcessing(
        single=f"$A {stop}", pair=f"$A {stop} $B {stop}", special_tokens=[(stop, 1)]
    )
    return tokenizer


def _byte_level(words: str) -> pre_tokenizers.PreTokenizer:
    tk = package()
    return tk.pre_tokenizers.Sequence(
        [
            tk.pre_tokenizers.Split(tk.Regex(words), "isolated"),
            tk.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def masked_bpe(docs: AnyDocuments, size: int) -> Tokenizer:
    """Byte pairs for masked models, lossless: `SPECIAL_TOKENS` are first, and words are known.

    Tokens inside words begin with `CONTINUES`, as WordPiece's with ##. Words are those of `bpe`,
    except that each Chinese character is a word, as in BERT. InputError for a size below 517.
    """
    _at_least(size, 517, "the special tokens and the 256 bytes, first or not in their word")
    return _learned(_masked_bpe, docs, size)


def _masked_bpe(docs: AnyDocuments, size: int) -> Tokenizer:
    tk = package()
    alphabet = sorted(tk.pre_tokenizers.ByteLevel.alphabet())
    trained = tk.Tokenizer(tk.models.BPE(continuing_subword_prefix=CONTINUES))
    trained.pre_tokenizer = _byte_level(f"{HAN_ALONE}|{OTHERS}")
    # Bytes are special tokens of the training for the reason given in _wordpiece.
    trained.train_from_iterator(
        _parts(docs),
        tk.trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[*SPECIAL_TOKENS, *alphabet, *(CONTINUES + c for c in alphabet)],
            show_progress=False,
            initial_alphabet=alphabet,
            continuing_subword_prefix=CONTINUES,
        ),
    )
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    tokenizer = tk.Tokenizer(
        tk.models.BPE(trained.get_vocab(), merges, continuing_subword_prefix=CONTINUES)
    )
    tokenizer.pre_tokenizer = trained.pre_tokenizer
    tokenizer.decoder = tk.decoders.Sequence(
        [tk.decoders.Replace(CONTINUES, ""), tk.decoders.ByteLevel()]
    )
    return _with_special_tokens(tokenizer)


def wordpiece(docs: AnyDocuments, size: int) -> Tokenizer:
    """WordPiece as in BERT (Devlin et al., 2018, arXiv:1810.04805), `SPECIAL_TOKENS` first.

    Lower case. Deviations, so that nothing of the documents is lost but case: every character of
    the documents is in the vocabulary; a character that isn't, is [UNK] alone and not with its
    word; words of more than 90 characters are cut (to BERT they are [UNK]); accents and other marks
    are kept (in Devanagari, Thai or Japanese a word without its marks is another word), in composed
    form (NFC). Each Chinese character is a word, as in BERT. InputError where the characters of the
    documents don't fit.
    """
    return _learned(_wordpiece, docs, size)


def _wordpiece(docs: AnyDocuments, size: int) -> Tokenizer:
    tk = package()
    bert = tk.normalizers.BertNormalizer(clean_text=False, strip_accents=False, lowercase=True)
    normalizer = tk.normalizers.Sequence([bert, tk.normalizers.NFC()])
    splitter = tk.pre_tokenizers.BertPreTokenizer()
    found = set().union(*(normalizer.normalize_str(text) for text in _parts(docs)))
    letters = sorted(c for c in found if splitter.pre_tokenize_str(c))
    alone = lambda c: len(splitter.pre_tokenize_str(normalizer.normalize_str(f"a{c}a"))) == 3
    inside = [f"##{c}" for c in letters if not alone(c)]
    _at_least(
        size,
        len(SPECIAL_TOKENS) + len(letters) + len(inside),
        f"the special tokens and the {len(letters)} different characters of the text, first or not "
        "in their word",
        ", or --tokens bpe, which has any character",
    )
    trained = tk.Tokenizer(tk.models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizer
    trained.pre_tokenizer = tk.pre_tokenizers.Sequence(
        [
            splitter,
            tk.pre_tokenizers.Split(tk.Regex(_none_of(letters)), "isolated"),
            tk.pre_tokenizers.Split(tk.Regex(r"[\s\S]{1,90}\p{M}{0,10}"), "isolated"),
        ]
    )
    # The trainer numbers the characters within words as it meets them, in an order that differs
    # from run to run, and breaks ties by these numbers; as special tokens they have fixed numbers.
    trained.train_from_iterator(
        _parts(docs),
        tk.trainers.WordPieceTrainer(
            vocab_size=size,
            special_tokens=[*SPECIAL_TOKENS, *letters, *inside],
            show_progress=False,
            initial_alphabet=letters,
            limit_alphabet=len(letters),
        ),
    )
    tokenizer = tk.Tokenizer(tk.models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    tokenizer.decoder = tk.decoders.WordPiece()
    return _with_special_tokens(tokenizer)


def _none_of(letters: list[str]) -> str:
    """A regular expression of one character that isn't among these sorted ones."""
    numbers = np.array([ord(c) for c in letters])
    first = np.flatnonzero(np.diff(numbers, prepend=-2) > 1)
    last = np.append(first[1:], len(numbers)) - 1
    ranges = (rf"\x{{{a:x}}}-\x{{{b:x}}}" for a, b in zip(numbers[first], numbers[last]))
    return f"[^{''.join(ranges)}]" if letters else r"[\s\S]"


def _with_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = package().processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def counts_of(tokenizer: Tokenizer, tokens: np.ndarray) -> np.ndarray:
    """How often each token of the vocabulary is in `tokens` (any shape), without -1, for none."""
    return np.bincount(tokens[tokens >= 0], minlength=tokenizer.get_vocab_size())


def id_of(tokenizer: Tokenizer, token: str) -> int:
    """The id of a special token; InputError where the tokenizer lacks it."""
    if (found := tokenizer.token_to_id(token)) is None:
        raise InputError(f"The tokenizer has no token {token}, which masked models need.")
    return found


def unknown_share(tokenizer: Tokenizer, counts: np.ndarray) -> float | None:
    """Percent of the tokens counted that is the unknown token; None where the tokenizer has none.

    Special tokens don't count.
    """
    name = getattr(tokenizer.model, "unk_token", None)  # Unigram's, as T5's, has none.
    if name is None or (unknown := tokenizer.token_to_id(name)) is None:
        return None
    special = [tokenizer.token_to_id(t) for t in SPECIAL_TOKENS if t != name]
    total = counts.sum() - sum(counts[i] for i in special if i is not None)
    return 100 * float(counts[unknown] / total) if total else 0.0


def check_unknown(
    tokenizer: Tokenizer, train: np.ndarray, test: np.ndarray, cure: str = "give --tokens bpe"
) -> None:
    """Says the share of unknown tokens of both texts on one line, where there can be some.

    Both are given as `counts_of` their tokens. InputError with the `cure` where a text is mostly
    unknown: a model would learn to predict it.
    """
    found = [unknown_share(tokenizer, counts) for counts in (train, test)]
    shares = [share for share in found if share is not None]
    if not shares:  # Of a tokenizer that knows all.
        return
    say(f"unknown tokens: {shares[0]:.2f} % of the training text, {shares[1]:.2f} % held out")
    for name, share in zip(("training", "held-out"), shares):
        if share > MOSTLY:
            raise InputError(
                f"{share:.1f} % of the tokens of the {name} text are unknown to this vocabulary: "
                f"{cure}."
            )


def _learned(make: Callable[..., Tokenizer], docs: AnyDocuments, *given: Any) -> Tokenizer:
    """What `make(docs, *given)` makes, cached for large documents; or a run's (`described`)."""
    if own := described.own_tokenizer():
        return own
    # The source is part of the key, so that no tokenizer of an older version is taken.
    recipe = f"{inspect.getsource(sys.modules[__name__])} {make.__name__} {given}"
    return package().Tokenizer.from_str(
        str(_cached(recipe, docs, lambda: {"json": np.array(make(docs, *given).to_str())})["json"])
    )


def _cached(
    what: str, docs: AnyDocuments, make: Callable[[], Mapping[str, np.ndarray]]
) -> Mapping[str, np.ndarray]:
    """Arrays that `make` makes of large documents, cached: tens of megabytes take minutes."""
    if docs.lengths.sum() < LARGE:
        return make()
    key = hashlib.sha256(f"{package().__version__} {what} {identity(docs)}".encode())
    path = cache.cache_file(key.hexdigest())
    if cached := cache.read_cache(path):
        return cached
    made = make()
    cache.store(path, **made)
    return made


def _at_least(size: int, least: int, what: str, otherwise: str = "") -> None:
    if size < least:
        raise InputError(
            f"A vocabulary of {size} can't hold {what}: choose at least {least}{otherwise}."
        )


def load_tokenizer(run_folder: str | pathlib.Path) -> Tokenizer:
    """The tokenizer that a run keeps as tokenizer.json; InputError where there is none."""
    path = pathlib.Path(run_folder).expanduser() / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{run_folder} holds no tokenizer.json: give the folder of a run on text.")
    tk = package()
    try:
        return tk.Tokenizer.from_file(str(path))
    except Exception as e:  # The package raises nothing narrower.
        raise InputError(f"{path} can't be read as a tokenizer ({e}).") from e


def encode(tokenizer: Tokenizer, docs: Documents) -> tuple[np.ndarray, np.ndarray]:
    """All tokens, (n,) int32, without special tokens, and offsets of the documents, (d + 1,).

    Document i is tokens[offsets[i]:offsets[i + 1]].
    """
    made = _cached(tokenizer.to_str(), docs, lambda: _encode(tokenizer, docs))
    return made["tokens"], made["offsets"]


def _encode(tokenizer: Tokenizer, docs: Documents) -> Mapping[str, np.ndarray]:
    found, sizes = [np.zeros(0, np.int32)], np.zeros(len(docs) + 1, np.int64)
    for whose, tokens in encoded(tokenizer, docs):
        found += tokens
        np.add.at(sizes, np.array(whose) + 1, list(map(len, tokens)))
    return {"tokens": np.concatenate(found), "offsets": np.cumsum(sizes)}


def encoded(
    tokenizer: Tokenizer, docs: AnyDocuments, end: int | None = None
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Tokens of parts of the documents, int32, and the document that each part is of.

    A batch of parts at a time, since the package's object of a token is many times larger than its
    number; in its threads. Each document is followed by the token `end` if there is one.
    """
    table = _numbers(tokenizer) if is_characters(tokenizer) else None
    whose: list[int] = []
    batch: list[str | None] = []
    size = 0

    def tokens() -> list[np.ndarray]:
        parts = [part for part in batch if part is not None]
        if table is None:
            made = tokenizer.encode_batch_fast(parts, add_special_tokens=False)
            found = (np.array(e.ids, np.int32) for e in made)
        else:
            numbers = (
                np.frombuffer(part.encode("utf-32-le"), np.uint32) for part in map(compose, parts)
            )
            found = (table[x] for x in numbers)
        return [np.array([end], np.int32) if part is None else next(found) for part in batch]

    for i, parts in enumerate(docs.parts()):
        for part in itertools.chain(parts, [] if end is None else [None]):
            whose.append(i)
            batch.append(part)
            size += len(part or "")
            if size >= BATCH:
                yield whose, tokens()
                whose, batch, size = [], [], 0
    if batch:
        yield whose, tokens()


def is_characters(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is one of `characters`."""
    return isinstance(tokenizer.pre_tokenizer, package().pre_tokenizers.Split)


def _numbers(tokenizer: Tokenizer) -> np.ndarray:
    """Token of each character by its number in Unicode: much faster than the package."""
    vocabulary = tokenizer.get_vocab()
    table = np.full(sys.maxunicode + 1, vocabulary["[UNK]"], np.int32)
    for character, i in vocabulary.items():
        if len(character) == 1:
            table[ord(character)] = i
    return table
