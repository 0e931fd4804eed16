"""Package: the wheel, the command `ssljax`, and packages of extras that are missing."""

import ast
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import zipfile

import pytest

import ssljax
from ssljax import __main__ as command
from ssljax import extras, InputError, methods
from ssljax.data.audio import recordings_in
from ssljax.data.documents import Documents, documents
from ssljax.data.tfds import builder_of
from ssljax.data.tokenizers import characters
from ssljax.weights import read_weights
from tests.conftest import ROOT

SETS = ["doodles", "digits"]
NAMES = sorted(file.stem for file in (ROOT / "experiments").glob("*.py"))


def run_command(capsys, *args: str) -> tuple[int, str, str]:
    """Exit status, output and errors of a command."""
    try:
        command.main(args)
        status = 0
    except SystemExit as e:
        status = e.code or 0
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_wheel_has_the_code_the_experiments_and_what_they_read(tmp_path):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("ssljax", "experiments"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    build = "from setuptools import build_meta; print('WHEEL', build_meta.build_wheel('..'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with zipfile.ZipFile(tmp_path / done.stdout.split("WHEEL ")[1].strip()) as wheel:
        inside = {name for name in wheel.namelist() if "dist-info" not in name}
        info = {name.partition("/")[2]: name for name in wheel.namelist() if "dist-info" in name}
        entry, metadata = (wheel.read(info[k]).decode() for k in ("entry_points.txt", "METADATA"))
    here = {str(p.relative_to(source)) for p in (source / "ssljax").rglob("*") if p.is_file()}
    files = {f"ssljax/experiments/{name}.py" for name in NAMES}
    assert inside == here | files | {"ssljax/experiments/ledger.json"}
    assert {"ssljax/py.typed", "ssljax/data/doodles.npz", "ssljax/data/doodles.md"} <= inside
    assert entry == "[console_scripts]\nssljax = ssljax.__main__:main\n"
    assert f"\nVersion: {ssljax.__version__}\n" in metadata
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    always = {re.split(r"[: <>=]+", line)[1] for line in needed if "extra ==" not in line}
    rare = {"tensorflow-datasets", "tokenizers", "soundfile", "pyarrow", "tensorboard", "wandb"}
    assert {"jax", "flax", "optax"} <= always and not always & rare


def test_help_lists_every_command(capsys):
    status, said, _ = run_command(capsys, "--help")
    assert status == 0 and run_command(capsys)[1] == said
    lines = [line.split(maxsplit=1) for line in said.splitlines() if line.startswith("  ")]
    assert {name for name, about in lines if about} == command.COMMANDS.keys()
    assert max(map(len, said.splitlines())) <= 100
    assert run_command(capsys, "--version") == (0, f"ssljax {ssljax.__version__}\n", "")


@pytest.mark.parametrize("name", [name for name in command.COMMANDS if name != "run"])
def test_every_command_has_help_under_its_own_name(capsys, here, name):
    status, said, error = run_command(capsys, name, "--help")
    assert status == 0 and error == "" and said.startswith(f"usage: ssljax {name} ")


def test_version_is_that_of_the_citation():
    cited = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.*)$", cited, re.M) == [ssljax.__version__]


def test_run_without_a_name_lists_the_experiments(capsys):
    status, said, _ = run_command(capsys, "run")
    lines = dict(line.split(maxsplit=1) for line in said.splitlines() if line.startswith("  "))
    assert status == 0 and sorted(lines) == NAMES
    assert lines["simclr"] == "SimCLR (Chen et al., 2020): two views of an image agree."
    assert not any("http" in about for about in lines.values())
    assert max(map(len, said.splitlines())) <= 100


def test_a_reader_that_leaves_early_ends_the_list_without_a_word():
    command = [sys.executable, "-m", "ssljax", "run"]
    done = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    done.stdout.close()
    assert done.stderr.read() == b"" and done.wait() == 128 + signal.SIGPIPE
    done.stderr.close()


@pytest.mark.parametrize(
    "args, words",
    [
        (["runn"], ["no command runn: did you mean run?"]),
        (["simclr"], ["did you mean ssljax run simclr?"]),
        (["run", "simclrr"], ["no experiment simclrr: did you mean simclr?"]),
        (["run", "SimCLR"], ["did you mean simclr?"]),
        (["run", "zzzz"], ["no experiment zzzz: `ssljax run` lists them"]),
        (["run", "./nowhere.py"], ["no file ./nowhere.py"]),
        (["run", "mine"], ["no experiment mine:", "Your own file is ./mine.py"]),
        (["fork", "simclr"], ["an experiment and a new file"]),
        (["fork", "simclrr", "x.py"], ["did you mean simclr?"]),
        (["fork", "simclr", "mine.py"], ["mine.py exists"]),
        (["fork", "simclr", "my-own.py"], ["my-own.py must be a name of letters"]),
        (["fork", "simclr", "own.txt"], ["own.txt must be a name", "ends in .py"]),
        (["fork", "simclr", "nowhere/own.py"], ["nowhere/own.py can't be written"]),
        (["fork", "simclr", "class.py"], ["class.py must be a name", "no word of Python's"]),
        (["fork", "simclr", "random.py"], ["random.py would hide the module random"]),
        (["fork", "simclr", "jax.py"], ["jax.py would hide the module jax"]),
    ],
)
def test_commands_that_cannot_be_done_are_one_sentence(capsys, here, args, words):
    (here / "mine.py").write_text("kept")
    status, said, error = run_command(capsys, *args)
    assert status == 2 and said == "" and error.startswith("error: ") and error.count("\n") == 1
    assert all(word in error for word in words), error
    assert [file.name for file in here.iterdir()] == ["mine.py"]
    assert (here / "mine.py").read_text() == "kept"


