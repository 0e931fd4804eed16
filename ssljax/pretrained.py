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
from ssljax.data.token_rows import Kind, masked_tokenizer
from ssljax.data.tokenizers import load_tokenizer
from ssljax.errors import InputError
from ssljax.experiment import TrainState
from ssljax.models.encoder import rebuild
from ssljax.models.transformer import LanguageModel, Transformer
from ssljax.models.vit import at_places_of
from ssljax.record import plain

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
        """`Experiment.files` from which `pretrained` rebuilds the model and its tokenizer."""
        return language_model_files(self.model, self.tokenizer)


def language_model_files(model: LanguageModel, tokenizer: Tokenizer) -> dict[str, str]:
    """`Experiment.files` of a language model: its tokenizer.json and net.json."""
    form = {**plain(model.net), "causal": model.causal}
    return {"tokenizer.json": tokenizer.to_str(), "net.json": json.dumps(form, indent=1) + "\n"}


def pretrained_or_new(
    workdir: str, net: Transformer, train: Documents, kind: Kind, vocabulary: int, length: int
) -> Pretrained:
    """The model of the run in `workdir`, with the dropout of `net`; or a new one of `net`.

    A new model, for an empty `workdir`, is not causal and reads at most `vocabulary` tokens of
    `kind` learned on `train`. InputError where the run has learned positions for rows shorter than
    `length` tokens.
    """
    if workdir:
        old = pretrained(workdir)
        # Rotary positions reach any length.
        if old.model.net.positions == "learned":
            record = pathlib.Path(workdir).expanduser() / "record.json"
            most = json.loads(record.read_text())["computes"].get("length", length)
            if length > most:
                raise InputError(
                    f"The run in {workdir} has learned the positions of {most} tokens: give "
                    f"--length {most} or less, or pretrain on longer rows, or with --positions "
                    "rotary."
                )
        return old._replace(model=old.model.clone(net=old.model.net.clone(dropout=net.dropout)))
    tokenizer = masked_tokenizer(train, kind, vocabulary)
    return Pretrained(LanguageModel(net, tokenizer.get_vocab_size(), causal=False), tokenizer)


def pretrained(workdir: str | pathlib.Path) -> Pretrained:
    """The language model of a run, of several seeds the first; InputError where there is none."""
    tokenizer = load_tokenizer(workdir)
    try:
        form = _form(pathlib.Path(workdir).expanduser(), "net")
        if form.pop("class") != "Transformer":
            raise KeyError("net")
        # Runs of older versions don't record it; only their masked models had a token [CLS].
        causal = form.pop("causal", tokenizer.token_to_id("[CLS]") is None)
        net = Transformer(**form)
    except (OSError, KeyError, ValueError, TypeError):
        raise InputError(
            f"{workdir} holds no run of a language model: make one with `launch/local.sh "
            f"experiments/bert.py --run.workdir {workdir}`."
        ) from None
    model = LanguageModel(net, tokenizer.get_vocab_size(), causal)
    return Pretrained(model, tokenizer, load(workdir)["params"]["model"])
