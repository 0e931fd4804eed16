"""Pretrained models: the encoder of images or the language model of another run."""

import json
import pathlib
from typing import Any, NamedTuple, TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax import methods
from ssljax.checkpoint import flatten, load_state
from ssljax.data.documents import Documents
from ssljax.data.token_rows import masked_tokenizer, TokenKind
from ssljax.data.tokenizers import load_tokenizer
from ssljax.errors import InputError
from ssljax.experiment import TrainState
from ssljax.models.encoder import build, KNOWN, rebuild
from ssljax.models.transformer import LanguageModel, Transformer
from ssljax.models.vit import at_places_of
from ssljax.record import damaged, plain, read_file, read_json, read_record

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Tree = Any
TRAIN_AGAIN = "train that run again"


class PretrainedEncoder(NamedTuple):
    """Encoder of the run in `workdir`, with its parameters and batch statistics as host arrays."""

    net: nn.Module
    params: Tree
    stats: Tree
    workdir: str | pathlib.Path

    def warm_start(self, state: TrainState) -> TrainState:
        """`state` with these weights as its encoder's, and learned positions resampled.

        InputError where other shapes differ.
        """
        old = state.params["encoder"], state.extra["encoder"]
        new = params, stats = at_places_of(self.params, old[0]), self.stats
        if jax.tree.map(jnp.shape, new) != jax.tree.map(jnp.shape, old):
            raise InputError(
                f"The encoder in {self.workdir} takes images of another size, or of other "
                "channels, than these: give the --data and the --image-size of that run, or data "
                "that is resized to it."
            )
        return state.replace(
            params=state.params | {"encoder": params}, extra=state.extra | {"encoder": stats}
        )


def encoder_of(
    workdir: str | pathlib.Path, seed: int = 0, net: nn.Module | None = None
) -> PretrainedEncoder:
    """Encoder that the run in `workdir` keeps, as its experiment says (`Experiment.kept`).

    Of several seeds, lane `seed`. `net` is the encoder's module where it is none of
    ssljax.models.encoder. InputError where there is no such run, none with an encoder, or one
    whose encoder is of an unknown class or of another than `net`.
    """
    none = InputError(
        f"{workdir} holds no run of a file with an --encoder or a --vit: make one with "
        f"`{methods.command('simclr')} --run.workdir {workdir}`."
    )
    folder = pathlib.Path(workdir).expanduser()
    file = folder / "record.json"
    try:
        record = read_record(folder, TRAIN_AGAIN)
        if "kept" in record:
            kept = record["kept"]
            form = kept["net"] if kept else None
        else:  # A run of an older version.
            kept = None
            form, file = _form(folder, "encoder", "vit")
    except (FileNotFoundError, NotADirectoryError, KeyError):
        raise none from None
    if form is None:
        raise none
    net = _checked_net(net, form, workdir, file)
    state = load_state(workdir, seed)
    paths = kept or _kept_before(state)
    params, stats = (_part(state, paths[k]) for k in ("params", "stats"))
    if kept and (not params or (paths["stats"] and not stats)):
        raise damaged(file, "kept names no arrays of the run", TRAIN_AGAIN)
    if not params:
        raise none
    return PretrainedEncoder(net, params, stats, workdir)


def _checked_net(
    net: nn.Module | None, form: dict[str, Any], workdir: str | pathlib.Path, file: pathlib.Path
) -> nn.Module:
    """The net of a record: the one given, if it is of that class, or the one that it describes."""
    kind = form["class"]
    if net is not None and type(net).__name__ != kind:
        raise InputError(
            f"The encoder of the run in {workdir} is a {kind}, not a {type(net).__name__}: give "
            "the module that the run was made with."
        )
    if net is not None:
        return net
    if kind not in KNOWN:
        raise InputError(
            f"The encoder of the run in {workdir} is a {kind}, which ssljax.models.encoder does "
            "not have: give that module from Python, as in "
            f"finetune(pretrained=..., encoder={kind}(...)) or encoder_of(..., net={kind}(...))."
        )
    try:
        return rebuild(form)
    except (ValueError, TypeError) as e:
        raise damaged(file, f"its net can't be built, {e}", TRAIN_AGAIN) from None


