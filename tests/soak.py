"""Soak: runs that are killed, stopped, doubled and damaged at random, until the time is up.

    python tests/soak.py --minutes 60
    python tests/soak.py --minutes 10 --only kills flips
    python tests/soak.py --repeat kills:17

The last line counts trials and faults; each fault is printed with the command that repeats it (the
moment of a kill depends on the machine, its seed on nothing). Every trial must end either as if
nothing had happened, to the bit, or in one sentence with exit status 2.
"""

import argparse
import contextlib
from dataclasses import dataclass
import functools
import importlib
import inspect
import io
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from ssljax import cli, load, logs  # noqa: E402
from ssljax.checkpoint import flatten  # noqa: E402
from ssljax.tensorboard import read_scalars  # noqa: E402

ENV = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
OFTEN = ["--run.log-every", "5", "--run.save-every", "10", "--run.eval-every", "20"]
TINY = ["tests/tiny.py", "--num-steps", "60", "--delay", "0.01", *OFTEN]
PROGRAMS = [
    TINY,
    [*TINY, "--run.seeds", "2"],
    ["experiments/simclr.py", "--data", "digits", "--epochs", "3", *OFTEN],
    ["experiments/vae.py", "--data", "digits", "--epochs", "3", *OFTEN],
    ["experiments/gan.py", "--data", "digits", "--epochs", "2", *OFTEN],
]
LIMIT = 300  # Seconds from which a program counts as hanging.


class Fault(Exception):
    """A trial ended in another way than it must."""


@dataclass
class Soak:
    """What trials share: a folder, and the unbroken runs that others are compared with."""

    folder: pathlib.Path
    programs: int = len(PROGRAMS)  # How many of PROGRAMS are used.

    @functools.cached_property
    def unbroken(self) -> dict[int, tuple[pathlib.Path, float]]:
        """By program: the folder and the seconds of a run that nothing happened to."""
        return {}

    def program(self, rng: random.Random) -> tuple[list[str], pathlib.Path, float]:
        """A program, and the folder and seconds of its unbroken run."""
        which = rng.randrange(self.programs)
        if which not in self.unbroken:
            workdir = self.folder / f"unbroken{which}"
            run(PROGRAMS[which], workdir)  # Compiles.
            shutil.rmtree(workdir)
            start = time.monotonic()
            if run(PROGRAMS[which], workdir)[0]:
                raise Fault(f"{PROGRAMS[which]} fails by itself")
            self.unbroken[which] = workdir, time.monotonic() - start
        return PROGRAMS[which], *self.unbroken[which]


def start(program: list[str], workdir: pathlib.Path) -> subprocess.Popen:
    """A program that writes what it says to two files."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    name = f"{workdir.name}.{time.monotonic_ns()}"
    with (
        open(workdir.with_name(f"{name}.out"), "w") as out,
        open(workdir.with_name(f"{name}.err"), "w") as err,
    ):
        command = [sys.executable, str(ROOT / program[0]), *program[1:]]
        process = subprocess.Popen(
            [*command, "--run.workdir", str(workdir)], env=ENV, stdout=out, stderr=err
        )
    process.said = (pathlib.Path(out.name), pathlib.Path(err.name))
    return process


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Exit status and standard error of a program; Fault where it hangs or prints a traceback."""
    try:
        status = process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        raise Fault(f"it hangs for {LIMIT} s") from None
    err = process.said[1].read_text(errors="replace")
    ours = "KeyboardInterrupt" not in err or "ssljax" in err  # Else in `import jax`, before us.
    if ("Traceback" in err and ours) or "Exception ignored" in err:
        raise Fault(f"a traceback, status {status}: ...{err[-1500:]}")
    if status == 2 and not (err.startswith("error: ") and err.count("\n") == 1):
        raise Fault(f"status 2 with another text than one sentence: {err[-1500:]}")
    if status == 1:
        raise Fault(f"status 1: {err[-1500:]}")
    return status, err


