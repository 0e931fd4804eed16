"""Pretrained models: the encoder of images or the language model of another run, or from a file.

`--pretrained` is the folder of a run; a safetensors file of `ssljax.export`; a ResNet or ViT of
torchvision, timm or transformers, or a GPT-2, BERT, Llama, EuroBERT or T5 1.1 of transformers, as a
.safetensors or a folder with one and its config.json; or hf-hub:OWNER/NAME.
"""

from collections.abc import Collection, Mapping, Sequence
import functools
import json
import pathlib
import shlex
from typing import Any, Literal, NamedTuple, TYPE_CHECKING

import flax.linen as nn
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax import fingerprint, methods
from ssljax.checkpoint import flatten, load_state
from ssljax.data import described
from ssljax.data.documents import AnyDocuments, Documents
from ssljax.data.token_feeds import document_rows
from ssljax.data.token_rows import labelled_rows, masked_tokenizer, TokenKind
from ssljax.data.tokenizers import encode, id_of, load_tokenizer, PAD_AND_STOP, text_to_text
from ssljax.errors import InputError
from ssljax.experiment import Batch, Experiment, TrainState
from ssljax.foreign import read_encoder, read_encoder_decoder, read_language_model
from ssljax.loaded import batch_of, load, make_of, restore_arguments, without_data
from ssljax.models.encoder import build, KNOWN, rebuild
from ssljax.models.encoder_decoder import beam_search, decode, EncoderDecoder
from ssljax.models.transformer import LanguageModel, Transformer
from ssljax.models.vit import at_places_of
from ssljax.processes import is_muted, labelled
from ssljax.record import damaged, plain, read_file, read_json, read_record
from ssljax.weights import is_weights, nested, read_weights, Weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Tree = Any
TRAIN_AGAIN = "train that run again"
MODELS = {"Transformer": "a language model", "EncoderDecoder": "an encoder and decoder of text"}


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
        there, here = ({k: jnp.shape(x) for k, x in flatten(x).items()} for x in (new, old))
        for name in there.keys() | here.keys() if there != here else ():
            if there.get(name) != here.get(name):
                raise InputError(
                    f"The encoder in {self.workdir} takes images of another size, or of other "
                    f"channels, than these ({name} is of shape {there.get(name)} there, and would "
                    f"be of {here.get(name)} here): give the --data and the --image-size of that "
                    "run, or data that is resized to it."
                )
        return state.replace(
            params=state.params | {"encoder": params}, extra=state.extra | {"encoder": stats}
        )


def encoder_of(
    workdir: str | pathlib.Path, seed: int = 0, net: nn.Module | None = None
) -> PretrainedEncoder:
    """The encoder of images that a run keeps, as its experiment says (`Experiment.kept`).

    `workdir` may also be weights in a file (`ssljax.weights`). Of a run that keeps none but
    encodes, such as a VAE's or a GAN's, the encoder is its `encode` (`RunEncoder`). Of several
    seeds, lane `seed`. `net` is the encoder's module where it is none of ssljax.models.encoder.
    What is loaded is printed. InputError where there is no such run, none with an encoder, one
    whose encoder is of an unknown class or of another than `net`, or weights that are of no net of
    ours.
    """
    try:
        if is_weights(str(workdir)):
            return _encoder_in(read_weights(str(workdir)), net)
        return _encoder_of_run(workdir, seed, net)
    except InputError:
        if not (own := described.own_run(workdir)):
            raise
        return _encoder_of_run(own, 0, net)


def _encoder_of_run(
    workdir: str | pathlib.Path, seed: int, net: nn.Module | None
) -> PretrainedEncoder:
    none = _no_run(workdir, "a file with an --encoder or a --vit", "simclr")
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
        state = load_state(workdir, seed)
        arrays = {k: v for k, v in flatten(state).items() if k.startswith(("params/", "extra/"))}
        found = _run_encoder(arrays, record, workdir)
        if found is None:
            raise none
        return found
    net = _checked_net(net, form, workdir, file)
    state = load_state(workdir, seed)
    paths = kept or _kept_before(state)
    params, stats = (_part(state, paths[k]) for k in ("params", "stats"))
    if kept and (not params or (paths["stats"] and not stats)):
        raise damaged(file, "kept names no arrays of the run", TRAIN_AGAIN)
    if not params:
        raise none
    every = _names(state)
    used = {k for k in every for path in paths.values() if path and k.startswith(f"{path}/")}
    _say_loaded(workdir, used, every)
    return PretrainedEncoder(net, params, stats, workdir)


