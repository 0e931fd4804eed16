"""Changes of the code between runs: what computes something else in one than in another."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import functools
import subprocess

from ssljax.record import CHECKOUT, git
from ssljax.runs import FoundRun

Said = tuple[bool, str]  # Whether it is known, and what.
# What a result is computed by, besides the file of the experiment.
COMPUTES = tuple(
    f"ssljax/{name}"
    for name in (
        "data/",
        "evals/",
        "losses/",
        "models/",
        "experiment.py",
        "optim.py",
        "pretrained.py",
        "program.py",
        "sharding.py",
    )
)


@dataclass(frozen=True)
class Code:
    """The code of a launch."""

    commit: str  # Of ssljax; empty outside a checkout.
    version: str = ""  # Of ssljax.
    uncommitted: str = ""  # What had changed since the commit, as git shows it.
    experiment: str = ""  # Name of the experiment's file, and its text.
    file: str = ""
    own: str = ""  # Commit of the repository that the experiment's file lies in, if not ssljax's.


def code_of(run: FoundRun) -> list[Code]:
    """The code of each launch that trained or evaluated, the last one's last."""
    found, launches, source, file = {}, run.record["launches"], run.folder / "source", ""
    for i, launch in enumerate(launches):
        last = i == len(launches) - 1
        name = f"{run.experiment}.py"
        for copy in (source / name if i == 0 else None, source / f"launch{i + 1}" / name):
            if copy and copy.exists():
                file = copy.read_text(encoding="utf-8", errors="replace")
        if last or launch.get("start", 0) < launches[i + 1].get("start", 0):
            diff = source / f"uncommitted{i + 1}.diff"
            text = diff.read_text(encoding="utf-8", errors="replace") if diff.exists() else ""
            version = str(launch["versions"].get("ssljax", ""))
            at = launch["commit"].rstrip("+")
            own = (launch.get("repository") or {}).get("commit", "")
            own = "" if own.rstrip("+") == at else own
            found[Code(at, version, text, run.experiment, file, own)] = None
    return list(found)


def changed_code(a: Code, b: Code) -> list[Said]:
    """What computes something else in one code than in another, or why that is not known.

    Comments and docstrings of what is committed compute nothing, nor do logs and tables; the files
    of two different experiments are not compared.
    """
    said: list[Said] = []
    same = a.experiment == b.experiment and a.file and b.file
    if same and _statements(a.file) != _statements(b.file):
        said.append((True, f"{a.experiment}.py is not the same"))
    if a.uncommitted != b.uncommitted:
        lines = [*a.uncommitted.splitlines(), *b.uncommitted.splitlines()]
        touched = {x.removeprefix("+++ b/") for x in lines if x.startswith("+++ b/")}
        if changed := sorted(name for name in touched if name.startswith(COMPUTES)):
            said.append((True, f"uncommitted changes of {_listed(changed)}"))
    if a.commit != b.commit:
        said += _changed_commits(a, b)
    elif not a.commit and a.version != b.version:
        said.append((True, f"versions {a.version} and {b.version} of ssljax"))
    if a.own and b.own and (a.own != b.own or a.own.endswith("+")):
        what = "whose other files are not compared"
        said.append((False, f"the experiments' own repository at {a.own} and {b.own}, {what}"))
    return said


def _changed_commits(a: Code, b: Code) -> Iterator[Said]:
    try:
        if not (a.commit and b.commit):
            raise OSError
        names = git(CHECKOUT, "diff", "--name-only", a.commit, b.commit, "--", "ssljax")
    except (OSError, subprocess.CalledProcessError):
        known = [code.commit or f"version {code.version or 'unknown'}" for code in (a, b)]
        yield False, f"ssljax at {known[0]} and {known[1]}, which can't be compared here"
        return
    changed = [
        name
        for name in names.splitlines()
        if name.startswith(COMPUTES)
        and _statements(_at(a.commit, name)) != _statements(_at(b.commit, name))
    ]
    if changed:
        yield True, f"{_listed(changed)} changed between {a.commit} and {b.commit}"


def _at(commit: str, name: str) -> str:
    """A file at a commit; empty for no such file."""
    try:
        return git(CHECKOUT, "show", f"{commit}:{name}")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")


@functools.lru_cache(64)
def _statements(code: str) -> str:
    """Python's code without comments and docstrings; as it is where it is none."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return code
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [x for x in body if not _is_text(x)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