def run(program: list[str], workdir: pathlib.Path) -> tuple[int, str]:
    """Exit status and standard error of a program that runs to its end."""
    return finish(start(program, workdir))


def compare(a: pathlib.Path, b: pathlib.Path, numbers: bool = True) -> None:
    """Fault unless two finished runs hold the same arrays and, with `numbers`, the same results."""
    x, y = flatten(load(a).state), flatten(load(b).state)
    for name in {**x, **y}:
        if name not in x or name not in y or not np.array_equal(x[name], y[name], equal_nan=True):
            raise Fault(f"{name} differs from the unbroken run's")
    results = [json.loads((f / "results.json").read_text()) for f in (a, b)]
    steps = [r["step"] for r in logs.read_metrics(b) if "loss" in r or len(r) > 2]
    if steps != sorted(steps):
        raise Fault(f"the steps of metrics.jsonl don't rise: {steps}")
    if not numbers:
        return
    for part in ("results", "untrained"):
        if results[0][part] != results[1][part]:
            raise Fault(f"{part}: {results[0][part]} unbroken, {results[1][part]} here")
    rows = [_evaluations(f) for f in (a, b)]
    if rows[0] != rows[1]:
        raise Fault(f"evaluations.jsonl: {rows[0]} unbroken, {rows[1]} here")
    missing = {r["step"] for r in logs.read_metrics(a)} - {r["step"] for r in logs.read_metrics(b)}
    if missing:
        raise Fault(f"metrics.jsonl lacks steps {sorted(missing)}")
    wanted = {(k, r["step"]) for r in logs.read_metrics(b) for k in r if k != "step"}
    if read_scalars(b / "tensorboard") != wanted:
        raise Fault(f"TensorBoard: {wanted ^ read_scalars(b / 'tensorboard')} on one side alone")


def _evaluations(workdir: pathlib.Path) -> list[str]:
    rows = logs.read_rows(workdir / "evaluations.jsonl")
    return sorted(json.dumps({k: v for k, v in r.items() if k != "seconds"}) for r in rows)


# Kinds of trials: each is a function of the soak, a random generator and an empty folder.


def kills(soak: Soak, rng: random.Random, folder: pathlib.Path) -> None:
    """SIGKILL at random moments, then a run to the end."""
    program, whole, seconds = soak.program(rng)
    for _ in range(rng.randint(1, 3)):
        process = start(program, folder / "run")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.1, seconds))
        process.kill()
        finish(process)
    status, err = run(program, folder / "run")
    if status:
        raise Fault(f"status {status} after kills: {err}")
    compare(whole, folder / "run")


def signals(soak: Soak, rng: random.Random, folder: pathlib.Path) -> None:
    """One or two signals at random moments, then a run to the end."""
    program, whole, seconds = soak.program(rng)
    sent = rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    process = start(program, folder / "run")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(rng.uniform(0.1, seconds))
    process.send_signal(sent)
    if rng.random() < 0.6:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.25, 1.5))
        process.send_signal(sent)
    status, err = finish(process)
    if status not in (0, 128 + sent, -sent):
        raise Fault(f"status {status} after {sent.name}: {err}")
    status, err = run(program, folder / "run")
    if status:
        raise Fault(f"status {status} after {sent.name} and a new start: {err}")
    compare(whole, folder / "run")


