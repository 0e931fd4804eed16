"""Image sets in NumPy's files, .npz and .npy."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
import pathlib
import re
import struct
import zipfile
import zlib

import numpy as np

from ssljax.data.decode import fit
from ssljax.data.folders import split_of
from ssljax.data.sources import Arrays, fits_in_memory, OnDisk, select, Source
from ssljax.data.splits import hash_of_indices, held_out
from ssljax.errors import InputError

IMAGE_WORDS = {"images", "image", "imgs", "img", "x", "data", "arr", "pixels"}
LABEL_WORDS = {"labels", "label", "y", "targets", "target", "classes", "class"}
BROKEN = ValueError, TypeError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error
CHUNK = 2**26  # Bytes that are looked at or converted at once.


@dataclass(frozen=True)
class Member:
    """Array in a file, whose values are not read yet."""

    path: pathlib.Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int | None  # Where the values begin in the file; None where they are compressed.
    files: str  # What stands for the content in a run's record.

    def read(self) -> np.ndarray:
        """The values; mapped from the file where they are too many for the memory."""
        if fits_in_memory(1, (int(np.prod(self.shape)) * self.dtype.itemsize,)):
            found = np.load(self.path, allow_pickle=False)
            return found[self.key] if isinstance(found, np.lib.npyio.NpzFile) else found
        if self.start is None:
            raise InputError(
                f"{self.path} is compressed, and {self.key} too large to be read whole: save it "
                "with np.savez instead of np.savez_compressed."
            )
        order = "F" if self.fortran else "C"
        return np.memmap(self.path, self.dtype, "r", self.start, self.shape, order)


def array_images(path: pathlib.Path, split: str, size: int, named: str = "") -> tuple[Source, str]:
    """The "train" or "test" images of a file of arrays, and the line to be printed.

    An .npz holds images (n, height, width[, channels]) and perhaps labels, one for each, under
    usual names: train_images, x_train, X_test, y_test, val_labels; or images, labels, x, y, data,
    arr_0, arr_1, of which a tenth is held out for testing by a hash of the index. So it is where
    there is no test split; images of validation are one. An .npy holds images. `named` is the
    split to train on, as in FILE:val.

    Images are uint8. Whole numbers up to 255 of another type, fractions k/255, and booleans are
    converted; of larger whole numbers below 65536 the upper 8 of the bits that they have. Labels
    are whole numbers or strings, numbered by their order in both splits; a split whose labels are
    all negative has none. Files larger than the memory for sets are read as they are needed.
    InputError says what is wrong with the file or its arrays.
    """
    members = _members(path)
    roles, left = _roles(path, members)
    train = split_of(named) if named else next((s for s in ("train", "") if (s, "x") in roles), "")
    if (train, "x") not in roles:
        needs = (
            f"{named}_images or x_{named}"
            if named
            else "train_images or x_train, or images; and test_images, train_labels and "
            "test_labels, if there are any"
        )
        raise InputError(
            f"{path} holds {', '.join(members) or 'nothing'}; it needs images to train on, named "
            f"{needs}."
        )
    tests = [s for s in ("test", "val") if (s, "x") in roles and s != train]
    used = {"train": train, "test": tests[0]} if tests and train else {"train": train}
    left += [m.key for (s, _), m in roles.items() if s not in used.values()]
    images = {s: roles[own, "x"] for s, own in used.items()}
    for member in images.values():
        _check_shape(path, member)
    shapes = {m.shape[1:3] + (m.shape[3:] or (1,)) for m in images.values()}
    if len(shapes) > 1:
        a, b = (m.shape[1:] for m in images.values())
        raise InputError(
            f"{path}: images to train are {a}, and those to test {b}: give them one size, and as "
            "many channels."
        )
    labels, names = _labels(path, {s: roles.get((own, "y")) for s, own in used.items()}, images)
    arrays = {s: _read(path, m) for s, m in images.items()} if _is_scaled(images) else {}
    convert, how = _conversion(path, {s: m.dtype for s, m in images.items()}, arrays)
    of = split if split in used else "train"
    member = images[of]
    values = arrays[of] if of in arrays else _read(path, member)
    source = _source(values, convert, size, labels[of], names, member.files)
    counts = {s: m.shape[0] for s, m in images.items()}
    notes = [how] if how else []
    if "test" not in used:
        out = held_out(hash_of_indices(len(source), "test"), source.labels)
        if not out.any():
            raise InputError(f"{path} holds too few images to hold some out for testing: add some.")
        source = select(source, np.flatnonzero(out == (split == "test")))
        counts = {"train": int((~out).sum()), "test": int(out.sum())}
        notes.append("a tenth is held out by a hash of the index, for there is no test split")
    elif used["test"] == "val":
        notes.append("those of validation are the test split")
    n = len(names)
    form = f"in {n:,} class{'es' * (n > 1)}" if n else "without classes"
    line = (
        f"{path}: {sum(counts.values()):,} images {form}, {counts['train']:,} to train, "
        f"{counts['test']:,} to test"
    )
    line = "; ".join([line, *notes])
    return source, line + (f". Left out: {', '.join(left)}" if left else "")


def _members(path: pathlib.Path) -> dict[str, Member]:
    """The arrays in a file, by name."""
    found = {}
    try:
        with open(path, "rb") as raw:
            if path.suffix.lower() == ".npy":
                stat = path.stat()
                return {"images": _member(path, "images", raw, 0, f"{stat.st_size}")}
            with zipfile.ZipFile(raw) as archive:
                for info in archive.infolist():
                    start = None
                    if info.compress_type == zipfile.ZIP_STORED:
                        raw.seek(info.header_offset + 26)
                        start = info.header_offset + 30 + sum(struct.unpack("<HH", raw.read(4)))
                    key = info.filename.removesuffix(".npy")
                    what = f"{key} {info.file_size} {info.CRC}"
                    with archive.open(info) as file:
                        found[key] = _member(path, key, file, start, what)
    except FileNotFoundError:
        raise InputError(f"There is no file {path}: check the path given as --data.") from None
    except BROKEN as e:
        raise _unreadable(path, e) from e
    return found


def _member(path: pathlib.Path, key: str, file, start: int | None, files: str) -> Member:
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0}
    shape, fortran, dtype = header.get(version, np.lib.format.read_array_header_2_0)(file)
    if dtype.hasobject:
        raise ValueError(f"{key} holds Python objects")
    return Member(
        path, key, shape, dtype, fortran, None if start is None else start + file.tell(), files
    )


def _unreadable(path: pathlib.Path, error: Exception) -> InputError:
    return InputError(f"{path} can't be read as an {path.suffix} of arrays ({error}).")


def _read(path: pathlib.Path, member: Member) -> np.ndarray:
    try:
        return member.read()
    except InputError:
        raise
    except BROKEN as e:
        raise _unreadable(path, e) from e


def _roles(
    path: pathlib.Path, members: Mapping[str, Member]
) -> tuple[dict[tuple[str, str], Member], list[str]]:
    """{(split, "x" or "y"): array} by the arrays' names, and the names of other arrays.

    The split is "" for arrays that name none.
    """
    found: dict[tuple[str, str], Member] = {}
    left = []
    for key, member in members.items():
        words = re.findall(r"[a-z]+|\d+", re.sub(r"([a-z])([A-Z])", r"\1_\2", key).lower())
        splits = [split for word in words if (split := split_of(word))]
        rest = [word for word in words if not split_of(word)]
        if rest in (["arr", "0"], ["arr", "1"]):
            rest = ["x"] if rest[1] == "0" else ["y"]
        roles = {
            "x" if word in IMAGE_WORDS else "y" if word in LABEL_WORDS else "" for word in rest
        }
        role = next(iter(roles)) if len(roles) == 1 else "" if roles else "x"
        if len(splits) > 1 or not role or not (splits or rest):
            left.append(key)
            continue
        place = splits[0] if splits else "", role
        if place in found:
            raise InputError(
                f"{path} holds {found[place].key} and {key}, of which only one can be read: remove "
                "one, or give it another name."
            )
        found[place] = member
    return found, left


def _check_shape(path: pathlib.Path, member: Member) -> None:
    shape = member.shape
    if len(shape) not in (3, 4):
        raise InputError(
            f"{path}: {member.key} must be images, (n, height, width[, channels]), not "
            f"{member.dtype} {shape}."
        )
    if 0 in shape or (len(shape) == 4 and shape[1] in (1, 3) and shape[3] > 4):
        raise InputError(
            f"{path}: {member.key} must be one image or more, (n, height, width[, channels]), "
            f"channels last, not {shape}."
        )


def _labels(
    path: pathlib.Path, members: Mapping[str, Member | None], images: Mapping[str, Member]
) -> tuple[dict[str, np.ndarray | None], list[str]]:
    """Labels of each split, numbered by their order in both, and the names of the classes."""
    values: dict[str, np.ndarray] = {}
    for split, member in members.items():
        if member is None:
            continue
        x, n = _read(path, member).reshape(-1), images[split].shape[0]
        if len(x) != n:
            raise InputError(
                f"{path}: each image needs a label, but {member.key} has {len(x)} labels for {n} "
                "images: give one number or string for each."
            )
        if x.dtype.kind in "iu" and (x >= 0).all():
            values[split] = x.astype(np.int64)
        elif x.dtype.kind in "bUS":
            values[split] = x.astype(str)
        elif x.dtype.kind != "i" or (x >= 0).any():
            raise InputError(
                f"{path}: {member.key} must be whole numbers from 0 on, or strings, not {x.dtype} "
                f"from {x.min()} to {x.max()}; images without labels have negative ones, all."
            )
    if len({x.dtype.kind for x in values.values()}) > 1:
        raise InputError(f"{path}: labels must be numbers or strings in both splits.")
    labels: dict[str, np.ndarray | None] = dict.fromkeys(members)
    if not values:
        return labels, []
    names, at = np.unique(np.concatenate(list(values.values())), return_inverse=True)
    ends = np.cumsum([len(x) for x in values.values()])[:-1]
    labels |= dict(zip(values, np.split(at.astype(np.int32), ends)))
    return labels, [str(name) for name in names]


Convert = Callable[[np.ndarray], np.ndarray]


def _is_scaled(images: Mapping[str, Member]) -> bool:
    """Whether the values decide how images become uint8."""
    return any(m.dtype.kind in "iuf" and m.dtype != np.uint8 for m in images.values())


def _chunks(x: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, CHUNK // max(1, x[0].nbytes))
    return (x[i : i + step] for i in range(0, len(x), step))


def _conversion(
    path: pathlib.Path, dtypes: Mapping[str, np.dtype], arrays: Mapping[str, np.ndarray]
) -> tuple[Convert, str]:
    """How images of both splits become uint8, and a note on it."""
    kinds = {dtype.kind for dtype in dtypes.values()}
    if len(kinds) > 1 or not kinds <= set("biuf"):
        raise InputError(
            f"{path}: images must be uint8, not {' and '.join(map(str, dtypes.values()))}."
        )
    if kinds == {"b"}:
        return lambda x: x.astype(np.uint8) * np.uint8(255), "true is read as 255"
    if not arrays:
        return lambda x: x, ""
    dtype = next(iter(dtypes.values()))
    ends = [(c.min(), c.max()) for x in arrays.values() for c in _chunks(x)]
    low, high = min(float(a) for a, _ in ends), max(float(b) for _, b in ends)
    whole = all((c == np.round(c)).all() for x in arrays.values() for c in _chunks(x))
    if low >= 0 and whole and high < 256 and (kinds != {"f"} or high > 1):
        return lambda x: x.astype(
            np.uint8
        ), f"whole numbers from {low:.0f} to {high:.0f} of type {dtype}"
    if low >= 0 and kinds != {"f"} and high < 2**16:
        bits = int(high).bit_length()
        return (
            lambda x: (x >> (bits - 8)).astype(np.uint8),
            f"of their {bits} bits (up to {high:.0f}) the upper 8 are read",
        )
    to_bytes = lambda x: np.round(x * 255.0)
    if low >= 0 and high <= 1:
        exact = all(
            np.allclose(to_bytes(c) / 255, c, rtol=0, atol=1e-3 if dtype.itemsize < 4 else 1e-6)
            for x in arrays.values()
            for c in _chunks(x)
        )
        if exact:
            return lambda x: to_bytes(x).astype(np.uint8), "fractions of 255 are read as those"
    scaled = "np.round(x)" if low >= 0 and 1 < high <= 255 else f"np.round(x * {255 / high:.6g})"
    if high <= 1 and low >= 0:
        scaled = "np.round(x * 255)"
    elif low < 0 or not np.isfinite([low, high]).all():
        scaled = "np.round(255 * (x - low) / (high - low))"
    raise InputError(
        f"{path}: images must be uint8, not {dtype} from {low:g} to {high:g}: save them as "
        f"{scaled}.astype(np.uint8), if that is what their values mean."
    )


def _source(
    values: np.ndarray,
    convert: Convert,
    size: int,
    labels: np.ndarray | None,
    names: list[str],
    files: str,
) -> Source:
    values = values[..., None] if values.ndim == 3 else values
    n, *shape = values.shape
    resize = bool(size) and shape[:2] != [size, size]
    shape = [size, size, shape[2]] if resize else shape
    names = [] if labels is None else names

    def image(i: int) -> np.ndarray:
        x = convert(np.asarray(values[i]))
        return fit(x, size) if resize else x

    if not fits_in_memory(n, tuple(shape)):
        return OnDisk(image, labels, names, tuple(shape), count=n, files=files)
    if not resize and values.dtype == np.uint8:
        return Arrays(np.ascontiguousarray(values), labels, names)
    if not resize:
        found = np.empty(values.shape, np.uint8)
        done = 0
        for chunk in _chunks(values):
            found[done : done + len(chunk)] = convert(chunk)
            done += len(chunk)
        return Arrays(found, labels, names)
    return Arrays(np.stack([image(i) for i in range(n)]), labels, names)
