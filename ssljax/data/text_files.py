"""Files of texts, read in parts: plain text, JSON lines and Parquet, compressed or not."""

import codecs
from collections.abc import Callable, Iterable, Iterator, Sequence
import gzip
import itertools
import json
import pathlib
import re
from typing import Any
import unicodedata
import zlib

from ssljax import extras
from ssljax.errors import InputError

PART = 2**16  # Characters of a part of a text, or a few more.
CHUNK = 2**20  # Bytes that are read at once.
COMPRESSED = (".gz", ".zst")
# No token reaches over such a place, nor does Unicode's composed form: after a line end between two
# lines, or before a space between two words.
PLACE = re.compile(r"(?<=\S)(?:\n(?=\S)|(?= \S))")
# A text that CSV's writers have quoted, which is certain only where it holds a quote.
QUOTED = re.compile(r'"([^"]|"")*[^"]""([^"]|"")*"')
# Those of UTF-32 begin with those of UTF-16.
MARKS: dict[bytes, tuple[str, Callable]] = {
    codecs.BOM_UTF8: ("UTF-8", codecs.utf_8_decode),
    codecs.BOM_UTF32_LE: ("UTF-32", codecs.utf_32_le_decode),
    codecs.BOM_UTF32_BE: ("UTF-32", codecs.utf_32_be_decode),
    codecs.BOM_UTF16_LE: ("UTF-16", codecs.utf_16_le_decode),
    codecs.BOM_UTF16_BE: ("UTF-16", codecs.utf_16_be_decode),
}


# Usual names of a column of captions; title is OpenCLIP's.
CAPTION = ("title", "caption", "text", "description")


def captions_of(texts: Iterable[str]) -> list[str]:
    """Captions: each once, in composed form, with single spaces; without empty ones."""
    found = (compose(" ".join(text.replace("\0", " ").split())) for text in texts)
    return list(dict.fromkeys(text for text in found if text))


def caption_columns(names: Iterable[str]) -> list[str]:
    """Those of a table's columns that may be of captions, the one that is read first."""
    by_name = {name.strip().lower(): name for name in names}
    return [by_name[usual] for usual in CAPTION if usual in by_name]


def unread_columns(columns: Sequence[str]) -> str:
    """A note on which of `caption_columns` is read; empty where there is no choice."""
    some = " and ".join(columns[1:])
    verb = "are" if len(columns) > 2 else "is"
    return f"captions are of the column {columns[0]}, and {some} {verb} not read" if some else ""


def captions_beside(picture: pathlib.Path) -> list[str] | None:
    """The captions of a picture, the lines of a .txt of its name; None where there is no such file.

    InputError where it is not in UTF-8.
    """
    file = picture.with_suffix(".txt")
    try:
        return captions_of(file.read_text("utf-8-sig").splitlines())
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as e:
        raise InputError(f"{file} is not written in UTF-8 ({e}): write it so.") from e


def compose(text: str) -> str:
    """Unicode's composed form, NFC: an accent is one character with its letter where it can be."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def text_parts(text: Iterable[str], size: int = PART) -> Iterator[str]:
    """A text, given in any pieces, in parts of about `size` characters.

    Parts end at a `PLACE`, so that end to end they have the composed form and the tokens of the
    whole. A text without such places is one part.
    """
    held, searched = "", 0
    for piece in text:
        held += piece
        begin, place = 0, None
        while len(held) - begin > size:
            place = PLACE.search(held, max(begin + size, searched))
            if place is None:
                break
            yield held[begin : place.end()]
            begin = place.end()
        held = held[begin:]
        # A place that the next piece completes is at the end of this one.
        searched = max(0, len(held) - 2) if len(held) > size else 0
    if held:
        yield held


def is_compressed(path: pathlib.Path) -> bool:
    return path.suffix.lower() in COMPRESSED


def kind_of(path: pathlib.Path) -> str:
    """The suffix of a file without that of its compression, in lower case."""
    return (path.with_suffix("") if is_compressed(path) else path).suffix.lower()


def read_documents(path: pathlib.Path) -> Iterator[Iterator[str]]:
    """The documents of a file, each in parts (`text_parts`), in composed form and with Unix line
    ends; InputError with the place of what is wrong.

    Plain text is one document; each line of .jsonl and each row of .parquet is one.
    """
    kind = kind_of(path)
    if kind not in (".jsonl", ".parquet"):
        yield _one_document(path)
        return
    empty = True
    for text in _json_lines(path) if kind == ".jsonl" else _parquet(path):
        empty = False
        yield map(compose, text_parts([text.replace("\r\n", "\n")]))
    if empty:
        raise _is_empty(path)


def _one_document(path: pathlib.Path) -> Iterator[str]:
    empty = True
    for part in text_parts(_text(path)):
        empty = empty and not part.strip()
        yield compose(part)
    if empty:
        raise _is_empty(path)


def _is_empty(path: pathlib.Path) -> InputError:
    return InputError(f"{path} is empty: there is nothing to learn from in it.")


def _bytes(path: pathlib.Path) -> Iterator[bytes]:
    """The bytes of a file, without its compression."""
    try:
        if path.suffix.lower() == ".zst":
            yield from _zstd(path)
            return
        with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise InputError(
            f"{path} can't be decompressed ({e}): it is damaged or cut short; get it again."
        ) from e
    except OSError as e:
        raise InputError(
            f"{path} can't be read ({e.strerror or e}): check the path given as --data."
        ) from e


def _zstd(path: pathlib.Path) -> Iterator[bytes]:
    try:
        import zstandard  # pyright: ignore[reportMissingImports] - not required
    except ImportError:
        raise InputError(
            f"{path} needs the package zstandard to be read: run `pip install zstandard`, or "
            f"decompress it with `unzstd {path}`."
        ) from None
    frame = None  # A file may have several.
    try:
        with open(path, "rb") as file:
            while data := file.read(CHUNK):
                while data:
                    frame = frame or zstandard.ZstdDecompressor().decompressobj()
                    yield frame.decompress(data)
                    data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    except zstandard.ZstdError as e:
        raise EOFError(str(e)) from e
    if frame is not None:
        raise EOFError("its last frame has no end")


def _text(path: pathlib.Path) -> Iterator[str]:
    """The text of a file, some at a time, with Unix line ends.

    UTF-8, or what the mark at its beginning says.
    """
    name, decode = "", codecs.utf_8_decode
    held, place, end = b"", 0, ""
    for chunk in itertools.chain(_bytes(path), [None]):
        held += chunk or b""
        if not name:
            if chunk is not None and len(held) < 4:
                continue
            mark = next((m for m in MARKS if held.startswith(m)), b"")
            name, decode = MARKS[mark or codecs.BOM_UTF8]
            held, place = held[len(mark) :], len(mark)
        try:
            text, used = decode(held, "strict", chunk is None)
        except UnicodeDecodeError as e:
            raise InputError(
                f"{path} is not {name} (byte {place + e.start} is {held[e.start]:#04x}): convert "
                "it, as in `iconv -f latin1 -t utf-8`."
            ) from None
        held, place = held[used:], place + used
        text = end + text
        end = "\r" if text.endswith("\r") and chunk is not None else ""
        yield text[: len(text) - len(end)].replace("\r\n", "\n")


def _lines(text: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    for piece in text:
        first, *rest = piece.split("\n")
        held.append(first)
        if rest:
            yield "".join(held)
            yield from rest[:-1]
            held = rest[-1:]
    yield "".join(held)


def _json_lines(path: pathlib.Path) -> Iterator[str]:
    for number, line in enumerate(_lines(_text(path)), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number},"
        row = _json_of(line, where, 'an object with a text, such as {"text": "..."}')
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise InputError(
                f'{where} has no text: each line must be an object such as {{"text": "..."}}.'
            )
        if "\\u" in line:
            _check_unicode(text, where)
        yield text


def _json_of(line: str, where: str, must_be: str) -> Any:
    """What a line holds; InputError with its place, and what it must be, where that is no JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as e:
        raise InputError(f"{where} is not JSON ({e}): each line must be {must_be}.") from None