def flips(soak: Soak, rng: random.Random, folder: pathlib.Path) -> None:
    """A file of a run's folder is damaged or removed; the run resumes."""
    program, whole, seconds = soak.program(rng)
    copy = folder / "run"
    if rng.random() < 0.5:
        shutil.copytree(whole, copy)
    else:
        process = start(program, copy)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.5 * seconds, seconds))
        process.kill()
        process.wait()
    files = sorted(f for f in copy.rglob("*") if f.is_file())
    if not files:
        return
    file = rng.choice(files)
    kind, data = rng.choice(("flip", "cut", "empty", "remove")), bytearray(file.read_bytes())
    what = f"{kind} in {file.relative_to(copy)}"
    if kind == "remove" or not data:
        file.unlink()
    elif kind == "flip":
        at = rng.randrange(8 * len(data))
        data[at // 8] ^= 1 << at % 8
        file.write_bytes(data)
    else:
        file.write_bytes(data[: rng.randrange(len(data)) if kind == "cut" else 0])
    try:
        status, err = run(program, copy)
        if status not in (0, 2):
            raise Fault(f"status {status}: {err}")
        if status == 0:  # A digit of a text may be another one: only arrays have digests.
            compare(whole, copy, numbers=file.suffix not in (".jsonl", ".json", ".vm"))
    except Fault as e:
        raise Fault(f"{what}: {e}") from None


def doubled(soak: Soak, rng: random.Random, folder: pathlib.Path) -> None:
    """Two runs in one folder: one ends as ever, the other in a sentence."""
    program, whole, seconds = soak.program(rng)
    first = start(program, folder / "run")
    with contextlib.suppress(subprocess.TimeoutExpired):
        first.wait(rng.uniform(0, seconds))
    second = start(program, folder / "run")
    ended = [finish(first), finish(second)]
    if sorted(status for status, _ in ended) not in ([0, 0], [0, 2]):
        raise Fault(f"two runs in one folder: {ended}")
    compare(whole, folder / "run")


def disk(soak: Soak, rng: random.Random, folder: pathlib.Path) -> None:
    """A disk that is full at a random moment, then has room."""
    place = folder / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        return  # Root alone can mount one.
    try:
        program, whole, _ = soak.program(rng)
        used = sum(f.stat().st_size for f in whole.rglob("*") if f.is_file())
        with open(place / "ballast", "wb") as ballast:
            ballast.write(b"0" * (40 * 2**20 - rng.randrange(4096, 2 * used)))
        status, err = run(program, place / "run")
        if status not in (0, 2):
            raise Fault(f"status {status}: {err}")
        (place / "ballast").unlink()
        status, err = run(program, place / "run")
        if status:
            raise Fault(f"status {status} when there was room again: {err}")
        compare(whole, place / "run")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def call(name: str, flags: list[str]) -> tuple[int, str]:
    """Exit status and standard error of an experiment that is built here but not trained."""
    make = getattr(importlib.import_module(f"experiments.{name}"), name)
    train, cli.train = cli.train, lambda *_, **__: None
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(make, flags)
        return 0, ""
    except SystemExit as e:
        return int(e.code or 0), err.getvalue() or out.getvalue()
    except BaseException as e:
        raise Fault(f"{name} {' '.join(flags)}: {type(e).__name__}: {e}") from e
    finally:
        cli.train = train


VALUES = ("-1", "0", "nan", "inf", "-0.5", "1e30", "word", "", "99999999999", "1 2", "é", "True")


def commands(soak: Soak, rng: random.Random, folder: pathlib.Path) -> None:
    """Ten command lines of an experiment that are wrong, or unusual."""
    names = sorted(f.stem for f in (ROOT / "experiments").glob("*.py"))
    name = rng.choice(names)
    make = getattr(importlib.import_module(f"experiments.{name}"), name)
    known = [k.replace("_", "-") for k in inspect.signature(make).parameters]
    known += ["run.seed", "run.seeds", "run.fsdp", "run.log-every", "run.keep", "run.workdir"]
    known += ["head.widths", "encoder.widths", "encoder.depth", "view.size"]
    for _ in range(10):
        flag = rng.choice(known)
        if rng.random() < 0.2:
            at = rng.randrange(len(flag))
            flag = flag[:at] + flag[at + 1 :]
        flags = [f"--{flag}", *rng.choice(VALUES).split(" ")]
        flags = flags[:1] if rng.random() < 0.1 else flags
        os.chdir(folder)
        status, err = call(name, flags)
        if status not in (0, 2):
            raise Fault(f"{name} {' '.join(flags)}: status {status}: {err}")
        if "Traceback" in err or (status == 2 and not err.strip()):
            raise Fault(f"{name} {' '.join(flags)}: {err}")


def data(soak: Soak, rng: random.Random, folder: pathlib.Path) -> None:
    """An experiment on files of which one is cut, empty, or something else than its name says."""
    kind = rng.choice(("pictures", "arrays", "text", "sounds"))
    {"pictures": _pictures, "arrays": _arrays, "text": _text, "sounds": _sounds}[kind](folder)
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    file, how = rng.choice(files), rng.choice(("cut", "flip", "empty", "noise", "none", "folder"))
    content = bytearray(file.read_bytes())
    if how == "cut":
        content = content[: rng.randrange(len(content))]
    elif how == "flip":
        for _ in range(8):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif how == "empty":
        content.clear()
    elif how == "noise":
        content = bytearray(rng.randbytes(len(content)))
    if how == "folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(content)
    name = {"pictures": "vae", "arrays": "vae", "text": "gpt", "sounds": "audio_dae"}[kind]
    given = folder / "set" if kind in ("pictures", "sounds") else files[0]
    try:
        status, err = call(name, ["--data", str(given), "--batch-size", "2"])
    except Fault as e:
        raise Fault(f"{how} in {kind}: {e}") from e
    if status not in (0, 2) or (status == 2 and err.count("\n") != 1):
        raise Fault(f"{how} in {kind}: status {status}: {err}")


def _pictures(folder: pathlib.Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(8):
        place = folder / "set" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.{'png' if i < 4 else 'jpg'}")


def _arrays(folder: pathlib.Path) -> None:
    images, labels = np.zeros((16, 8, 8, 1), np.uint8), np.arange(16) % 2
    np.savez(
        folder / "set.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )


def _text(folder: pathlib.Path) -> None:
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n\n" * 400)


def _sounds(folder: pathlib.Path) -> None:
    import soundfile

    for i in range(8):
        place = folder / "set" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        t = np.arange(16000) / 16000
        soundfile.write(
            place / f"{i}.{'wav' if i < 4 else 'flac'}", np.sin(200 * (i + 1) * t), 16000
        )


KINDS = {f.__name__: f for f in (kills, signals, flips, doubled, disk, commands, data)}


def trial(soak: Soak, name: str) -> str:
    """Runs the trial of a name such as kills:17; returns its fault, or nothing."""
    kind = name.split(":")[0]
    folder, here = soak.folder / name.replace(":", "_"), os.getcwd()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        KINDS[kind](soak, random.Random(name), folder)
    except Fault as e:
        return str(e)
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    finally:
        os.chdir(here)
        shutil.rmtree(folder, ignore_errors=True)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--only", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0, help="number of the first trials")
    parser.add_argument("--repeat", default="", help="one trial, such as kills:17")
    args = parser.parse_args()
    until, counts, faults = time.monotonic() + 60 * args.minutes, dict.fromkeys(args.only, 0), 0
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        soak, number = Soak(pathlib.Path(folder)), args.seed
        names = [args.repeat] if args.repeat else [f"{k}:{number}" for k in args.only]
        while names:
            for name in names:
                if time.monotonic() > until and not args.repeat:
                    break
                counts[name.split(":")[0]] = counts.get(name.split(":")[0], 0) + 1
                if fault := trial(soak, name):
                    faults += 1
                    print(f"FAULT in {name}: {fault}\n  python tests/soak.py --repeat {name}")
                    sys.stdout.flush()
            number += 1
            over = time.monotonic() > until or args.repeat
            names = [] if over else [f"{k}:{number}" for k in args.only]
    kinds = ", ".join(f"{k} {n}" for k, n in counts.items())
    print(f"{sum(counts.values())} trials ({kinds}), {faults} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
