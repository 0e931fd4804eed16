"""Loaded runs: the arrays, the record and the features of a run's last checkpoint."""

from collections.abc import Callable, Iterator, Mapping
import contextvars
import dataclasses
from dataclasses import dataclass
import difflib
import functools
import importlib.util
import inspect
import pathlib
import sys
import types
from typing import Annotated, Any, get_args, get_origin, get_type_hints, Literal, Union

from flax.errors import ScopeParamShapeError
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from ssljax import fingerprint, methods, sharding
from ssljax.checkpoint import flatten, load_state
from ssljax.data.described import standing_in
from ssljax.errors import InputError
from ssljax.experiment import Batch, Experiment, TrainState
from ssljax.processes import muted
from ssljax.ranges import names_itself
from ssljax.record import plain, read_file, read_record

Tree = Any
Kind = Literal["pictures", "points", "texts"]  # Of samples.
_importing: contextvars.ContextVar[str] = contextvars.ContextVar("importing", default="")


def refuse_while_importing() -> None:
    """InputError where a file is being imported for its function, and would train or load a run."""
    if file := _importing.get():
        raise InputError(
            f"{file} trains or loads a run where it is imported, which happens to find its "
            'experiment\'s function: put that below `if __name__ == "__main__":`.'
        )


@dataclass(frozen=True)
class Loaded:
    """A run's last whole checkpoint, with the run's record and its features of images."""

    workdir: pathlib.Path
    state: dict[str, Any]
    """Host arrays as nested dictionaries: "params", "opt_state", "extra" and "step"."""
    make: Callable[..., Experiment] | None = None
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the experiment in place of those in the record."""

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """Content of record.json; InputError where it is damaged or missing."""
        try:
            return read_record(self.workdir, "train that run again")
        except FileNotFoundError:
            raise InputError(f"{self.workdir} holds no record.json: put back a copy.") from None

    @functools.cached_property
    def arguments(self) -> tuple[Callable[..., Experiment], dict[str, Any]]:
        """The function of the run's experiment, and its arguments.

        InputError as of `make_of` and `restore_arguments`, and for a change of no argument.
        """
        make = self.make or make_of(self.record, self.workdir)
        arguments = restore_arguments(make, self.record["computes"], self.workdir)
        takes = inspect.signature(make).parameters
        for name in self.changes:
            if name not in takes:
                near = difflib.get_close_matches(name, takes, 1)
                hint = f": did you mean {near[0]}?" if near else f", only {', '.join(takes)}."
                raise InputError(f"The experiment of {self.workdir} has no argument {name}{hint}")
        return make, {**arguments, **self.changes}

    @functools.cached_property
    def experiment(self) -> Experiment:
        """The run's experiment, made again from the arguments in its record.

        InputError where that is not possible, such as for data that is no longer there.
        """
        make, arguments = self.arguments
        try:
            return make(**arguments)
        except InputError as e:
            raise InputError(f"The experiment of {self.workdir} can't be made again: {e}") from e

    @functools.cached_property
    def encoding(self) -> Experiment:
        """`experiment`, or one in which what isn't here, or has changed, is replaced
        (`described.standing_in`).

        Data is replaced by noise of its form, and a pretrained run by this one. Its `encode`,
        `embed`, `sample` and `init` are those of the run. InputError as of `experiment`, and where
        features depend on the data, such as on the mean of its images.
        """
        read = self.record.get("read") or {}
        try:
            exp = self.experiment
            changed = fingerprint.changed(read, exp.origin.read if exp.origin else {})
            if not changed:
                return exp
            error = InputError(
                f"{', '.join(changed)} is not what the run in {self.workdir} read: put that back."
            )
        except InputError as e:
            error = e
        make, arguments = self.arguments
        file = self.workdir / "tokenizer.json"
        tokenizer = (
            read_file(self.workdir, file.name, "train that run again") if file.exists() else ""
        )
        return without_data(make, arguments, read, error, tokenizer, str(self.workdir))

    def encode(self, images: Any) -> Array:
        """Features (n, d) of uint8 images (n, h, w, c), rows of tokens or waves.

        They are those of the run's own evaluators, and need its data only where they depend on it.
        InputError where the experiment can't be made again or has no `encode`, or where images are
        not of the type and the shape that training has.
        """
        encode, state, kinds = self._encoder
        x = images if isinstance(images, Array) else np.asarray(images)
        if x.dtype.kind not in "biuf":
            raise InputError(
                "Give uint8 images (n, h, w, c), waves (n, t) or rows of tokens (n, t), not "
                f"{x.dtype}; `python -m ssljax.features` encodes the files of a folder."
            )
        if jnp.uint8 in kinds and x.dtype != jnp.uint8:
            raise InputError(f"Images must be uint8, as in training, not {x.dtype}.")
        like = _examples(self.batch)
        channels = x.ndim != 4 or x.shape[-1] == like.shape[-1]
        if x.ndim != like.ndim or not channels or not len(x):
            wanted = (*"nhw", like.shape[-1]) if like.ndim == 4 else ("n", *like.shape[1:])
            raise InputError(
                f"Give an array ({', '.join(map(str, wanted))}) of one example or more, not "
                f"{x.shape}."
            )
        try:
            return encode(state, jnp.asarray(x))
        except ScopeParamShapeError as e:
            shape = ", ".join(map(str, like.shape[1:]))
            raise InputError(
                f"The run's examples are ({shape}), and these are {x.shape[1:]}: resize them."
            ) from e

    def sample(
        self,
        n: int,
        seed: int = 0,
        *,
        label: int | str | None = None,
        prompt: str = "",
        tokens: int = 400,
        batch_size: int = 64,
    ) -> Any:
        """`n` samples: uint8 pictures (n, h, w, c), float32 points (n, 2), or a list of texts.

        The same seed and batch size give the same samples. A `label`, a class's name or its number,
        is for runs that were given classes; the `prompt` is the text that language models continue,
        by a number of `tokens`. Settings of sampling, such as guidance, are those of the run unless
        `load` was given others. InputError where the experiment draws none, or not so.
        """
        if n < 1 or batch_size < 1:
            raise InputError(f"Samples, and those drawn at once, are 1 or more, not {n}.")
        sample, state = self._sampler, self.train_state
        takes, given = inspect.signature(sample).parameters, {}
        if self.draws == "texts":
            given = {"prompt": self._tokens_of(prompt), "tokens": tokens}
        elif prompt:
            raise InputError(f"The run in {self.workdir} continues no text: leave the prompt out.")
        if label is not None:
            given["label"] = self._class_of(label, "label" in takes)
        size = min(n, batch_size)
        # A call with the same sizes is not compiled again, as the function is the same.
        draw = jax.jit(sample, static_argnums=2, static_argnames=given.keys() & {"tokens"})
        keys = (jax.random.fold_in(jax.random.key(seed), i) for i in range(-(-n // size)))
        found = np.concatenate([np.asarray(draw(state, key, size, **given)) for key in keys])[:n]
        if self.draws == "texts":
            decode = self._tokenizer.decode
            return [decode(row, skip_special_tokens=False) for row in found.tolist()]
        if self.draws == "pictures":
            return np.round(255 * np.clip(found, 0, 1)).astype(np.uint8)
        return found

    @functools.cached_property
    def draws(self) -> Kind:
        """What `sample` gives; InputError where the experiment draws none."""
        if "prompt" in inspect.signature(self._sampler).parameters:
            return "texts"
        one = lambda state, key: self._sampler(state, key, 1)
        return kind_of(jax.eval_shape(one, self.train_state, jax.random.key(0)))

    @property
    def _sampler(self) -> Callable[..., Array]:
        if self.encoding.sample is None:
            raise InputError(f"The experiment of {self.workdir} draws no samples.")
        return self.encoding.sample

    @functools.cached_property
    def _tokenizer(self) -> Any:
        from ssljax.data.tokenizers import load_tokenizer

        return load_tokenizer(self.workdir)

    def _tokens_of(self, prompt: str) -> Array:
        ids = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        if not ids:
            raise InputError("Give a prompt, the text that samples continue, of known characters.")
        return jnp.asarray(ids, jnp.int32)

    def _class_of(self, label: int | str, possible: bool) -> int:
        """The number of a class that samples may be of."""
        read = (self.record.get("read") or {}).values()
        forms = [x["form"] for parts in read for x in fingerprint.forms_of(parts).values()]
        names: list[str] = next((x["classes"] for x in forms if x.get("classes")), [])
        if not possible or (forms and not names):
            raise InputError(f"The run in {self.workdir} was given no classes: leave label out.")
        if str(label) in names:
            return names.index(str(label))
        # The records of older versions have no names.
        if str(label).isdecimal() and (int(label) < len(names) or not forms):
            return int(label)
        near = difflib.get_close_matches(str(label), names, 3) or names[:3]
        raise InputError(
            f"There is no class {label}, of {len(names):,}: give a name, such as "
            f"{' or '.join(near)}, or a number from 0 to {len(names) - 1}."
        )

    @functools.cached_property
    def batch(self) -> Batch:
        """Shapes and types of a batch of training; InputError as of `encoding`."""
        return batch_of(self.encoding)

    @functools.cached_property
    def _encoder(self) -> tuple[Callable, TrainState, set[Any]]:
        """The compiled function, the state that it reads, and the types of the training data."""
        exp = self.encoding
        if exp.encode is None:
            raise InputError(
                f"The experiment of {self.workdir} has no encode: compute features from the "
                "arrays in `state`."
            )
        state = self.train_state
        kinds = {x.dtype.type for x in jax.tree.leaves(self.batch)}
        return jax.jit(exp.encode), state, kinds

    @functools.cached_property
    def train_state(self) -> TrainState:
        """The state as the experiment's functions take it, without an optimizer's.

        InputError as of `encoding`, and where the checkpoint and the experiment have other arrays.
        """
        shapes = jax.eval_shape(self.encoding.init, jax.random.key(0), self.batch)
        arrays = flatten({k: self.state.get(k) for k in ("step", "params", "extra")})

        def array(path: Any, x: jax.ShapeDtypeStruct) -> Array:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            found = arrays.get(name)
            if found is None or np.shape(found) != x.shape:
                cure = "the code that it was trained with"
                cure = f"{cure}, and without {', '.join(self.changes)}" if self.changes else cure
                raise InputError(
                    f"The checkpoint in {self.workdir} and its experiment have another {name}: "
                    f"load it with {cure}."
                )
            return jnp.asarray(found, x.dtype)

        shapes = shapes.replace(opt_state=())  # Features are not computed from it.
        return jax.tree_util.tree_map_with_path(array, shapes)


def load(
    workdir: str | pathlib.Path,
    seed: int = 0,
    make: Callable[..., Experiment] | None = None,
    **changes: Any,
) -> Loaded:
    """The run in `workdir` at its last whole checkpoint.

    Of a run with several seeds, lane `seed` (counted from 0). `make` is the function of the run's
    experiment, by default the one of its file, which is looked for among those of ssljax and in the
    current folder; no code is read from the run's folder. `changes` are arguments of the experiment
    in place of those of the run, such as guidance=3.0, with which `sample` draws; they can't change
    the shapes of its arrays. Damaged checkpoints after the last whole one are named. InputError
    where there is none.
    """
    refuse_while_importing()
    return Loaded(pathlib.Path(workdir).expanduser(), load_state(workdir, seed), make, changes)


def make_of(record: Mapping[str, Any], workdir: pathlib.Path) -> Callable[..., Experiment]:
    """The function of a run's experiment file: one of ssljax or of the current folder.

    Where both have a file of its name, it is the one that the run was launched with, or the one
    that is more like it.
    """
    if "experiment" in record and not record["experiment"]:
        raise InputError(
            f"The run in {workdir} was made by a function that is in no file: give it, "
            "ssljax.load(workdir, make=...)."
        )
    name = pathlib.Path(record.get("experiment") or record["launches"][-1]["command"][0]).stem
    function = record.get("function") or name
    files = [folder / f"{name}.py" for folder in (methods.FOLDER, pathlib.Path.cwd())]
    files = [file for file in files if file.is_file()]
    if not files:
        raise InputError(
            f"The run in {workdir} was made by {name}.py, which is no file of {methods.FOLDER} or "
            f"of this folder: go to the folder of {name}.py, or give the function that makes its "
            "experiment, ssljax.load(workdir, make=...)."
        )
    copies = sorted((workdir / "source").rglob(f"{name}.py"), key=lambda f: f.stat().st_mtime)
    file = files[0]
    if copies:
        launched = copies[-1].read_bytes().splitlines()
        alike = [
            difflib.SequenceMatcher(None, launched, f.read_bytes().splitlines()).ratio()
            for f in files
        ]
        file = files[alike.index(max(alike))]
        if max(alike) < 1:
            print(f"Note: {file} is not the {name}.py that {workdir} was last launched with.")
    spec = importlib.util.spec_from_file_location(f"experiments.{name}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no module of Python.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))  # Of what it imports, as where `python FILE` runs it.
    token = _importing.set(str(file))
    try:
        spec.loader.exec_module(module)
    finally:
        _importing.reset(token)
        sys.path.remove(str(file.parent))
    if not hasattr(module, function):
        raise InputError(
            f"{file} has no function {function}: name the one that makes its experiment so, or "
            "give it, ssljax.load(workdir, make=...)."
        )
    return getattr(module, function)


def without_data(
    make: Callable[..., Experiment],
    arguments: Mapping[str, Any],
    read: Mapping[str, Any],
    error: InputError,
    tokenizer: str = "",
    workdir: str = "",
) -> Experiment:
    """An experiment on noise of the form of its data, which `read`, of a record, has; says so.

    In place of a text it needs the run's `tokenizer`, the content of its file, and of a pretrained
    run its own folder, `workdir`. `error` is what `make(**arguments)` raises, for want of these. It
    is raised where anything else is wrong, and where features depend on the content of the data.
    """
    found = []
    for seed in (0, 1):
        with standing_in(read, seed, tokenizer, workdir) as absent, muted():
            try:
                found.append(make(**arguments))
            except InputError:
                raise error from None
    if not absent:
        raise error
    one, other = found
    if one.encode is not None and other.encode is not None:
        batch, rng = batch_of(one), np.random.default_rng(2)
        shapes = jax.eval_shape(one.init, jax.random.key(0), batch).replace(opt_state=())
        state = jax.tree.map(lambda x: _drawn(x, rng), shapes)
        like = _examples(batch)
        most = 256 if "image" in batch else 2  # Any vocabulary has two tokens.
        images = jnp.asarray(rng.integers(0, most, (2, *like.shape[1:])), like.dtype)
        z = [np.asarray(jax.jit(e.encode)(state, images)) for e in (one, other)]
        if not np.array_equal(*z, equal_nan=True):
            raise InputError(f"{error} Its features depend on the content of the data.")
    verb, them = ("isn't", "it") if len(absent) == 1 else ("aren't", "them")
    print(
        f"Note: {', '.join(sorted(absent))} {verb} here as the run read {them}; features are "
        f"computed without {them}."
    )
    return one


def _drawn(x: jax.ShapeDtypeStruct, rng: np.random.Generator) -> Array:
    """Values of an array of a net with which outputs are neither constant nor huge."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.zeros(x.shape, x.dtype)
    if len(x.shape) < 2:
        return jnp.asarray(rng.uniform(0.5, 1.5, x.shape), x.dtype)
    return jnp.asarray(rng.normal(size=x.shape) / np.prod(x.shape[:-1]) ** 0.5, x.dtype)