def _names(state: Mapping[str, Any]) -> list[str]:
    """Names of the arrays of a state that are not an optimizer's."""
    return [f"{k}/{name}" for k in ("params", "extra") for name in flatten(state.get(k, {}))]


def _say_loaded(
    where: Any, used: Collection[str], every: Collection[str], layout: str = ""
) -> None:
    """Prints how many arrays are loaded, and the names of the others, shortened."""
    left = [name for name in every if name not in used]
    line = f"{len(every) - len(left)} of {len(every)} arrays loaded from {where}"
    line += f" ({layout})" if layout else ""
    if left:
        groups: dict[str, int] = {}
        for name in left:
            start = "/".join(name.split("/")[:3])
            groups[start] = groups.get(start, 0) + 1
        shown = [k if n == 1 else f"{k} ({n})" for k, n in list(groups.items())[:8]]
        more = len(groups) - len(shown)
        line += f"; not {', '.join(shown)}" + f" and {more} groups more" * bool(more)
    if jax.process_index() == 0 and not is_muted():
        print(labelled("weights", line), flush=True)


def _encoder_in(weights: Weights, net: nn.Module | None) -> PretrainedEncoder:
    """The encoder in a file of weights."""
    fingerprint.report(weights.name, "weights", len(weights.arrays), weights.arrays)
    if not weights.card:
        found = read_encoder(weights.arrays, weights.config, weights.name)
        used = [k for k in weights.arrays if k not in found.left_out]
        _say_loaded(weights.name, used, list(weights.arrays), found.layout)
        params, stats = (nested(found.variables, f"{k}/") for k in ("params", "batch_stats"))
        return PretrainedEncoder(found.net, params, stats, weights.name)
    kept = weights.card.get("kept")
    if not kept:
        found = _run_encoder(weights.arrays, weights.card, weights.name)
        if found is None:
            raise InputError(f"{weights.name} holds no encoder of images: export a run with one.")
        return found
    net = _checked_net(net, kept["net"], weights.name, weights.folder / weights.name)
    paths = [f"{kept[k]}/" if kept[k] else "" for k in ("params", "stats")]
    params, stats = (nested(weights.arrays, path) if path else {} for path in paths)
    used = {k for k in weights.arrays for path in paths if path and k.startswith(path)}
    _say_loaded(weights.name, used, list(weights.arrays))
    return PretrainedEncoder(net, params, stats, weights.name)


class RunEncoder(nn.Module):
    """The `encode` of an experiment as a net of images in [0, 1], which it sees in 256 steps.

    Its parameters are those arrays of the experiment's state that `encode` reads. Batch statistics
    are not updated in training.
    """

    made_by: str
    """JSON of the experiment's file and of its arguments, as in a run's record."""

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        exp, batch, shapes, used = _encoding(self.made_by)
        if x.shape[1:] != batch["image"].shape[1:]:
            raise InputError(
                f"The pretrained run encodes images of {batch['image'].shape[1:]}, and these are "
                f"of {x.shape[1:]}: give the --data and the --image-size of that run, or data that "
                "is resized to it."
            )

        def start(part: str) -> Tree:
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(batch))
            return _read_arrays(exp.init(jax.random.key(0), zeros), used, part)

        arrays = {}
        if any(k.startswith("params/") for k in used):
            arrays |= flatten({"params": self.param("run", lambda _: start("params"))})
        if any(k.startswith("extra/") for k in used):
            held = self.variable("batch_stats", "run", lambda: start("extra"))
            arrays |= flatten({"extra": held.value})

        def array(path: Any, like: Any) -> Array:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return arrays[name] if name in arrays else jnp.zeros(like.shape, like.dtype)

        state, encode = jax.tree_util.tree_map_with_path(array, shapes), exp.encode
        assert encode is not None  # Or nothing would be read by it.
        return encode(state, jnp.round(255 * x).astype(jnp.uint8))


@functools.lru_cache(maxsize=4)
def _encoding(made_by: str) -> tuple[Experiment, Batch, TrainState, frozenset[str]]:
    """An experiment, shapes of a batch and a state, and the names of what `encode` reads."""
    form = json.loads(made_by)
    folder = pathlib.Path(form["experiment"])
    make = make_of(form, folder)
    arguments = restore_arguments(make, form["computes"], folder)
    try:
        exp = make(**arguments)
    except InputError as e:
        exp = without_data(make, arguments, form.get("read") or {}, e)
    batch = batch_of(exp)
    shapes = jax.eval_shape(exp.init, jax.random.key(0), batch).replace(opt_state=())
    return exp, batch, shapes, _arrays_read(exp, shapes, batch.get("image"))


