"""Files of weights in the format safetensors: ours, and those of timm and transformers."""

from collections.abc import Mapping
import json
import os
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from ssljax import extras
from ssljax.errors import InputError
from ssljax.record import read_json

HUB = "hf-hub:"  # Before OWNER/NAME, as in timm.
CARD = "card.json"
INDEX = "model.safetensors.index.json"  # Of weights that are split over several files.
Tree = Any


class Weights(NamedTuple):
    """Arrays by name, and what is said of them."""

    arrays: dict[str, np.ndarray]
    card: dict[str, Any]
    """Our card, empty for weights of others."""
    config: dict[str, Any]
    """config.json of timm or transformers, empty where there is none."""
    folder: pathlib.Path
    name: str
    """What the user called them."""


def is_weights(name: str) -> bool:
    """Whether a name stands for weights in a file, a folder or on the hub, and not for a run."""
    path = pathlib.Path(name).expanduser()
    if name.startswith(HUB) or path.suffix == ".safetensors":
        return True
    return (
        path.is_dir()
        and not (path / "checkpoints").exists()
        and (any(path.glob("*.safetensors")) or any(path.glob("*.bin")))
    )


def read_weights(name: str) -> Weights:
    """The weights that `name` stands for: a .safetensors, a folder with some, or HUB + OWNER/NAME.

    Numbers of less precision become float32. InputError where there are none, or they can't be
    read.
    """
    path = pathlib.Path(name).expanduser()
    if name.startswith(HUB):
        path = _from_hub(name.removeprefix(HUB))
    if not path.exists():
        raise InputError(f"There is no file {path}: check the path.")
    folder = path if path.is_dir() else path.parent
    files = _files(path, name) if path.is_dir() else [path]
    arrays: dict[str, np.ndarray] = {}
    card: dict[str, Any] = {}
    for file in files:
        found, metadata = _read(file)
        arrays |= found
        card |= _card(metadata)
    config = {}
    if (file := folder / "config.json").is_file():
        config = read_json(file, "get the weights again")
    if not isinstance(config, dict):
        raise InputError(f"{folder / 'config.json'} holds no object: get the weights again.")
    return Weights(arrays, card, config, folder, name)


def write_weights(file: pathlib.Path, arrays: Mapping[str, np.ndarray], card: Any) -> None:
    """Writes arrays, with the card in the file's header; OSError as of any file."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    # "format" is what transformers asks for: arrays for PyTorch.
    metadata = {"format": "pt", "ssljax": json.dumps(card)}
    try:
        save_file({k: np.asarray(x, order="C") for k, x in arrays.items()}, file, metadata)
    except SafetensorError as e:
        if not (found := re.search(r"\(os error (\d+)\)", str(e))):
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(file)) from e


def nested(arrays: Mapping[str, np.ndarray], prefix: str = "") -> Tree:
    """Arrays by names with slashes, of those under `prefix`, as nested dictionaries."""
    found: dict[str, Any] = {}
    for name, x in arrays.items():
        if not name.startswith(prefix):
            continue
        *folders, last = name[len(prefix) :].split("/")
        inner = found
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = x
    return found


def _files(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX, "get the weights again")
        try:
            files = [folder / file for file in sorted(set(index["weight_map"].values()))]
        except (TypeError, KeyError, AttributeError):
            raise InputError(f"{folder / INDEX} names no files: get the weights again.") from None
        if missing := [file for file in files if not file.is_file()]:
            raise InputError(f"{missing[0]} is missing, which {INDEX} names: get it too.")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1 or folder / "model.safetensors" in files:
        return [folder / "model.safetensors"] if len(files) > 1 else files
    if files:
        raise InputError(f"{name} holds {len(files)} .safetensors files: name one of them.")
    raise InputError(
        f"{name} holds no .safetensors file: weights in other formats (.bin, .pt, .msgpack) are "
        "not read, since some of them can run code; save them as safetensors."
    )


def _read(file: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import safe_open, SafetensorError

    arrays = {}
    try:
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            for name in opened.keys():  # noqa: SIM118  # It is no dictionary.
                x = opened.get_tensor(name)
                # bfloat16, of ml_dtypes, is no subtype of NumPy's floats.
                small = x.dtype.kind in "fV" and x.dtype.itemsize < 4
                arrays[name] = x.astype(np.float32) if small else x
    except (SafetensorError, TypeError, OSError) as e:
        why = str(e).splitlines()[0]
        raise InputError(
            f"{file} can't be read as a safetensors file ({why}): get it again."
        ) from e
    return arrays, metadata


def _card(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        card = json.loads(metadata.get("ssljax", "{}"))
    except ValueError:
        card = {}
    return card if isinstance(card, dict) else {}


def _from_hub(name: str) -> pathlib.Path:
    """The folder of a model of the hub, downloaded or from its cache."""
    huggingface_hub = extras.load("huggingface_hub", f"{HUB}{name}")
    try:
        found = huggingface_hub.snapshot_download(
            name, allow_patterns=["*.safetensors", "*.json", "*.txt"]
        )
    except Exception as e:  # Of several packages: no network, no such name, no rights.
        why = (str(e).strip() or type(e).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"{HUB}{name} can't be had from the hub ({why}): check the name and the network, or "
            "download its .safetensors, config.json and tokenizer.json elsewhere and give their "
            "folder."
        ) from e
    return pathlib.Path(found)
