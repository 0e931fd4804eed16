"""The experiment files that come with ssljax: in a checkout, and inside an installed package."""

import ast
import difflib
import importlib.machinery
import keyword
import pathlib
import re
import sys

from ssljax.errors import InputError

PACKAGE = pathlib.Path(__file__).parent
INSTALLED, CHECKOUT = PACKAGE / "experiments", PACKAGE.parent / "experiments"
FOLDER = INSTALLED if INSTALLED.is_dir() else CHECKOUT


def names() -> list[str]:
    """Names of the experiments, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.py"))


def path_of(name: str) -> pathlib.Path:
    """The file of an experiment; InputError with the nearest name where there is none."""
    if name not in names():
        near = difflib.get_close_matches(name.lower(), names(), 1, 0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        own = pathlib.Path(name if name.endswith(".py") else f"{name}.py")
        file = f"Your own file is ./{own}. " if own.is_file() else ""
        raise InputError(f"There is no experiment {name}: {hint}{file}`ssljax run` lists them.")
    return FOLDER / f"{name}.py"


def summary(name: str) -> str:
    """The first paragraph of an experiment's docstring on one line, without web addresses."""
    text = ast.get_docstring(ast.parse(path_of(name).read_text(encoding="utf-8"))) or ""
    return re.sub(r",? https?://[^\s),;]+", "", " ".join(text.partition("\n\n")[0].split()))


def command(name: str) -> str:
    """The command that runs an experiment: in a checkout its script, elsewhere `ssljax run`."""
    return f"launch/local.sh experiments/{name}.py" if FOLDER == CHECKOUT else f"ssljax run {name}"


def fork(name: str, to: pathlib.Path) -> None:
    """Copies an experiment's file to `to`, with its function renamed after the new file.

    Runs of both then have folders of their own. InputError where `to` exists, can't be written, or
    has a name that no function can have, or that a module has, whose imports would find `to`.
    """
    source = path_of(name)
    if to.suffix != ".py" or not to.stem.isidentifier() or keyword.iskeyword(to.stem):
        raise InputError(
            f"{to.name} must be a name of letters, digits and _ that ends in .py, and no word of "
            "Python's: its function is named after it."
        )
    found = importlib.machinery.PathFinder.find_spec(to.stem)
    other = found and found.origin and pathlib.Path(found.origin).resolve() != to.resolve()
    if other or to.stem in sys.builtin_module_names:
        raise InputError(
            f"{to.name} would hide the module {to.stem} from all that import it: choose another "
            "name."
        )
    text = renamed(source.read_text(encoding="utf-8"), name, to.stem)
    text = text.replace(f"launch/local.sh experiments/{name}.py", f"python {to.name}")
    try:
        with to.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{to} exists: choose another name.") from None
    except OSError as e:
        raise InputError(f"{to} can't be written ({e.strerror}): choose another folder.") from e


def renamed(code: str, name: str, to: str) -> str:
    """Code in which a function of the module, and all that refers to it, has another name."""
    lines = code.splitlines(keepends=True)
    places = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            places.add((node.lineno, node.col_offset + len("def ")))
        elif isinstance(node, ast.Name) and node.id == name:
            places.add((node.lineno, node.col_offset))
    for line, column in sorted(places, reverse=True):
        text = lines[line - 1].encode()  # Columns are bytes.
        text = text[:column] + to.encode() + text[column + len(name.encode()) :]
        lines[line - 1] = text.decode()
    return "".join(lines)
