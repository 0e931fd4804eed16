"""Recordings: windows of sound from a folder of files, and log-mel spectrograms.

Recordings are read as a set whose `image` is a wave, (samples,) int16, which feeds and evaluators
take as they take images.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import contextlib
from dataclasses import dataclass
import errno
import functools
import hashlib
import math
import os
import pathlib
from typing import Any, NamedTuple, TYPE_CHECKING

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm
import tyro

from ssljax import extras
from ssljax.data import described
from ssljax.data.cache import cache_file, read_cache, store
from ssljax.data.decode import Unreadable
from ssljax.data.folders import find_files, RECORDINGS
from ssljax.data.sources import Arrays, OnDisk, RESIDENT_BYTES, Source, without_validation
from ssljax.errors import InputError, OF_MACHINE
from ssljax.fingerprint import names_and_sizes, reported
from ssljax.processes import say
from ssljax.ranges import Count

if TYPE_CHECKING:
    from soundfile import SoundFile

EMBEDDED = "signals"
REMOVE = "repair or remove it, or leave out all such files with --skip-bad."
BLOCK = 2**20  # Frames, or samples, that are read at once.
PART = 10_000  # Files whose headers are read between two writes of the index.
HEADER = np.dtype([("key", np.uint64), ("frames", np.int64), ("rate", int), ("peak", float)])


class RecordingSets(NamedTuple):
    """What `Recordings` names, as it was read."""

    train: Source
    test: Source
    labelled: bool
    """Whether both have labels."""


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)  # --data, not --data.data.
@dataclass(frozen=True)
class Recordings:
    """Recordings to learn from, cut into waves of one length."""

    data: str = EMBEDDED
    """Recordings to learn from: signals (embedded), or a folder of them, labelled or not."""
    rate: Count = 8000
    """Samples a second that recordings are resampled to; embedded signals keep their own."""
    wave: Count = 128
    """Samples of a wave; longer recordings are cut into several waves."""
    skip_bad: bool = False
    """Leave out files that can't be read, and count them, instead of stopping at the first."""

    def read(self) -> RecordingSets:
        """The sets that the fields name. InputError says what is wrong with a folder or a file."""
        train, test = (
            recordings(self.data, split, self.wave, self.rate, skip_bad=self.skip_bad)
            for split in ("train", "test")
        )
        return RecordingSets(train, test, train.labels is not None and test.labels is not None)


