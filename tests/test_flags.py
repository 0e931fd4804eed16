"""Every flag of every experiment: it has a help text and a range, and a bad value is one sentence.

A new file in experiments/ is tested here without further ado: its flags are found by annotation.
"""

import ast
from collections.abc import Callable, Iterator
import dataclasses
from dataclasses import dataclass
import functools
import importlib
import inspect
import re
import textwrap
import types
from typing import Annotated, Any, get_args, get_origin, get_type_hints, Literal, Union
import zlib

import docstring_parser
import pytest

from ssljax import cli, InputError, load, Run, train
from ssljax.__main__ import main as command_line
from ssljax.ranges import _named, _without_prefix, check_value, flag, NotEmpty, Range
from ssljax.report import write_report
from tests.conftest import ROOT

FILES = sorted(p.stem for p in (ROOT / "experiments").glob("*.py"))
NAN, INFINITY = float("nan"), float("inf")


@dataclass(frozen=True)
class Option:
    """A flag: the argument, or the field of one, that it sets."""

    path: str  # head.widths
    words: tuple[str, ...]  # Nets to choose before it: ("encoder:res-net",).
    notes: tuple[Any, ...]  # Of its Annotated type.
    hint: Any  # Its type without these.
    owner: Any  # Function or class that has it.
    name: str  # Its name there.
    with_value: Callable[[Any], tuple[str, Any]]  # (argument, its value) with this option changed.


def function_of(file: str) -> Callable:
    module = importlib.import_module(f"experiments.{file}")
    assert hasattr(module, file), f"experiments/{file}.py needs a function {file}, named after it"
    return getattr(module, file)


@functools.cache
def options_of(file: str) -> list[Option]:
    function = function_of(file)
    hints = get_type_hints(function, include_extras=True)
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        found += walk(
            name, hints[name], parameter.default, (), function, name, lambda x, name=name: (name, x)
        )
    return found


def walk(path, hint, default, words, owner, name, with_value) -> Iterator[Option]:
    notes = []
    while get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        notes += more
    for note in notes:
        path = _named(path, note)
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    nets = [kind for kind in kinds if dataclasses.is_dataclass(bare(kind))]
    if not nets:
        yield Option(path, words, tuple(notes), hint, owner, name, with_value)
    for kind in nets:
        net = bare(kind)
        instance = default if isinstance(default, net) else net()
        chosen = (*words, f"{flag(path)[2:]}:{subcommand(kind)}") if len(nets) > 1 else words
        prefix = "" if _without_prefix(net) or not path else f"{path}."
        fields = {f.name for f in dataclasses.fields(net) if f.init} - {"parent", "name"}
        for part, inner in get_type_hints(net, include_extras=True).items():

            def changed(x, instance=instance, part=part):
                return with_value(replaced(instance, part, x))

            if part in fields:
                yield from walk(
                    f"{prefix}{part}", inner, getattr(instance, part), chosen, net, part, changed
                )


def replaced(instance, part, value):
    """A copy with a field changed, and not checked by the class itself."""
    if isinstance(value, InputError):
        return value
    try:
        return dataclasses.replace(instance, **{part: value})
    except InputError as e:
        return e


def bare(kind):
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return kind


def subcommand(kind) -> str:
    """tyro's name of a net: ResNet is res-net, unless it is annotated with another."""
    for note in get_args(kind)[1:] if get_origin(kind) is Annotated else ():
        if isinstance(getattr(note, "name", None), str):
            return note.name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", bare(kind).__name__).lower()


ALL = [(file, option) for file in FILES for option in options_of(file)]


def id_of(x) -> str:
    return x if isinstance(x, str) else "-".join([*x.words, x.path])


# Help.


@functools.cache
def helps(owner) -> dict[str, str]:
    """The help text of each argument of a function, or of each field of a class."""
    if not isinstance(owner, type):
        parsed = docstring_parser.parse(owner.__doc__ or "").params
        return {p.arg_name: p.description or "" for p in parsed}
    found = {}
    for kind in reversed(owner.__mro__[:-1]):
        if not dataclasses.is_dataclass(kind):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        for item, text in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(item, ast.AnnAssign):
                documented = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
                found[item.target.id] = str(text.value.value) if documented else ""
    return found