def read_pairs(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """The pairs of a .tsv or .jsonl file, compressed or not, each in composed form.

    A line of .tsv is the input, a tab and the target, without quoting, after a first line "input",
    tab, "target", if there is one; of .jsonl, an object with the texts "input" and "target".
    InputError with the place of what is wrong.
    """
    jsonl, n = kind_of(path) == ".jsonl", 0
    for number, line in enumerate(_lines(_text(path)), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number},"
        if jsonl:
            row = _json_of(line, where, 'an object such as {"input": "...", "target": "..."}')
            pair = [row.get(k) if isinstance(row, dict) else None for k in ("input", "target")]
            if not all(isinstance(text, str) for text in pair):
                raise InputError(
                    f"{where} has no input and target: each line must be an object such as "
                    '{"input": "...", "target": "..."}.'
                )
            if "\\u" in line:
                _check_unicode("".join(map(str, pair)), where)
        elif len(pair := line.split("\t")) != 2:
            raise InputError(
                f"{where} has {len(pair) - 1} tabs: each line must be an input, one tab and its "
                "target (texts with tabs or line ends can be given as .jsonl)."
            )
        elif number == 1 and [text.strip().lower() for text in pair] == ["input", "target"]:
            continue
        elif any(map(QUOTED.fullmatch, pair)):
            raise InputError(
                f"{where} has a text in quotes that doubles those within it, as CSV does: write "
                "texts as they are, or as .jsonl."
            )
        a, b = (compose(str(text).replace("\r\n", "\n")) for text in pair)
        if not a.strip() or not b.strip():
            raise InputError(f"{where} has an empty input or target: remove the line.")
        n += 1
        yield a, b
    if not n:
        raise _is_empty(path)


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise InputError(
            f"{where} has half of a surrogate pair (\\u{ord(text[e.start]):04x}), which is no "
            "character: repair or remove it."
        ) from None


def _parquet(path: pathlib.Path) -> Iterator[str]:
    pyarrow = extras.load("pyarrow", str(path))
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow
            kind = str(columns.field("text").type) if "text" in columns.names else "missing"
            if kind not in ("string", "large_string", "string_view"):
                raise InputError(
                    f"{path} has no column of texts named text (it has "
                    f"{', '.join(f'{f.name}: {f.type}' for f in columns)}): rename the column."
                )
            row = 0
            for batch in file.iter_batches(batch_size=1000, columns=["text"]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if text is None:
                        raise InputError(f"{path}, row {row}, has no text: remove the row.")
                    yield text
    except (OSError, pyarrow.ArrowException) as e:
        raise InputError(f"{path} can't be read as Parquet ({_first_line(e)}).") from e


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]


def sizes_and_times(files: Sequence[pathlib.Path]) -> str:
    """Lines of paths, sizes and times of files, by which what is made of them is cached."""
    stats = [(f, f.stat()) for f in map(pathlib.Path.absolute, files)]
    return "\n".join(f"{f} {s.st_size} {s.st_mtime_ns}" for f, s in stats)