@reported("windows of recordings")
def recordings(
    data: str, split: str, length: int, rate: int = 8000, *, skip_bad: bool = False
) -> Source:
    """The "train" or "test" windows of `length` samples of the recordings in `data`.

    `data` is a folder, whose files, in any nesting, are split and have classes, or none, as
    `ssljax/data/folders.py` says; or FOLDER:NAME, as there. Channels are averaged, and the whole
    recording is resampled to `rate` samples a second. Windows follow each other; the end of a
    recording is padded with zeros if it fills at least half a window (and else left out), as is a
    recording shorter than a window. Recordings of floats that exceed 1 are divided by their peak.
    What was found is printed.

    The headers of all files are read once, and kept in the cache by the files' names, sizes and
    times of change; recordings of floats are read whole for it, for their peak. Windows of 2 GiB
    or less are in memory, and the waves that they are cut from in the cache. More are read as they
    are needed: Ogg Vorbis, in which libsndfile doesn't seek, from the start of the file each time,
    so make FLAC of long ones. With `skip_bad`, files that can't be opened or have no last sample
    are left out.

    Or `data` is "signals": embedded, the example data of Matplotlib, four channels of an EEG and
    the potential of a cell's membrane, at rates of their own; measured, but not sound.

    DATA:validation never reads the test recordings: its "test" is a tenth of each class of the
    training recordings (of "signals", the last third of each training signal), its "train" the
    rest. InputError says what is wrong with the folder or a file.
    """
    if length < 1 or rate < 1:
        raise InputError(
            f"A window must have a sample or more, at 1 Hz or more, not {length} at {rate} Hz."
        )
    whole = without_validation(data)
    name = whole or data
    if name == EMBEDDED:
        return _signals(split, length, bool(whole))
    root, named = pathlib.Path(name).expanduser(), ""
    if not root.is_dir():
        base, _, named = name.rpartition(":")
        root = pathlib.Path(base or name).expanduser()
    if not root.is_dir():
        if described.planning():
            absent = described.windows(length)
            say(f"{data} isn't here: planned as {len(absent):,} windows of {length} samples")
            return absent
        raise InputError(
            f"There is no folder {root}: give one with recordings, or {EMBEDDED}, which is "
            "embedded."
        )
    files = find_files(root, RECORDINGS, named, bool(whole))
    say(files.line)
    files.check(split)
    labels, names = files.labels[split], files.classes(split)
    # A quarter of a million of `Path`s take seconds to make.
    paths = [os.path.join(root, name) for name in files.names[split]]
    found, bad = recordings_in(root, paths, skip_bad)
    counts = np.array([r.windows(length, rate) for r in found])
    if labels is not None:
        labels = np.repeat(labels[[path not in bad for path in paths]], counts)
    _print_found(split, found, counts, length, rate, bad)
    n = int(counts.sum())
    if n * 2 * length > RESIDENT_BYTES:
        ends = np.cumsum(counts)

        def window(i: int) -> np.ndarray:
            j = int(np.searchsorted(ends, i, "right"))
            return read_wave(found[j], (i - int(ends[j] - counts[j])) * length, length, rate)

        listing = names_and_sizes([r.path for r in found], root)
        return OnDisk(window, labels, names, (length,), count=n, skip_bad=skip_bad, files=listing)
    windows = np.zeros((n, length), np.int16)
    parts = np.split(windows.reshape(-1), np.cumsum(counts * length)[:-1])
    for part, wave in zip(parts, _whole_waves(found, rate)):
        part[: len(wave)] = wave[: len(part)]
    return Arrays(windows, labels, names)


