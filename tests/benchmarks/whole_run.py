"""SimCLR from the command to its numbers, by ssljax and by other libraries, in one table.

    .venv/bin/python tests/benchmarks/whole_run.py --lightly ENV/bin/python \
        --stable-pretraining ENV/bin/python [--runs 5]

Each ENV has its library: pip install lightly, pip install stable-pretraining. All train the same
net on the embedded drawings with the same batches, views, optimizer and epochs, each by the program
that its user writes (tests/benchmarks/users/, experiments/simclr.py), in turns, in processes of
their own on all cores. The table has the median of the runs and their range of

- seconds from the command to the end of the first step, once with an empty cache of compiled
  programs (ssljax alone has one), then with a filled one;
- images a second after the first step, reading and views included;
- the most memory of all processes together (proportional set size), in MB;
- kNN accuracy of the test images in percent, by ssljax's evaluator on each side's features;
- lines of code of the program, without comments, docstrings and empty lines.

ssljax evaluates the untrained net before its first step, as its user's command does; the others
evaluate nothing. A run of ssljax has the seed of its number; the others draw theirs.

Measured with `--runs 3 --epochs 8` on two cores of a shared host, alone there (2026-11-28; JAX
0.10.2, Flax 0.12.8, lightly 1.6.0), median and range; all runs of ssljax had seed 0:

                   first step, s           images/s          memory, MB            kNN, %  lines
    ssljax   22.7 (18.8 to 26.6) 1278 (1131 to 1310) 1317 (1024 to 1430)            39.15     51
    lightly   5.98 (5.50 to 7.38)   468 (326 to 515) 1094 (1090 to 1107)  42.4 (42 to 42.6)   71
    First step of ssljax with an empty cache: 29.9 s.

Two settings explain the kNN. After one epoch lightly's program had 32.05, 32.45 and 33.25, ours
27.3, 28.4 and 28.7 with seeds 0 to 2; with a BatchNorm at the end of the head, as lightly's has,
29.2 and 28.8; with PyTorch's initial kernels, 0.41 times as large as He's, 29.4 and 31.6; with both
31.9 and 32.2.
"""

import argparse
import ast
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

from ssljax.backends import start_backends

ROOT = pathlib.Path(__file__).parent.parent.parent
USERS = pathlib.Path(__file__).parent / "users"
DOODLES = ROOT / "ssljax" / "data" / "doodles.npz"
PROGRAMS = {
    "ssljax": ROOT / "experiments" / "simclr.py",
    "lightly": USERS / "simclr_lightly.py",
    "stable-pretraining": USERS / "simclr_stable_pretraining.py",
}
COLUMNS = ("first step, s", "images/s", "memory, MB", "kNN, %")


def lines_of_code(path: pathlib.Path) -> int:
    """Lines that hold code; docstrings, comments and empty lines are left out."""
    tree = ast.parse(path.read_text())
    bodies = [
        n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)
    ]
    strings = {id(n.body[0]) for n in bodies if ast.get_docstring(n, clean=False) is not None}
    nodes = (n for n in ast.walk(tree) if hasattr(n, "lineno"))
    doc = [n for n in nodes if id(n) in strings]
    left_out = {line for n in doc for line in range(n.lineno, n.end_lineno + 1)}
    numbered = enumerate(path.read_text().splitlines(), 1)
    return sum(
        i not in left_out and bool(line.strip()) and not line.strip().startswith("#")
        for i, line in numbered
    )


def memory_of(session: int) -> float:
    """Proportional set size of all processes of a session, in MB."""
    total = 0
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[3]) == session:
                found = re.search(r"^Pss: *(\d+)", (stat.parent / "smaps_rollup").read_text(), re.M)
                total += int(found[1]) if found else 0
        except (OSError, ValueError):
            continue  # It has ended.
    return total / 1024


def run(command: list[str], folder: str, env: dict[str, str]) -> tuple[str, float, float]:
    """Output of a command, when it started, and the most memory that it took."""
    start, most = time.time(), [0.0]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:

        def watch() -> None:
            while process.poll() is None:
                most[0] = max(most[0], memory_of(process.pid))
                time.sleep(0.5)

        thread = threading.Thread(target=watch)
        thread.start()
        out = process.communicate()[0]
        thread.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)} has failed:\n{out[-3000:]}")
    return out, start, most[0]