def lacking_help(options) -> list[str]:
    return sorted(
        {
            f"{o.owner.__module__}.{o.owner.__qualname__}: {o.name}"
            for o in options
            if not helps(o.owner).get(o.name, "").strip()
        }
    )


@pytest.mark.parametrize("file", FILES)
def test_every_flag_has_a_help_text(file):
    lacking = lacking_help(options_of(file))
    assert not lacking, "no help text:\n" + "\n".join(lacking)


@pytest.mark.parametrize("file", FILES)
def test_help_texts_are_of_arguments_that_exist(file):
    function = function_of(file)
    assert set(helps(function)) <= set(inspect.signature(function).parameters)


def test_a_missing_help_text_is_found():
    @dataclass
    class Net:
        widths: int = 1
        """Widths."""
        depth: int = 1

    def method(lr: float = 0.1, net: Net = Net()):
        """Method.

        Args:
            net: Net.
        """

    hints = get_type_hints(method, localns={"Net": Net})
    options = []
    for name, hint in hints.items():
        default = inspect.signature(method).parameters[name].default
        options += walk(name, hint, default, (), method, name, lambda x: ("", x))
    assert [line.split(": ")[1] for line in lacking_help(options)] == ["depth", "lr"]


# Ranges.


def numbers_without_range(hint, noted=False) -> bool:
    """Whether a type has an int or a float that no Range stands by."""
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        return numbers_without_range(inner, noted or any(isinstance(n, Range) for n in notes))
    if hint in (int, float):
        return not noted
    if get_origin(hint) is Literal:
        return False
    return any(numbers_without_range(kind) for kind in get_args(hint) if kind is not Ellipsis)


def test_a_bare_number_is_found():
    ranged = Annotated[int, Range(least=1)]
    for hint in (int, float, float | None, tuple[int, ...], ranged | float, tuple[ranged, int]):
        assert numbers_without_range(hint)
    for hint in (str, bool, ranged, tuple[ranged, ...] | None, Literal[18, 34]):
        assert not numbers_without_range(hint)


@pytest.mark.parametrize("file", FILES)
def test_every_number_has_a_range(file):
    lacking = sorted(
        {
            f"{o.owner.__module__}.{o.owner.__qualname__}: {o.name}"
            for o in options_of(file)
            if numbers_without_range(Annotated[(o.hint, *o.notes)] if o.notes else o.hint)
        }
    )
    assert not lacking, "no range (see ssljax/ranges.py):\n" + "\n".join(lacking)


# Bad values.


def bad_values(hint, notes=()) -> list[Any]:
    """Values that a type does not allow: numbers out of their range, empty lists, other words."""
    if get_origin(hint) is Annotated:
        inner, *more = get_args(hint)
        return bad_values(inner, (*notes, *more))
    if hint in (int, float):
        numbers = [0, -1] if hint is int else [NAN, INFINITY, -1.0, 0.0, 1.0, 2.0]
        ranges = [note for note in notes if isinstance(note, Range)]
        return [x for x in numbers if not all(r.holds(x) for r in ranges)] + ["fast"]
    if get_origin(hint) is Literal:
        return ["nonsense"]
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        each = kinds[:1] if kinds[1:] == (...,) else kinds
        good = [good_value(kind) for kind in each]
        lists = [
            (*good[:i], bad, *good[i + 1 :])
            for i, kind in enumerate(each)
            for bad in bad_values(kind)
        ]
        empty = any(isinstance(note, NotEmpty) for note in notes)
        return lists + [()] * empty
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        if bool in kinds or str in kinds:
            return []
        bad = [x for kind in kinds for x in bad_values(kind)]
        return [x for x in bad if not any(allows(kind, x) for kind in kinds)]
    return []


