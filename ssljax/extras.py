"""Packages that only an extra of ssljax installs, imported where they are used."""

import importlib
from typing import Any

from ssljax.errors import InputError

EXTRAS = {
    "huggingface_hub": "hub",
    "pyarrow": "parquet",
    "soundfile": "sound",
    "tensorflow_datasets": "tfds",
    "tokenizers": "text",
    "wandb": "wandb",
}


def load(module: str, user: str) -> Any:
    """A module of one of `EXTRAS`; InputError with the command that installs it if it is missing.

    `user` is the subject of that sentence: what needs the module.
    """
    extra = EXTRAS[module.partition(".")[0]]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as e:
        missing = (e.name or module).partition(".")[0]
        raise InputError(
            f"{user} needs the package {missing}, which is not installed: "
            f'pip install "ssljax[{extra}]".'
        ) from e