def _arrays_read(exp: Experiment, state: TrainState, images: Any) -> frozenset[str]:
    """Names of the arrays of a state that features of images depend on; none where it has none."""
    if exp.encode is None or images is None or (images.dtype, images.ndim) != (np.uint8, 4):
        return frozenset()
    traced = jax.make_jaxpr(exp.encode)(state, images).jaxpr
    live = set(map(id, traced.outvars))
    for equation in reversed(traced.eqns):
        if any(id(x) in live for x in equation.outvars):
            live.update(map(id, equation.invars))
    return frozenset(name for name, x in zip(flatten(state), traced.invars) if id(x) in live)


def _read_arrays(state: Any, names: Collection[str], part: str) -> Tree:
    """Those arrays of a part of a state that are named, as nested dictionaries."""
    arrays = flatten({"params": state.params, "extra": state.extra})
    return nested({k: x for k, x in arrays.items() if k in names}, f"{part}/")


def _run_encoder(
    arrays: Mapping[str, Any], made: Mapping[str, Any], where: Any
) -> PretrainedEncoder | None:
    """The encoder of a run that keeps none; None where its experiment encodes no images.

    `arrays` are those of its state by name; `made` has the experiment's file, its arguments and the
    form of its data, which need not be here.
    """
    file = made.get("experiment") or made["launches"][-1]["command"][0]
    computes = {k: v for k, v in made["computes"].items() if k != "run"}
    read = {name: fingerprint.forms_of(parts) for name, parts in (made.get("read") or {}).items()}
    made_by = json.dumps({"experiment": file, "computes": computes, "read": read})
    try:
        _, _, shapes, used = _encoding(made_by)
    except InputError as e:
        raise InputError(f"The experiment of {where} can't be made again: {e}") from e
    if not used:
        return None
    for name, like in flatten(shapes).items():
        shape = np.shape(arrays[name]) if name in arrays else "missing"
        if name in used and shape != like.shape:
            raise InputError(
                f"The array {name} of {where} is {shape}, and its experiment has one of shape "
                f"{like.shape}: load it with the code that it was trained with."
            )
    kept = {k: arrays[k] for k in used}
    _say_loaded(where, used, list(arrays))
    params, stats = (nested(kept, f"{k}/") for k in ("params", "extra"))
    params, stats = ({"run": x} if x else {} for x in (params, stats))
    return PretrainedEncoder(RunEncoder(made_by), params, stats, where)


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
    if kind == RunEncoder.__name__ and isinstance(form.get("made_by"), str):
        _encoding(form["made_by"])  # Data can't be read later, while a program is traced.
        return RunEncoder(form["made_by"])
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


def _no_run(workdir: str | pathlib.Path, what: str, method: str) -> InputError:
    """Error for a folder without a run of what is wanted, which `method` makes."""
    there = pathlib.Path(workdir).expanduser().exists()
    return InputError(
        f"{workdir} {'holds' if there else 'does not exist, and so holds'} no run of {what}: check "
        f"the path, or make one with `{methods.command(method)} --run.workdir "
        f"{shlex.quote(str(workdir))}`."
    )


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
    """A model of text, what it reads with, and its weights as host arrays, None for a new one."""

    model: Any
    """A `LanguageModel` or an `EncoderDecoder`."""
    tokenizer: "Tokenizer"
    params: Tree = None
    reach: int = 0
    """Tokens of a row whose positions the weights have learned, where they are learned."""

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


def _for_rows(old: Pretrained, net: Transformer, workdir: str, length: int) -> Pretrained:
    """`old` with the dropout of `net`; InputError where its positions don't reach `length`."""
    # Rotary and relative positions reach any length.
    if old.model.net.positions == "learned" and length > old.reach:
        raise InputError(
            f"The model in {workdir} has learned the positions of {old.reach} tokens: give "
            f"--length {old.reach} or less, or pretrain on longer rows, or with --positions "
            "rotary."
        )
    return old._replace(model=old.model.clone(net=old.model.net.clone(dropout=net.dropout)))