def ours(folder: str, cache: str, epochs: int, seed: int) -> list[float]:
    """Numbers of a run of ssljax, in the order of COLUMNS."""
    command = [sys.executable, str(PROGRAMS["ssljax"]), "--epochs", str(epochs)]
    command += ["--run.seed", str(seed), "--run.workdir", f"{folder}/run"]
    out, _, memory = run(command, folder, {"SSLJAX_CACHE": cache})
    first = float(re.search(r"First step ([\d.]+) s after the start", out)[1])
    log = pathlib.Path(folder, "run", "metrics.jsonl").read_text().splitlines()
    rows = map(json.loads, log)
    rates = [row["examples_per_second"] for row in rows if "examples_per_second" in row]
    results = json.loads(pathlib.Path(folder, "run", "results.json").read_text())["results"]
    return [first, statistics.median(rates), memory, results["knn/accuracy"][0]]


def theirs(python: str, program: pathlib.Path, folder: str, epochs: int) -> list[float]:
    """Numbers of a run of another library, in the order of COLUMNS."""
    command = [python, str(program), str(DOODLES), f"{folder}/features.npz", str(epochs)]
    out, start, memory = run(command, folder, {})
    first = float(re.search(r"FIRST (\S+)", out)[1]) - start
    rate = float(re.search(r"RATE (\S+)", out)[1])
    return [first, rate, memory, accuracy(f"{folder}/features.npz")]


def accuracy(path: str) -> float:
    """kNN accuracy of saved features, in percent."""
    from ssljax.evals.knn import neighbours, vote

    labels, found = np.load(DOODLES), np.load(path)
    sims, index = neighbours(found["train"], found["test"], 20)
    said = vote(sims, labels["train_labels"][index], 0.07)[0]
    return 100 * float(np.mean(said == labels["test_labels"]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lightly", help="the Python that has lightly")
    parser.add_argument("--stable-pretraining", help="the Python that has stable-pretraining")
    parser.add_argument("--runs", type=int, default=5, help="of each side")
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    start_backends()  # For `accuracy`.
    peers = {name: getattr(args, name.replace("-", "_")) for name in list(PROGRAMS)[1:]}
    peers = {name: python for name, python in peers.items() if python}
    print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores")
    for name, python in {"jax": sys.executable, "flax": sys.executable, **peers}.items():
        code = f"from importlib.metadata import version as v\nprint({name!r}, v({name!r}))"
        print(subprocess.run([python, "-c", code], text=True, capture_output=True).stdout.strip())
    found: dict[str, list[list[float]]] = {"ssljax": [], **{name: [] for name in peers}}
    with tempfile.TemporaryDirectory() as cache:
        for i in range(args.runs):
            for name, rows in found.items():
                with tempfile.TemporaryDirectory() as folder:
                    python = peers.get(name)
                    rows.append(
                        theirs(python, PROGRAMS[name], folder, args.epochs)
                        if python
                        else ours(folder, cache, args.epochs, i)
                    )
                print(f"run {i}, {name}: {[round(x, 1) for x in rows[-1]]}", flush=True)
    cold = found["ssljax"][0][0]
    print(f"\n{'':20}" + "".join(f"{c:>26}" for c in COLUMNS) + f"{'lines':>8}")
    for name, rows in found.items():
        cells = []
        for column in range(len(COLUMNS)):
            values = [row[column] for row in rows]
            if column == 0 and name == "ssljax":
                values = values[1:] or values
            low, high = min(values), max(values)
            cells.append(f"{statistics.median(values):.4g} ({low:.4g} to {high:.4g})")
        lines = lines_of_code(PROGRAMS[name])
        print(f"{name:20}" + "".join(f"{c:>26}" for c in cells) + f"{lines:>8}")
    print(f"First step of ssljax with an empty cache: {cold:.1f} s.")


if __name__ == "__main__":
    main()