def good_value(hint, notes=()):
    if get_origin(hint) is Annotated:
        inner, *more = get_args(hint)
        return good_value(inner, (*notes, *more))
    ranges = [note for note in notes if isinstance(note, Range)]
    candidates = [1, 2, 0] if hint is int else [0.5, 0.25, 1.0]
    return next(x for x in candidates if all(r.holds(x) for r in ranges))


def allows(hint, x) -> bool:
    """Whether x is none of the bad values of a type, by their text as a command line has them."""
    if isinstance(x, tuple) and get_origin(bare(hint)) is not tuple:
        return len(x) == 1 and allows(hint, x[0])
    if get_origin(bare(hint)) is tuple:
        kinds = get_args(bare(hint))
        many = kinds[1:] == (...,)
        x = x if isinstance(x, tuple) else (x,)
        fits = len(x) > 0 if many else len(x) == len(kinds)
        return fits and all(allows(kinds[0] if many else kinds[i], v) for i, v in enumerate(x))
    return not any(repr(x) == repr(bad) for bad in bad_values(hint))


def as_words(x) -> list[str]:
    return [str(v) for v in x] if isinstance(x, tuple) else [str(x)]


class DataWereRead(Exception):
    """A file has read its data before it checked its arguments."""


@pytest.fixture
def unreadable(monkeypatch):
    """unreadable(file): whatever of ssljax.data the file calls fails from here on."""

    def refuse(*args, **kwargs):
        raise DataWereRead

    def use(file):
        module = importlib.import_module(f"experiments.{file}")
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__.startswith("ssljax.data"):
                monkeypatch.setattr(module, name, refuse)

    return use


def one_sentence(capsys, function, words) -> str:
    with pytest.raises(SystemExit) as e:
        cli.main(function, words)
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1, err
    return err


SEEN = set()  # Fields of nets that many files have: their command line is tried once.


@pytest.mark.parametrize("file, option", ALL, ids=id_of)
def test_bad_values_are_one_sentence_before_data_are_read(file, option, unreadable, capsys):
    hint = Annotated[(option.hint, *option.notes)] if option.notes else option.hint
    bad = bad_values(hint)
    unreadable(file)
    function = function_of(file)
    for x in bad:
        if "fast" in as_words(x) or x == "nonsense":
            continue  # Types are the command line's to check.
        argument, value = option.with_value(x)
        if not isinstance(value, InputError):
            with pytest.raises(InputError) as e:
                function(**{argument: value})
            value = e.value
        assert flag(option.path) in str(value)
    key = (option.owner, option.name)
    if not bad or (isinstance(option.owner, type) and key in SEEN):
        return
    SEEN.add(key)
    drawn = zlib.crc32(f"{file}{option.path}".encode())
    words_only = [x for x in bad if "fast" in as_words(x)]
    for values in filter(None, ([x for x in bad if x not in words_only], words_only)):
        words = [*option.words, flag(option.path), *as_words(values[drawn % len(values)])]
        assert flag(option.path) in one_sentence(capsys, function, words)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Run)])
def test_bad_values_of_runtime_options_are_refused(field):
    hint = get_type_hints(Run, include_extras=True)[field]
    for x in bad_values(hint):
        if x not in ("fast", "nonsense"):
            with pytest.raises(InputError, match=flag(f"run.{field}")):
                check_value("run", dataclasses.replace(Run(), **{field: x}), Run)