def language_model_files(
    model: LanguageModel | EncoderDecoder, tokenizer: "Tokenizer"
) -> dict[str, str]:
    """`Experiment.files` of a model of text: its tokenizer.json and net.json."""
    if isinstance(model, EncoderDecoder):
        form = {"class": "EncoderDecoder", "net": plain(model.net)}
    else:
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
        return _for_rows(pretrained(workdir), net, workdir, length)
    tokenizer = masked_tokenizer(train, kind, vocabulary)
    return Pretrained(LanguageModel(net, tokenizer.get_vocab_size(), causal=False), tokenizer)


def pretrained_pairs(
    workdir: str, net: Transformer, train: AnyDocuments, vocabulary: int, length: int
) -> Pretrained:
    """The encoder and decoder of the run in `workdir`, with the dropout of `net`; or a new one.

    A new one, for an empty `workdir`, reads at most `vocabulary` tokens learned on `train`, and its
    sentinels. InputError as from `pretrained_or_new`.
    """
    if not workdir:
        tokenizer = text_to_text(train, vocabulary)
        return Pretrained(EncoderDecoder(net, tokenizer.get_vocab_size()), tokenizer)
    return _for_rows(pretrained(workdir, "EncoderDecoder"), net, workdir, length)


def answers(
    workdir: str | pathlib.Path, texts: Sequence[str], beams: int = 1, penalty: float = 0.6
) -> list[str]:
    """What the run of text_to_text, or of t5, in `workdir` answers to texts.

    They are read, and answers written, up to the lengths of the run. Of t5 both hold sentinels:
    the answer to "the <extra_id_0> sat" may be "<extra_id_0> cat". Beams as in `beam_search`.
    InputError where there is no such run, for an export, and for a text in place of a list.
    """
    if isinstance(texts, str):
        raise InputError("Give a list of texts: answers(run, [text]).")
    if is_weights(str(workdir)):
        raise InputError(f"{workdir} doesn't say how long answers are: give the folder of the run.")
    old = pretrained(workdir, "EncoderDecoder")
    if not texts:
        return []
    said = read_record(pathlib.Path(workdir).expanduser(), TRAIN_AGAIN)["computes"]
    length, most = said["length"], said.get("target_length", said["length"])
    stop = id_of(old.tokenizer, PAD_AND_STOP[1])
    rows = document_rows(*encode(old.tokenizer, Documents(list(texts))), length, -1, None, stop)

    def answer(params: Tree, rows: Array) -> Array:
        if beams != 1:
            return beam_search(old.model, params, rows, most, beams, penalty)[0]
        return decode(old.model, params, jax.random.key(0), rows, most)

    found = np.asarray(jax.jit(answer)(old.params, rows))
    return [old.tokenizer.decode(row[row >= 0], skip_special_tokens=False) for row in found]


def embeddings(workdir: str | pathlib.Path, of: Sequence[str] | np.ndarray) -> np.ndarray:
    """Embeddings (n, d) by the run of clip in `workdir` of texts, or of uint8 images (n, h, w, c).

    Both are in one space, and alike by the cosine. A text is cut after the --length of the run.
    InputError where there is no such run, where its captions aren't here, and for other arrays, or
    a text in place of a list.
    """
    run = load(workdir)
    embed = run.encoding.embed
    if embed is None:
        raise InputError(f"{workdir} holds no run on pictures and captions: give one of clip.")
    if isinstance(of, np.ndarray | Array):
        if of.dtype != np.uint8 or of.ndim != 4:
            raise InputError(
                f"Images must be uint8 (n, h, w, c), as in training, not {of.dtype} {of.shape}."
            )
        x = np.asarray(of)
    elif isinstance(of, str):
        raise InputError("Give a list of texts: embeddings(run, [text]).")
    else:
        length = run.batch["tokens"].shape[1]
        x = labelled_rows(load_tokenizer(workdir), Documents(list(of)), length).image
    return np.asarray(jax.jit(embed)(run.train_state, x))


def pretrained(
    workdir: str | pathlib.Path, kind: Literal["Transformer", "EncoderDecoder"] = "Transformer"
) -> Pretrained:
    """The language model of a run, of several seeds the first; or weights in a file.

    Of `kind` "EncoderDecoder" it is one with an encoder and a decoder. What is loaded is printed.
    InputError where there is no such model.
    """
    try:
        if is_weights(str(workdir)):
            return _model_in(read_weights(str(workdir)), kind)
        return _model_of_run(workdir, kind)
    except InputError:
        if not (own := described.own_run(workdir)):
            raise
        return _model_of_run(own, kind)