def test_run_is_python_with_the_file(capsys, here):
    (here / "helper.py").write_text("word = 'helped'")
    mine = here / "mine.py"
    mine.write_text("import sys\nfrom helper import word\nprint(__name__, sys.argv, word)\n")
    plain = subprocess.run([sys.executable, mine, "--lr", "0"], capture_output=True, text=True)
    assert run_command(capsys, "run", str(mine), "--lr", "0") == (0, plain.stdout, "")


def test_an_experiment_of_ours_runs_by_its_name(capsys, here, monkeypatch):
    ran = []
    monkeypatch.setattr("runpy.run_path", lambda file, run_name: ran.append((file, run_name)))
    assert run_command(capsys, "run", "simclr", "--epochs", "3")[0] == 0
    assert ran == [(str(ROOT / "experiments" / "simclr.py"), "__main__")]
    assert sys.argv == [ran[0][0], "--epochs", "3"]


def test_commands_in_errors_are_those_of_a_checkout_or_of_a_package(monkeypatch):
    assert methods.command("vae") == "launch/local.sh experiments/vae.py"
    monkeypatch.setattr(methods, "FOLDER", methods.INSTALLED)
    assert methods.command("vae") == "ssljax run vae"


@pytest.mark.parametrize("name", NAMES)
def test_a_fork_differs_in_the_name_of_its_function_alone(here, name):
    methods.fork(name, here / "my_own_method.py")
    code = (here / "my_own_method.py").read_text()
    original = (ROOT / "experiments" / f"{name}.py").read_text()
    back = code.replace("python my_own_method.py", f"launch/local.sh experiments/{name}.py")
    assert back.replace("my_own_method", name) == original
    tree = ast.parse(code)
    assert name not in {x.id for x in ast.walk(tree) if isinstance(x, ast.Name)}
    assert "my_own_method" in {x.name for x in tree.body if isinstance(x, ast.FunctionDef)}
    assert ast.unparse(tree.body[-1].body[-1]) == "main(my_own_method)"
    imports = lambda tree: [ast.unparse(x) for x in tree.body if isinstance(x, ast.ImportFrom)]
    assert imports(tree) == imports(ast.parse(original))


def test_a_fork_says_what_runs_it(capsys, here):
    (here / "my own").mkdir()
    status, said, _ = run_command(capsys, "fork", "vae", "my own/mine.py")
    assert status == 0 and "`python 'my own/mine.py'` runs it" in said
    assert ast.parse((here / "my own" / "mine.py").read_text())


# Packages of extras.


def test_every_extra_that_is_named_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for module, extra in extras.EXTRAS.items():
        packages = [re.split("[<>=]", x)[0] for x in project["optional-dependencies"][extra]]
        assert module.replace("_", "-") in packages


CIFAR, TYPO = "cifar10 is no file or folder", "doodels is no file or folder (did you mean doodles?)"


@pytest.mark.parametrize(
    "module, use, user, extra",
    [
        ("tokenizers", lambda at: characters(Documents(["text"])), "Text", "text"),
        ("soundfile", lambda at: recordings_in(at, [f"{at}/a.wav"], True), "a.wav", "sound"),
        ("pyarrow", lambda at: documents(str(at / "a.parquet"), "train"), "a.parquet", "parquet"),
        ("huggingface_hub", lambda at: read_weights("hf-hub:a/b"), "hf-hub:a/b", "hub"),
        ("tensorflow_datasets", lambda at: builder_of("cifar10", SETS, ""), CIFAR, "tfds"),
        ("tensorflow_datasets", lambda at: builder_of("doodels", SETS, ""), TYPO, "tfds"),
    ],
)
def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch, module, use, user, extra):
    for name in ("a.wav", "a.parquet"):
        (tmp_path / name).touch()
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError) as error:
        use(tmp_path)
    said = str(error.value).removeprefix(f"{tmp_path}/")
    assert said.startswith(user)
    assert said.endswith(
        f' needs the package {module}, which is not installed: pip install "ssljax[{extra}]".'
    )