@dataclass(frozen=True, slots=True)
class Recording:
    """A file with sound of `frames` frames at `rate` a second; `peak` is 1 or, of floats, more.

    `key` is a hash of its name in the folder, its size and the time of its last change.
    """

    path: str
    key: int
    frames: int
    rate: int
    peak: float

    def samples(self, rate: int) -> int:
        """Number of samples at another rate."""
        return -(-self.frames * rate // self.rate)

    def windows(self, length: int, rate: int) -> int:
        """Number of windows of `length` samples at another rate; a rest of half of one counts."""
        return max(1, (2 * self.samples(rate) + length) // (2 * length))


def _whole_waves(found: Sequence[Recording], rate: int) -> list[np.ndarray]:
    """Whole recordings at `rate`, (samples,) int16, which are kept in the cache."""
    samples = np.array([r.samples(rate) for r in found])
    keys = np.array([r.key for r in found], np.uint64)
    cache = cache_file(f"recordings {hashlib.sha256(keys.tobytes()).hexdigest()} at {rate}")
    cached = read_cache(cache)
    joined = cached["waves"] if cached else np.empty(samples.sum(), np.int16)
    waves = np.split(joined, np.cumsum(samples)[:-1])

    def fill(recording: Recording, wave: np.ndarray) -> None:
        for start in range(0, len(wave), BLOCK):
            some = wave[start : start + BLOCK]
            some[:] = read_wave(recording, start, len(some), rate)

    if not cached:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(fill, found, waves))
        store(cache, waves=joined)
    return waves


def recordings_in(
    root: pathlib.Path, paths: Sequence[str], skip_bad: bool
) -> tuple[list[Recording], dict[str, str]]:
    """What the headers of files in a folder say, and what is wrong with those that are left out.

    The headers are kept in the cache. InputError for a file that can't be read, unless `skip_bad`,
    and where all can't.
    """
    cache = cache_file(f"headers of recordings in {root.resolve()}")
    kept = (read_cache(cache) or {}).get("headers", np.zeros(0, HEADER))
    known = {key: (frames, own, peak) for key, frames, own, peak in kept.tolist()}
    found: list[Recording] = []
    bad: dict[str, str] = {}

    def look(path: str) -> Recording | str:
        try:
            with _readable(path):
                stat = os.stat(path)
            name = f"{path[len(str(root)) :]}\0{stat.st_size}\0{stat.st_mtime_ns}"
            digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
            key = int.from_bytes(digest, "little")
            return Recording(path, key, *(known.get(key) or _header(path)))
        except Unreadable as e:
            return str(e)

    with (
        # More threads than cores: a network's folder answers slowly.
        ThreadPoolExecutor(32) as pool,
        tqdm(
            total=len(paths), desc="headers", unit="file", delay=3, disable=jax.process_index() > 0
        ) as bar,
    ):
        for start in range(0, len(paths), PART):
            before = len(known)
            # A task of one file would take longer than to look for it in the index.
            ends = range(start, min(start + PART, len(paths)), 32)
            tasks = [paths[i : min(i + 32, start + PART)] for i in ends]
            for part, results in zip(tasks, pool.map(lambda part: [*map(look, part)], tasks)):
                bar.update(len(part))
                for path, result in zip(part, results):
                    if isinstance(result, Recording):
                        found.append(result)
                        known[result.key] = result.frames, result.rate, result.peak
                    elif skip_bad:
                        bad[path] = result
                    else:
                        raise Unreadable(result)
            if len(known) > before:
                rows = [(key, *header) for key, header in known.items()]
                store(cache, headers=np.array(rows, HEADER))
    if not found:
        raise InputError(f"None of {len(paths)} recordings can be read. {next(iter(bad.values()))}")
    return found, bad


def _header(path: str) -> tuple[int, int, float]:
    """Frames, rate, and the peak of floats or 1, of a file; InputError where it can't be used."""
    with _opened(path) as file:
        frames = file.frames
        if not 0 < frames < 2**40:
            problem = "is empty" if frames <= 0 else "doesn't say how long it is"
            raise Unreadable(f"{path} {problem}: {REMOVE}")
        peak = 1.0
        if file.subtype in ("FLOAT", "DOUBLE"):
            while len(block := file.read(BLOCK, dtype="float64", always_2d=True)):
                # Unlike max, np.maximum keeps a NaN.
                peak = float(np.maximum(peak, np.abs(block.mean(1)).max()))
        elif _seeks(file):
            file.seek(frames - 1)
            if not len(file.read(1)):
                raise Unreadable(_cut(path))
    if not math.isfinite(peak):
        raise Unreadable(f"{path} holds samples that are not finite: {REMOVE}")
    return frames, file.samplerate, peak


def _print_found(
    split: str,
    found: Sequence[Recording],
    counts: np.ndarray,
    length: int,
    rate: int,
    bad: dict[str, str],
) -> None:
    """Prints what a split consists of, what is left out, and what is divided by its peak."""
    samples = np.array([r.samples(rate) for r in found])
    own = sorted({r.rate for r in found})
    at = f"{own[0]}" if len(own) == 1 else f"{own[0]} to {own[-1]}"
    lines = [
        f"{split}: {len(found):,} of them, {_time(samples.sum() / rate)} at {at} Hz, as "
        f"{counts.sum():,} windows of {length / rate:.3g} s at {rate} Hz"
    ]
    if rest := np.maximum(0, samples - counts * length).sum():
        lines[0] += f". Left out: {_time(rest / rate)}, ends shorter than half a window"
    if bad:
        one = next(iter(bad.values())).removesuffix(f": {REMOVE}")
        lines.append(f"Left out: {len(bad):,} that can't be read, such as: {one}")
    loud = max(found, key=lambda r: r.peak)
    if loud.peak > 1:
        lines.append(
            f"{sum(r.peak > 1 for r in found)} of {len(found)} recordings exceed 1 and are divided "
            f"by their peak (up to {loud.peak:.4g}, in {loud.path})"
        )
    for line in lines:
        say(line.encode("utf-8", "backslashreplace").decode())


def _time(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def read_wave(recording: Recording, start: int, length: int, rate: int) -> np.ndarray:
    """Samples start to start + length of the whole recording at `rate`, (length,) int16.

    Only the frames that these samples depend on are read; zeros follow the recording's end.
    """
    common = math.gcd(recording.rate, rate)
    up, down = rate // common, recording.rate // common
    margin = -(-_half(up, down) // up) if up != down else 0
    # Blocks of `down` frames give `up` samples each, so that the first sample's phase is 0.
    block = max(0, start * down // up - margin) // down
    stop = min(recording.frames, (start + length) * down // up + margin + 2)
    with _opened(recording.path) as file:
        frames = _frames(file, min(block * down, stop), stop)
    if len(frames) < stop - min(block * down, stop):
        raise Unreadable(_cut(recording.path))
    wave = resample(frames.mean(1) / recording.peak, recording.rate, rate)
    wave = wave[start - block * up :][:length]
    return np.pad(to_int16(wave), (0, length - len(wave)))


def _frames(file: "SoundFile", start: int, stop: int) -> np.ndarray:
    """Frames start to stop of an open file, (stop - start, channels) float64."""
    if _seeks(file):
        file.seek(start)
    else:
        for at in range(0, start, BLOCK):
            file.read(min(BLOCK, start - at))
    return file.read(stop - start, dtype="float64", always_2d=True)


def _seeks(file: "SoundFile") -> bool:
    """Whether an open file can be read from the middle."""
    # libsndfile doesn't seek in some formats, and in Vorbis to wrong places.
    return file.seekable() and file.subtype != "VORBIS"


def _cut(path: str) -> str:
    return f"{path} ends before its header says that it does: {REMOVE}"


@contextlib.contextmanager
def _opened(path: str) -> Iterator["SoundFile"]:
    """A file that is open for reading."""
    soundfile = extras.load("soundfile", path)  # Slow to import.
    with _readable(path):
        handle = os.open(path, os.O_RDONLY)  # Unlike libsndfile's, its errors have numbers.
        try:
            with soundfile.SoundFile(handle, closefd=False) as file:
                yield file
        finally:
            os.close(handle)


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    """Raises what is wrong with a file, but not with the machine, as a sentence that names it."""
    try:
        yield
    except (RuntimeError, OSError) as e:  # libsndfile's are RuntimeErrors.
        if isinstance(e, OSError) and e.errno in (*OF_MACHINE, errno.ETIMEDOUT):
            raise
        why = getattr(e, "error_string", None) or getattr(e, "strerror", None) or e
        raise Unreadable(f"{path} can't be read as a recording ({why}): {REMOVE}") from e


def resample(wave: np.ndarray, old: int, new: int) -> np.ndarray:
    """A wave (samples,) at `old` samples a second, resampled to `new`, with an antialias filter."""
    from scipy.signal import resample_poly

    common = math.gcd(old, new)
    up, down = new // common, old // common
    return wave if up == down else resample_poly(wave, up, down, window=_filter(up, down))


def _half(up: int, down: int) -> int:
    """Samples of the filter on either side, at `up` times the old rate."""
    return 10 * max(up, down)


@functools.lru_cache
def _filter(up: int, down: int) -> np.ndarray:
    """The filter that `resample_poly` has by default."""
    from scipy.signal import firwin

    window: Any = ("kaiser", 5.0)  # Its type is guessed from the default, a name.
    return np.asarray(firwin(2 * _half(up, down) + 1, 1 / max(up, down), window=window))


def to_int16(wave: np.ndarray) -> np.ndarray:
    """A wave in [-1, 1], clipped to that range, as whole numbers."""
    return np.round(32767 * np.clip(wave, -1, 1)).astype(np.int16)


def _signals(split: str, length: int, first: bool = False) -> Arrays:
    """Overlapping windows, a quarter of their length apart, of the embedded signals.

    The first two thirds of each signal are the training part, the last third the test part; with
    `first`, the same of the training part alone.
    """
    from matplotlib import cbook
    from scipy.signal import decimate

    opened: Any = cbook.get_sample_data  # What it returns depends on the file's name.
    eeg = np.frombuffer(opened("eeg.dat").read()).reshape(800, 4)
    cell = np.frombuffer(opened("membrane.dat").read(), np.float32)
    waves = {f"eeg{i + 1}": eeg[:, i] for i in range(4)}
    waves["membrane"] = decimate(cell.astype(float), 5)
    windows, labels = [], []
    for label, wave in enumerate(waves.values()):
        wave = wave[: len(wave) * 2 // 3] if first else wave
        cut = len(wave) * 2 // 3
        part = wave[:cut] if split == "train" else wave[cut:]
        if len(part) < length:
            raise InputError(
                f"The {split}ing part of {EMBEDDED} is {len(part)} samples long: choose shorter "
                f"windows than {length}, or a folder of recordings as --data."
            )
        part = to_int16((part - wave[:cut].mean()) / (4 * wave[:cut].std()))
        found = np.lib.stride_tricks.sliding_window_view(part, length)[:: max(1, length // 4)]
        windows.append(found)
        labels += [label] * len(found)
    return Arrays(np.concatenate(windows), np.array(labels, np.int32), list(waves))


def to_wave(x: Array) -> Array:
    """int16 waves as float32 in [-1, 1]."""
    return x.astype(jnp.float32) / 32767


def mel_filters(rate: int, size: int, bands: int) -> np.ndarray:
    """Triangular filters (size // 2 + 1, bands), evenly spaced on the mel scale from 0 to rate / 2.

    mel = 2595 log10(1 + f / 700). InputError where a band would lie between two frequencies of the
    transform, and so be always empty.
    """
    mel = lambda f: 2595 * np.log10(1 + f / 700)
    hertz = lambda m: 700 * (10 ** (m / 2595) - 1)
    edge = hertz(np.linspace(0, mel(rate / 2), bands + 2))
    f = np.linspace(0, rate / 2, size // 2 + 1)[:, None]
    low, middle, high = edge[:-2], edge[1:-1], edge[2:]
    filters = np.maximum(0, np.minimum((f - low) / (middle - low), (high - f) / (high - middle)))
    if not filters.sum(0).all():
        raise InputError(
            f"{bands} bands are too many for windows of {size} samples at {rate} Hz: some would be "
            "empty. Take fewer bands, or longer windows."
        )
    return filters.astype(np.float32)


def check_log_mel(samples: int, rate: int, size: int, bands: int) -> None:
    """InputError where `log_mel` can't be made of waves of so many samples."""
    if samples < size:
        raise InputError(
            f"A wave of {samples} samples is shorter than a spectrogram's window of {size}."
        )
    mel_filters(rate, size, bands)


def log_mel(
    x: Array, rate: int, size: int = 256, hop: int = 128, bands: int = 40, floor: float = 1e-6
) -> Array:
    """Log-mel spectrograms of waves (n, samples): (n, 1 + (samples - size) // hop, bands).

    log(mel filters · |DFT|² + floor) of Hann windows of `size` samples, `hop` samples apart. The
    transform is a matrix product, so that it is split over devices as the batch is. InputError
    where no window fits.
    """
    check_log_mel(x.shape[1], rate, size, bands)
    frames = 1 + (x.shape[1] - size) // hop
    at = hop * np.arange(frames)[:, None] + np.arange(size)
    angle = 2 * np.pi * np.outer(np.arange(size), np.arange(size // 2 + 1)) / size
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    dft = jnp.asarray(
        hann[:, None] * np.concatenate([np.cos(angle), np.sin(angle)], axis=1), jnp.float32
    )
    parts = jnp.matmul(x[:, at].reshape(-1, size), dft, precision="highest")
    power = parts[:, : size // 2 + 1] ** 2 + parts[:, size // 2 + 1 :] ** 2
    mel = jnp.matmul(power, mel_filters(rate, size, bands), precision="highest")
    return jnp.log(mel + floor).reshape(len(x), frames, bands)
