"""Recordings: windows of sound from a folder of files, and log-mel spectrograms.

Recordings are read as a set whose `image` is a wave, (samples,) int16, which feeds and evaluators
take as they take images.
"""

from concurrent.futures import ThreadPoolExecutor
import contextlib
from dataclasses import dataclass
import functools
import math
import pathlib

import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.data.folders import class_files
from ssljax.data.sources import (
    Arrays,
    OnDisk,
    RESIDENT_BYTES,
    Source,
    validation_indices,
    without_validation,
)
from ssljax.errors import InputError
from ssljax.fingerprint import names_and_sizes, reported

EMBEDDED = "signals"
SUFFIXES = ".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au"
BLOCK = 2**20  # Frames, or samples, that are read at once.


@reported("windows of recordings")
def recordings(data: str, split: str, length: int, rate: int = 8000) -> Source:
    """The "train" or "test" windows of `length` samples of the recordings in `data`.

    `data` is a folder: train/CLASS/*.wav and test/CLASS/*.wav (or val/, or validation/), or
    CLASS/*.wav alone, where every tenth recording is in the test split; files may lie in folders of
    the class's folder, and be .flac, .ogg, .mp3 and so on. Channels are averaged, and the whole
    recording is resampled to `rate` samples a second. Windows follow each other; the end of a
    recording is padded with zeros if it fills at least half a window (and else left out), as is a
    recording shorter than a window. Recordings of floats that exceed 1 are divided by their peak,
    which is printed.

    Or `data` is "signals": embedded, the example data of Matplotlib, four channels of an EEG and
    the potential of a cell's membrane, at rates of their own; measured, but not sound.

    NAME:validation never reads the test recordings: its "test" is a tenth of each class of the
    training recordings (of "signals", the last third of each training signal), its "train" the
    rest. InputError says what is wrong with the folder or a file.
    """
    if length < 1 or rate < 1:
        raise InputError(
            f"A window must have a sample or more, at 1 Hz or more, not {length} at {rate} Hz."
        )
    whole = without_validation(data)
    if (whole or data) == EMBEDDED:
        return _signals(split, length, bool(whole))
    root = pathlib.Path(whole or data).expanduser()
    if not root.is_dir():
        raise InputError(
            f"There is no folder {root}: give one with a folder of recordings for each class, or "
            f"{EMBEDDED}, which is embedded."
        )
    _, files, names = class_files(
        root, "train" if whole else split, SUFFIXES, "recordings", "yes/1.wav"
    )
    if whole:
        own = np.array([label for _, label in files])
        files = [files[i] for i in validation_indices(whole, own)[split]]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(_recording, [path for path, _ in files]))
    _print_peaks(found)
    counts = [max(1, math.floor(r.samples(rate) / length + 0.5)) for r in found]
    labels = np.repeat(np.array([label for _, label in files], np.int32), counts)
    if len(labels) * 2 * length > RESIDENT_BYTES:
        places = [(r, i * length) for r, n in zip(found, counts) for i in range(n)]
        read_window = lambda i: read_wave(*places[i], length, rate)
        listing = names_and_sizes([path for path, _ in files], root)
        return OnDisk(read_window, labels, names, (length,), files=listing)
    waves = []
    for recording, n in zip(found, counts):
        step = max(1, BLOCK // length)
        for i in range(0, n, step):
            wave = read_wave(recording, i * length, min(step, n - i) * length, rate)
            waves.append(wave.reshape(-1, length))
    return Arrays(np.concatenate(waves), labels, names)


@dataclass(frozen=True)
class Recording:
    """A file with sound of `frames` frames at `rate` a second; `peak` is 1 or, of floats, more."""

    path: pathlib.Path
    frames: int
    rate: int
    peak: float = 1.0

    def samples(self, rate: int) -> int:
        """Number of samples at another rate."""
        return -(-self.frames * rate // self.rate)


def _recording(path: pathlib.Path) -> Recording:
    """What the header of a file says, and of floats the peak; InputError where it can't be used."""
    import soundfile  # Slow to import, here and below.

    with _readable(path):
        info = soundfile.info(path)
    if not 0 < info.frames < 2**40:
        problem = "is empty" if info.frames <= 0 else "doesn't say how long it is"
        raise InputError(f"{path} {problem}: remove it, or write it again.")
    peak = 1.0
    if info.subtype in ("FLOAT", "DOUBLE"):
        with _readable(path), soundfile.SoundFile(path) as file:
            for block in file.blocks(BLOCK, dtype="float64", always_2d=True):
                # Unlike max, np.maximum keeps a NaN.
                peak = float(np.maximum(peak, np.abs(block.mean(1)).max()))
        if not math.isfinite(peak):
            raise InputError(f"{path} holds samples that are not finite: repair or remove it.")
    return Recording(path, info.frames, info.samplerate, peak)


def _print_peaks(found: list[Recording]) -> None:
    loud = max(found, key=lambda r: r.peak)
    if loud.peak > 1 and jax.process_index() == 0:
        print(
            f"{sum(r.peak > 1 for r in found)} of {len(found)} recordings exceed 1 and are divided "
            f"by their peak (up to {loud.peak:.4g}, in {loud.path})"
        )


def read_wave(recording: Recording, start: int, length: int, rate: int) -> np.ndarray:
    """Samples start to start + length of the whole recording at `rate`, (length,) int16.

    Only the frames that these samples depend on are read; zeros follow the recording's end.
    """
    import soundfile

    common = math.gcd(recording.rate, rate)
    up, down = rate // common, recording.rate // common
    margin = -(-_half(up, down) // up) if up != down else 0
    # Blocks of `down` frames give `up` samples each, so that the first sample's phase is 0.
    block = max(0, start * down // up - margin) // down
    stop = min(recording.frames, (start + length) * down // up + margin + 2)
    with _readable(recording.path), soundfile.SoundFile(recording.path) as file:
        frames = _frames(file, min(block * down, stop), stop)
    wave = resample(frames.mean(1) / recording.peak, recording.rate, rate)
    wave = wave[start - block * up :][:length]
    return np.pad(to_int16(wave), (0, length - len(wave)))


def _frames(file, start: int, stop: int) -> np.ndarray:
    """Frames start to stop of an open file, (stop - start, channels) float64."""
    # libsndfile doesn't seek in some formats, and in Vorbis to wrong places.
    if file.seekable() and file.subtype != "VORBIS":
        file.seek(start)
    else:
        for at in range(0, start, BLOCK):
            file.read(min(BLOCK, start - at))
    return file.read(stop - start, dtype="float64", always_2d=True)


class _readable(contextlib.AbstractContextManager):
    """Raises what libsndfile says of a broken file as a sentence that names the file."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, (RuntimeError, OSError)):  # soundfile's errors are RuntimeErrors.
            raise InputError(
                f"{self.path} can't be read as a recording ({error}): repair or remove it."
            ) from error


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

    return firwin(2 * _half(up, down) + 1, 1 / max(up, down), window=("kaiser", 5.0))


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

    eeg = np.frombuffer(cbook.get_sample_data("eeg.dat").read()).reshape(800, 4)
    cell = np.frombuffer(cbook.get_sample_data("membrane.dat").read(), np.float32)
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