@pytest.mark.parametrize(
    "file, words, sentence",
    [
        ("moco", "--queue 100", "--queue must be a multiple of --batch-size 128"),
        ("nnclr", "--queue 64", "--queue must be a multiple of --batch-size 128"),
        ("byol", "--head.widths 64", "--predictor.widths must end with 64"),
        ("simsiam", "--predictor.widths 64 32", "--predictor.widths must end with 128"),
        ("mocov3", "--head.widths 64", "--predictor.widths must end with 64"),
        ("nnclr", "--predictor.widths 3", "--predictor.widths must end with 128"),
        ("ijepa", "--predictor-width 50", "--predictor-width must be a multiple of 12"),
        ("mae", "--decoder-width 30", "--decoder-width must be a multiple of 4"),
        ("lejepa", "--large 1", "choose --large or --small above 1"),
        ("swav", "--part 0.1", "--part must lie between --crop 0.2 and --crop-most 1.0"),
        ("simclr", "--crop 0.9 --crop-most 0.5", "--crop must be at most --crop-most 0.5"),
        ("autoencoder", "--sparsity 0.1", "needs --sigmoid-code"),
        ("autoencoder", "--noise masking --amount 1.5", "--amount must be at most 1"),
    ],
)
def test_arguments_that_do_not_fit_are_one_sentence(file, words, sentence, unreadable, capsys):
    unreadable(file)
    assert sentence in one_sentence(capsys, function_of(file), words.split())


# Other words.


@pytest.mark.parametrize("columns", ["60", "200"])  # tyro's error is a box of the terminal's width.
@pytest.mark.parametrize(
    "words, sentence",
    [
        ("--learning-rate 1", "There is no flag --learning-rate: did you mean --lr?"),
        ("--temprature 1", "There is no flag --temprature: did you mean --temperature?"),
        ("--seed 1", "There is no flag --seed: did you mean --run.seed?"),
        ("--run.sed 1", "There is no flag --run.sed: did you mean --run.seed?"),
        ("--bogusness 1", "There is no flag --bogusness; --help lists all flags."),
        ("stray", "There is no stray; --help lists all flags."),
        ("--encoder res-net", "--encoder takes no value: write encoder:res-net, then"),
        ("--encoder mlp", "write one of encoder:conv-net, encoder:res-net, encoder:vit."),
        ("encoder:resnet", "There is no encoder:resnet: did you mean encoder:res-net?"),
        ("--encoder.patch 4", "--encoder.patch is a flag of another net: write encoder:vit before"),
        ("--lr fast", "--lr must be a number, not 'fast'."),
        ("--lr", "--lr needs a value."),
        ("--epochs 1.5", "--epochs must be a whole number, not '1.5'."),
        ("--head.widths 8 a", "--head.widths must be one or more numbers, not '8 a'."),
        ("--jitter 0.1 a", "--jitter must be one or more numbers, as --help says, not '0.1 a'."),
        ("--optimizer adam", "--optimizer must be one of adamw, sgd, lars, lars-outer, not 'adam'"),
        ("encoder:res-net --encoder.depth 19", "--encoder.depth must be one of 18, 34, 50, not"),
    ],
)
def test_errors_of_the_parser_are_one_sentence(words, sentence, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert sentence in one_sentence(capsys, function_of("simclr"), words.split())


ADDRESSES = [
    ("run", "simclr", "--run.workdir", "gs://bucket/run"),
    ("run", "simclr", "--data=s3://bucket/photos"),
    ("run", "finetune", "--pretrained", "gs://bucket/run"),
    ("runs", "gs://bucket/runs"),
    ("compare", "runs/a", "gs://bucket/b"),
    ("compare", "runs/a", "--html", "s3://bucket/c.html"),
    ("features", "runs/a", "photos", "-o", "gs://bucket/z.npz"),
    ("sample", "runs/a", "-o", "gs://bucket/folder"),
    ("export", "runs/a", "--to", "timm", "-o", "https://host/folder"),
    ("prepare", "photos", "--to", "gs://bucket/shards"),
]


@pytest.mark.parametrize("words", ADDRESSES, ids=" ".join)
def test_address_in_place_of_a_path_is_refused(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        command_line(words)
    address = words[-1].rpartition("=")[2]
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1, said
    assert f" {address} is an address, not a folder or file of this machine: mount the" in said
    assert not list(tmp_path.iterdir())


def test_address_is_refused_in_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: train(None, Run(workdir="gs://bucket/run")),
        lambda: load("gs://bucket/run"),
        lambda: write_report("gs://bucket/run"),
    ):
        with pytest.raises(InputError, match="gs://bucket/run is an address"):
            call()
    assert not list(tmp_path.iterdir())