def _kept_before(state: Tree) -> dict[str, str]:
    """The paths that a record of an older version lacks: a teacher is kept where there is one."""
    teacher = "teacher" in (state.get("extra") or {})
    params = "extra/teacher/encoder" if teacher else "params/encoder"
    if "params" in (_part(state, params) or {}):
        params += "/params"
    return {"params": params, "stats": "extra/seen/encoder" if teacher else "extra/encoder"}


def _part(state: Tree, path: str) -> Tree:
    """The dictionary of a loaded state at a path; empty where there is none."""
    for key in path.split("/") if path else ("",):
        if isinstance(state, (list, tuple)):
            state = dict(enumerate(state)).get(int(key) if key.isdecimal() else -1)
        else:
            state = state.get(key) if isinstance(state, dict) else None
    return state if isinstance(state, dict) else {}


def _form(folder: pathlib.Path, *names: str) -> tuple[dict[str, Any], pathlib.Path]:
    """The form of a run's net and the file it is in: net.json, or the argument of one of `names`.

    FileNotFoundError for no run, KeyError for none with a net, InputError for a damaged file.
    """
    if (file := folder / "net.json").exists():
        read_file(folder, "net.json", TRAIN_AGAIN)
        form = read_json(file, TRAIN_AGAIN)
    else:
        file = folder / "record.json"
        arguments = read_record(folder, TRAIN_AGAIN)["computes"]
        if arguments.get("pretrained"):  # Then the net is not the one of the arguments.
            raise KeyError("net")
        found = [arguments[name] for name in names if arguments.get(name)]
        if not found:
            raise KeyError("net")
        form = found[0]
    if not isinstance(form, dict) or not isinstance(form.get("class"), str):
        raise damaged(file, "its net has no class", TRAIN_AGAIN)
    return form, file


class Pretrained(NamedTuple):
    """A language model, what it reads with, and its weights as host arrays, None for a new one."""

    model: LanguageModel
    tokenizer: "Tokenizer"
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


def language_model_files(model: LanguageModel, tokenizer: "Tokenizer") -> dict[str, str]:
    """`Experiment.files` of a language model: its tokenizer.json and net.json."""
    form = {**plain(model.net), "causal": model.causal}
    return {"tokenizer.json": tokenizer.to_str(), "net.json": json.dumps(form, indent=1) + "\n"}


def pretrained_or_new(
    workdir: str, net: Transformer, train: Documents, kind: TokenKind, vocabulary: int, length: int
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
            folder = pathlib.Path(workdir).expanduser()
            most = read_record(folder, TRAIN_AGAIN)["computes"].get("length", length)
            if type(most) is not int:
                raise damaged(folder / "record.json", "length is no number", TRAIN_AGAIN)
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
    none = InputError(
        f"{workdir} holds no run of a language model: make one with "
        f"`{methods.command('bert')} --run.workdir {workdir}`."
    )
    folder = pathlib.Path(workdir).expanduser()
    try:
        form, file = _form(folder, "net")
        read_file(folder, "tokenizer.json", TRAIN_AGAIN)
    except (FileNotFoundError, NotADirectoryError, KeyError):
        raise none from None
    if form["class"] != "Transformer":
        raise none
    causal = form.pop("causal", None)
    try:
        net = build(Transformer, form)
        if causal not in (True, False, None):
            raise ValueError(f"causal is {causal!r}")
    except (ValueError, TypeError) as e:
        raise damaged(file, f"its net can't be built, {e}", TRAIN_AGAIN) from None
    tokenizer = load_tokenizer(workdir)
    if causal is None:  # A run of an older version, where only masked models had a token [CLS].
        causal = tokenizer.token_to_id("[CLS]") is None
    model = LanguageModel(net, tokenizer.get_vocab_size(), causal)
    params = load_state(workdir)["params"].get("model")
    if params is None:
        raise none
    _check_fits(model, params, file)
    return Pretrained(model, tokenizer, params)


def _check_fits(model: LanguageModel, params: Tree, file: pathlib.Path) -> None:
    """InputError where a model has other parameters, but for learned positions, whose number is
    none of its fields."""
    made = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    shapes = [
        {k: x.shape for k, x in flatten(tree).items() if "position" not in k}
        for tree in (made, params)
    ]
    if shapes[0] != shapes[1]:
        raise damaged(file, "its net or tokenizer is not the one of the weights", TRAIN_AGAIN)
