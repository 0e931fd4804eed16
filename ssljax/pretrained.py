"""The encoder of another run, to go on with."""

import json
import pathlib
from typing import Any

import flax.linen as nn

from ssljax.checkpoint import load
from ssljax.errors import InputError
from ssljax.models.encoder import rebuild

Tree = Any


def encoder_of(workdir: str | pathlib.Path, seed: int = 0) -> tuple[nn.Module, Tree, Tree]:
    """The net that the run in `workdir` trained as its encoder, its parameters and batch statistics.

    Of several seeds, lane `seed`. InputError where there is no such run, or none with an encoder.
    """
    folder = pathlib.Path(workdir).expanduser()
    try:
        arguments = json.loads((folder / "record.json").read_text())["computes"]
        net = rebuild(arguments.get("encoder") or arguments["vit"])
    except (OSError, KeyError, ValueError, TypeError):
        raise InputError(f"{workdir} holds no run with an encoder: make one with `launch/local.sh "
                         f"experiments/simclr.py --run.workdir {workdir}`.") from None
    state = load(folder, seed)
    params = state["params"]["encoder"]
    return net, params.get("params", params), (state.get("extra") or {}).get("encoder") or {}