def _model_of_run(workdir: str | pathlib.Path, kind: str) -> Pretrained:
    method = {"Transformer": "bert", "EncoderDecoder": "t5"}[kind]
    none = _no_run(workdir, MODELS[kind], method)
    folder = pathlib.Path(workdir).expanduser()
    try:
        form, file = _form(folder, "net")
        read_file(folder, "tokenizer.json", TRAIN_AGAIN)
    except (FileNotFoundError, NotADirectoryError, KeyError):
        raise none from None
    if form["class"] != kind:
        raise none
    tokenizer = load_tokenizer(workdir)
    model = _model_of(form, tokenizer, file)
    state = load_state(workdir)
    params = state["params"].get("model")
    if params is None:
        raise none
    _check_fits(model, params, file)
    every = _names(state)
    _say_loaded(workdir, [k for k in every if k.startswith("params/model/")], every)
    return Pretrained(model, tokenizer, params, _reach(model.net, folder))


def _model_of(form: Mapping[str, Any], tokenizer: "Tokenizer", file: pathlib.Path) -> Any:
    """The model that the content of `file`, a net.json, describes."""
    pairs = form.get("class") == "EncoderDecoder"
    fields = form.get("net") if pairs else {k: v for k, v in form.items() if k != "causal"}
    causal = form.get("causal")
    try:
        if not isinstance(fields, dict):
            raise ValueError(f"net is {fields!r}")
        net = build(Transformer, fields)
        if causal not in (True, False, None):
            raise ValueError(f"causal is {causal!r}")
    except (ValueError, TypeError) as e:
        raise damaged(file, f"its net can't be built, {e}", TRAIN_AGAIN) from None
    if pairs:
        return EncoderDecoder(net, tokenizer.get_vocab_size())
    if causal is None:  # A run of an older version, where only masked models had a token [CLS].
        causal = tokenizer.token_to_id("[CLS]") is None
    return LanguageModel(net, tokenizer.get_vocab_size(), causal)


def _reach(net: Transformer, folder: pathlib.Path) -> int:
    """Tokens whose positions a run has learned: its rows may be shorter than its table."""
    if net.positions != "learned":
        return net.reach
    most = read_record(folder, TRAIN_AGAIN)["computes"].get("length", net.reach)
    if type(most) is not int:
        raise damaged(folder / "record.json", "length is no number", TRAIN_AGAIN)
    return most


def _model_in(weights: Weights, kind: str) -> Pretrained:
    """The model of a kind in a file of weights."""
    fingerprint.report(weights.name, "weights", len(weights.arrays), weights.arrays)
    tokenizer = load_tokenizer(weights.folder)
    name, every = weights.name, list(weights.arrays)
    if not weights.card:
        size = tokenizer.get_vocab_size()
        read = read_language_model if kind == "Transformer" else read_encoder_decoder
        found = read(weights.arrays, weights.config, name, size)
        _say_loaded(name, [k for k in every if k not in found.left_out], every, found.layout)
        params = {"params": nested(found.variables, "params/")}
        return Pretrained(found.net, tokenizer, params, found.net.net.reach)
    form = weights.card.get("model")
    start = "params/model/"
    used = [k for k in every if k.startswith(start)]
    if not form or not used or form["net"].get("class") != kind:
        raise InputError(f"{name} holds no run of {MODELS[kind]}: export a run that has one.")
    file = weights.folder / "net.json"
    model = _model_of(form["net"], tokenizer, file)
    params = nested(weights.arrays, start)
    _check_fits(model, params, file)
    _say_loaded(name, used, every)
    return Pretrained(model, tokenizer, params, form["reach"])


def _check_fits(model: Any, params: Tree, file: pathlib.Path) -> None:
    """InputError where a model has other parameters, but for learned positions, whose number is
    none of its fields."""
    tokens = [jnp.zeros((1, 2), jnp.int32)] * (2 if isinstance(model, EncoderDecoder) else 1)
    made = jax.eval_shape(model.init, jax.random.key(0), *tokens)
    shapes = [
        {k: x.shape for k, x in flatten(tree).items() if "position" not in k}
        for tree in (made, params)
    ]
    if shapes[0] != shapes[1]:
        raise damaged(file, "its net or tokenizer is not the one of the weights", TRAIN_AGAIN)
