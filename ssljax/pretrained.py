"""What another run has learned, to begin with: its encoder of images, or its language model."""

import json
import pathlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from tokenizers import Tokenizer

from ssljax.checkpoint import load
from ssljax.data.documents import Documents
from ssljax.data.tokenizers import load_tokenizer, wordpiece
from ssljax.errors import InputError
from ssljax.experiment import TrainState
from ssljax.record import plain
from ssljax.models.encoder import rebuild
from ssljax.models.transformer import LanguageModel, Transformer
from ssljax.models.vit import at_places_of

Tree = Any


class PretrainedEncoder(NamedTuple):
    """The net that the run in `workdir` keeps as its encoder, its parameters and batch statistics, as host arrays."""

    net: nn.Module
    params: Tree
    stats: Tree
    workdir: str | pathlib.Path

    def warm_start(self, state: TrainState) -> TrainState:
        """`state` with these as its encoder's; learned positions are resampled to as many as there. InputError where
        other shapes differ."""
        old = state.params["encoder"], state.extra["encoder"]
        new = params, stats = at_places_of(self.params, old[0]), self.stats
        if jax.tree.map(jnp.shape, new) != jax.tree.map(jnp.shape, old):
            raise InputError(
                f"The encoder in {self.workdir} takes images of another size, or of other channels, than "
                "these: give the --data and the --image-size of that run, or what is resized to it."
            )
        return state.replace(
            params=state.params | {"encoder": params}, extra=state.extra | {"encoder": stats}
        )


def encoder_of(workdir: str | pathlib.Path, seed: int = 0) -> PretrainedEncoder:
    """What the run in `workdir` keeps as its encoder.

    A teacher's where there is one, as of DINO and I-JEPA. Of several seeds, lane `seed`. InputError where there is no
    such run, or none with an encoder.
    """
    folder = pathlib.Path(workdir).expanduser()
    try:
        net = rebuild(_form(folder, "encoder", "vit"))
    except (OSError, KeyError, ValueError, TypeError):
        raise InputError(
            f"{workdir} holds no run of a file with an --encoder or a --vit: make one with `launch/local.sh "
            f"experiments/simclr.py --run.workdir {workdir}`."
        ) from None
    state = load(folder, seed)
    params, stats = state["params"], state.get("extra") or {}
    if "teacher" in stats:
        params, stats = stats["teacher"], stats.get("seen") or {}
    return PretrainedEncoder(
        net, params["encoder"].get("params", params["encoder"]), stats.get("encoder") or {}, workdir
    )


def net_json(net: nn.Module) -> str:
    """What a run keeps as net.json where its net is not of the form that its arguments give."""
    return json.dumps(plain(net), indent=1) + "\n"


def _form(folder: pathlib.Path, *names: str) -> dict[str, Any]:
    """The form of a run's net, by net.json or else the argument of one of these names; KeyError for none."""
    if (folder / "net.json").exists():
        return json.loads((folder / "net.json").read_text())
    arguments = json.loads((folder / "record.json").read_text())["computes"]
    if arguments.get("pretrained"):  # Then the net is not the one of the arguments.
        raise KeyError("net")
    return dict(next((arguments[name] for name in names if arguments.get(name)), {}))


class Pretrained(NamedTuple):
    """A language model, what it reads with, and its weights as host arrays, None for a new one."""

    model: LanguageModel
    tokenizer: Tokenizer
    params: Tree = None

    def warm_start(self, state: TrainState) -> TrainState:
        """`state` with these weights, if there are any, as params["model"]."""
        return (
            state
            if self.params is None
            else state.replace(params={**state.params, "model": self.params})
        )

    @property
    def files(self) -> dict[str, str]:
        """What a run keeps of it, as `Experiment.files`, so that `pretrained` needs that run's folder alone."""
        return {"tokenizer.json": self.tokenizer.to_str(), "net.json": net_json(self.model.net)}


def pretrained_or_new(
    workdir: str, net: Transformer, train: Documents, vocabulary: int, length: int
) -> Pretrained:
    """The model of a run, with the dropout of `net`; or, for an empty `workdir`, a new one of `net` that sees both
    sides and reads WordPiece tokens, `vocabulary` of them, learned on `train`.

    InputError where it is to read rows of `length` tokens, and learned positions for fewer.
    """
    if workdir:
        old = pretrained(workdir)
        if (
            old.model.net.positions == "learned"
        ):  # Else any length will do, and nothing more need be read.
            record = json.loads((pathlib.Path(workdir).expanduser() / "record.json").read_text())[
                "computes"
            ]
            if length > (most := record.get("length", length)):
                raise InputError(
                    f"The run in {workdir} has learned the positions of {most} tokens: give --length {most} or "
                    "less, or pretrain on longer rows, or with --positions rotary."
                )
        return old._replace(model=old.model.clone(net=old.model.net.clone(dropout=net.dropout)))
    tokenizer = wordpiece(train, vocabulary)
    return Pretrained(LanguageModel(net, tokenizer.get_vocab_size(), causal=False), tokenizer)


def pretrained(workdir: str | pathlib.Path) -> Pretrained:
    """The language model of a run, of several seeds the first; InputError where there is none."""
    net, tokenizer = _net(workdir), load_tokenizer(workdir)
    causal = (
        tokenizer.token_to_id("[CLS]") is None
    )  # Only what sees both sides has a token for all.
    return Pretrained(
        LanguageModel(net, tokenizer.get_vocab_size(), causal),
        tokenizer,
        load(workdir)["params"]["model"],
    )


def _net(workdir: str | pathlib.Path) -> Transformer:
    folder = pathlib.Path(workdir).expanduser()
    try:
        form = _form(folder, "net")
        if form.pop("class") != "Transformer":
            raise KeyError("net")
        return Transformer(**form)
    except (OSError, KeyError, ValueError, TypeError):
        raise InputError(
            f"{workdir} holds no run of a language model whose net is told (net.json, or the net of "
            f"record.json where nothing was pretrained): make one with `launch/local.sh "
            f"experiments/bert.py --run.workdir {workdir}`."
        ) from None