def restore_arguments(
    make: Callable, computes: Mapping[str, Any], workdir: str | pathlib.Path
) -> dict[str, Any]:
    """The arguments of `make` that a record has as JSON.

    An argument that an older record lacks has its default. InputError for one that `make` does not
    take, or whose value is none of its annotation.
    """
    parameters = inspect.signature(make).parameters
    own = make.func if isinstance(make, functools.partial) else make
    hints = get_type_hints(own, include_extras=True)
    found = {}
    computes = dict(computes)
    for name, hint in hints.items():
        if names_itself(name, hint):
            fields = {f.name for f in dataclasses.fields(hint)} & computes.keys()
            default = plain(parameters[name].default)
            computes[name] = default | {k: computes.pop(k) for k in fields}
    for name, form in computes.items():
        if name == "run":  # The seeds.
            continue
        try:
            if name not in parameters:
                raise ValueError(f"{own.__name__} has no such argument")
            found[name] = _restored(form, hints.get(name, Any), parameters[name].default)
        except (ValueError, TypeError) as e:
            why = str(e).splitlines()[0]
            raise InputError(
                f"The argument {name} in the record of {workdir} can't be restored ({why}): give "
                "the function that the run was made with, ssljax.load(workdir, make=...), or a net "
                f"of your own by make=functools.partial({own.__name__}, {name}=...)."
            ) from e
    return found


