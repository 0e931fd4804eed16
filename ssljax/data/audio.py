"""Recordings: windows of sound from any folder of files, and log-mel spectrograms.

What is read is an image set whose `image` is a wave, (samples,) int16: feeds and evaluators take it as it is.
"""

import contextlib
import math
import pathlib

from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax.data.sources import (
    Arrays,
    class_files,
    held_out,
    held_out_of,
    OnDisk,
    RESIDENT_BYTES,
    Source,
)
from ssljax.errors import InputError

EMBEDDED = "signals"
SUFFIXES = ".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au"


def recordings(data: str, split: str, length: int, rate: int = 8000) -> Source:
    """The "train" or "test" windows of `length` samples, one after the other, of the recordings in `data`.

    `data` is a folder, train/CLASS/*.wav and test/CLASS/*.wav (or val/, or validation/), or CLASS/*.wav alone, of which
    every tenth recording is then for testing; files may lie in folders of the class's, and be .flac, .ogg and so on.
    Channels are averaged, and resampled to `rate` a second. What is left at a recording's end, if at least half a
    window, is filled up with zeros, as is a recording shorter than that. Or it is "signals": what Matplotlib ships for
    its examples, four channels of an EEG and the potential of a cell's membrane, at rates of their own; not sound, but
    measured, and embedded. To choose settings by, NAME:validation never reads the test recordings: its "test" is a tenth
    of each class of those for training (of the signals, the last third of that part), its "train" the rest. InputError
    says what is wrong with the folder or a file.
    """
    if length < 1 or rate < 1:
        raise InputError(
            f"A window must have a sample or more, at 1 Hz or more, not {length} at {rate} Hz."
        )
    whole = held_out_of(data)
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
        files = [files[i] for i in held_out(whole, np.array([label for _, label in files]))[split]]
    windows, labels = [], []
    for path, label in files:
        frames, own_rate = _header(path)
        samples = frames * rate // own_rate
        for i in range(max(1, math.floor(samples / length + 0.5))):
            windows.append((path, i))
            labels.append(label)
    source = OnDisk(
        lambda i: _window(*windows[i], length, rate), np.array(labels, np.int32), names, (length,)
    )
    if len(source) * 2 * length > RESIDENT_BYTES:
        return source
    return Arrays(source.read(np.arange(len(source)))["image"], source.labels, names)


def _header(path: pathlib.Path) -> tuple[int, int]:
    import soundfile  # Slow to import, here and below.

    with _readable(path):
        info = soundfile.info(path)
    if not info.frames:
        raise InputError(f"{path} is empty: take it out.")
    return info.frames, info.samplerate


def _window(path: pathlib.Path, i: int, length: int, rate: int) -> np.ndarray:
    """Window i of the recording, (length,) int16."""
    import soundfile

    with _readable(path), soundfile.SoundFile(path) as file:
        start, stop = (
            min(file.frames, round(at * length * file.samplerate / rate)) for at in (i, i + 1)
        )
        file.seek(start)
        wave, own = file.read(stop - start, dtype="float32", always_2d=True), file.samplerate
    wave = resample(wave.mean(1), own, rate)[:length]
    return np.pad(to_int16(wave), (0, length - len(wave)))


class _readable(contextlib.AbstractContextManager):
    """Turns what libsndfile says of a broken file into a sentence that names it."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, (RuntimeError, OSError)):  # soundfile's are RuntimeErrors.
            raise InputError(
                f"{self.path} can't be read as a recording ({error}): mend it or take it out."
            ) from error


def resample(wave: np.ndarray, old: int, new: int) -> np.ndarray:
    """A wave (samples,) at `old` samples a second at `new`, without what `new` can't hold."""
    from scipy.signal import resample_poly

    common = math.gcd(old, new)
    return wave if old == new else resample_poly(wave, new // common, old // common)


def to_int16(wave: np.ndarray) -> np.ndarray:
    """A wave in [-1, 1], and cut off there, as whole numbers."""
    return np.round(32767 * np.clip(wave, -1, 1)).astype(np.int16)


def _signals(split: str, length: int, first: bool = False) -> Arrays:
    """Windows, a quarter of their length apart, of the first two thirds of each signal, and of the last; or of each
    signal's `first` two thirds alone."""
    from matplotlib import cbook
    from scipy.signal import decimate

    eeg = np.frombuffer(cbook.get_sample_data("eeg.dat").read()).reshape(800, 4)
    cell = np.frombuffer(cbook.get_sample_data("membrane.dat").read(), np.float32)
    waves = {
        **{f"eeg{i + 1}": eeg[:, i] for i in range(4)},
        "membrane": decimate(cell.astype(float), 5),
    }
    windows, labels = [], []
    for label, wave in enumerate(waves.values()):
        wave = wave[: len(wave) * 2 // 3] if first else wave
        cut = len(wave) * 2 // 3
        part = wave[:cut] if split == "train" else wave[cut:]
        if len(part) < length:
            raise InputError(
                f"The {split}ing part of {EMBEDDED} is {len(part)} samples long: choose shorter windows "
                f"than {length}, or a folder of recordings as --data."
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
    """Triangles, even on the mel scale 2595 log10(1 + f / 700), from 0 to half of `rate`: (size // 2 + 1, bands).

    InputError where a band would lie between two frequencies of the transform, and so always be empty.
    """
    mel, hertz = lambda f: 2595 * np.log10(1 + f / 700), lambda m: 700 * (10 ** (m / 2595) - 1)
    edge = hertz(np.linspace(0, mel(rate / 2), bands + 2))
    f = np.linspace(0, rate / 2, size // 2 + 1)[:, None]
    low, middle, high = edge[:-2], edge[1:-1], edge[2:]
    filters = np.maximum(0, np.minimum((f - low) / (middle - low), (high - f) / (high - middle)))
    if not filters.sum(0).all():
        raise InputError(
            f"{bands} bands are too many for windows of {size} samples at {rate} Hz: some would be empty. "
            "Take fewer bands, or longer windows."
        )
    return filters.astype(np.float32)


def log_mel(
    x: Array, rate: int, size: int = 256, hop: int = 128, bands: int = 40, floor: float = 1e-6
) -> Array:
    """Waves (n, samples) to log(mel filters · |DFT|² + floor) of Hann windows of `size` samples, each `hop` after the
    last: (n, 1 + (samples - size) // hop, bands).

    The transform is a matrix product, so that it is split over devices as the batch is. InputError where no window
    fits.
    """
    if x.shape[1] < size:
        raise InputError(
            f"A wave of {x.shape[1]} samples is shorter than a spectrogram's window of {size}."
        )
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