def _restored(form: Any, hint: Any, default: Any) -> Any:
    """An argument from what `record.plain` gave, by its annotation and default.

    ValueError where the annotation has no such class.
    """
    if default is not inspect.Parameter.empty and plain(default) == form:
        return default  # As it must be for functions, which have only names in a record.
    kinds = list(_classes(hint))
    if isinstance(form, dict) and "class" in form:
        named = [kind for kind in kinds if kind.__name__ == form["class"]]
        if not named:
            raise ValueError(f"there is no class {form['class']} for it")
        hints = get_type_hints(named[0], include_extras=True)
        defaults = {f.name: f.default for f in dataclasses.fields(named[0])}
        values = {}
        for name, value in form.items():
            if name == "class":
                continue
            if name not in defaults:
                raise ValueError(f"{form['class']} has no field {name}")
            usual = defaults[name]
            usual = inspect.Parameter.empty if usual is dataclasses.MISSING else usual
            values[name] = _restored(value, hints[name], usual)
        return named[0](**values)
    if isinstance(form, dict):
        return {k: _restored(v, Any, inspect.Parameter.empty) for k, v in form.items()}
    if isinstance(form, list):
        items = [hint for kind in _options(hint) if get_origin(kind) for hint in get_args(kind)]
        inner = Union[tuple(x for x in items if x is not ...)] if items else Any  # noqa: UP007
        found = [_restored(x, inner, inspect.Parameter.empty) for x in form]
        return found if list in kinds else tuple(found)
    if isinstance(form, str) and Callable in kinds and str not in kinds:
        raise ValueError(f"{form} is only the name of a function")
    return form


def _options(hint: Any) -> Iterator[Any]:
    """The types of an annotation, with those of a union apart."""
    if get_origin(hint) is Annotated:
        yield from _options(get_args(hint)[0])
    elif get_origin(hint) in (Union, types.UnionType):
        for option in get_args(hint):
            yield from _options(option)
    else:
        yield hint


def _classes(hint: Any) -> Iterator[type]:
    """The classes of an annotation, list for list[int]."""
    for option in _options(hint):
        kind = get_origin(option) or option
        if isinstance(kind, type):
            yield kind


def kind_of(samples: Any) -> Kind:
    """The kind of samples that are no texts, by their shape."""
    return "pictures" if samples.ndim == 4 else "points"


def _examples(batch: Batch) -> Any:
    """What of a batch `encode` takes: images, waves or rows of tokens."""
    return batch["image"] if "image" in batch else batch["tokens"]


def batch_of(exp: Experiment) -> Batch:
    """Shapes of a batch of an experiment."""
    mesh = sharding.make_mesh()
    first = next(exp.data.feed(0, 0, mesh))
    return jax.eval_shape(exp.data.batch, exp.data.resident(), first)
