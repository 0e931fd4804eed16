"""What a new GPU or TPU computes, how fast, and rows for the ledger, in some minutes.

    python -m tests.accelerator --minutes 9 --out runs/accelerator

from a checkout, on a machine with one accelerator. Three parts, in this order; each result is
written when it is there, what is there is not computed again (what has failed is tried again, after
the rest), and at the end of the given minutes, or on SIGTERM or Ctrl-C, what runs is stopped: the
same command goes on.

1. **Numerics**: the first three steps of every experiment, at small sizes, on the accelerator and
   on its host's CPU, from the same state, with the same data and keys. In float32 (products at
   JAX's highest precision) and in bfloat16. Compared are all metrics and, after the first step, the
   optimizer's state, which has the gradient in it. Tolerances are `TOLERANCES`.
2. **Speed** of the steps in `SPEED`, in bfloat16, with random data that lies on the device:
   examples a second, MFU (FLOPs of products and convolutions, counted in the program, over the
   data sheet's peak), the bound of --run.plan, and PyTorch's speed at the same sizes where torch,
   torchvision, timm and transformers are installed (eager, bfloat16 by autocast, fused attention;
   without augmentation, which ours has in the step).
3. **Rows** for the ledger (`ROWS`), in order of value, that take minutes there and days on a CPU.
   OUT/runs has their folders. Those whose data isn't there are left out.

OUT/report.md has the tables, and OUT/results.tar.gz all results: those of part 1 and 2, logs, and
runs without their checkpoints, as `python -m ssljax.ledger --runs` reads them. These two files are
what to bring home; unpacked into OUT elsewhere, the archive spares parts 1 and 2 a second time.

`--plan h200x1 --plans plans.json` writes the plans of part 2 on a machine that has the compilers
(ssljax[plan]); --plans then shows them. tests/carry.py packs code, wheels and data for a machine
without a network.
"""

import argparse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import contextlib
from dataclasses import dataclass
import glob
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXPERIMENTS = sorted(p.stem for p in (ROOT / "experiments").glob("*.py"))
DTYPES = ("float32", "bfloat16")
STEPS = 3
# Largest differences that pass. Of metrics: of a metric, relative to its size or to 0.05 where it
# is smaller. Of the optimizer's state after a step: the L2 norm of the difference, relative.
TOLERANCES = {
    "float32": {"metrics": 1e-3, "optimizer": 1e-2},
    "bfloat16": {"metrics": 5e-2, "optimizer": 3e-1},
}
NUMERICS_SHARE, SPEED_SHARE = 0.4, 0.3  # Of the given time, at most.
MARGIN = 15.0  # Seconds in which a run that is stopped saves itself, and results are packed.


TPU_KINDS = {  # Names that JAX gives to chips.
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
}


@dataclass(frozen=True)
class Speed:
    """A step whose speed is measured: the command that has it, and PyTorch's counterpart."""

    command: str
    torch: str = ""
    examples: str = "images"  # What an example is; of texts, rows of `length` tokens.
    length: int = 1


GPT = "--norm layer --positions learned --unit gelu-tanh --layers 12 --heads 12 --width 768"
BERT = "--norm layer --positions learned --unit gelu --blocks post-norm --segments 2 --layers 12"
SPEED = {
    "SimCLR, ResNet-18, CIFAR-10": Speed(
        "simclr --data cifar10 --batch-size 512 --dtype bfloat16 encoder:res-net", "resnet18"
    ),
    "SimCLR, ViT-S/16, two views of 224": Speed(
        "simclr --data imagenet2012 --image-size 224 --view-size 224 --batch-size 256 --dtype "
        "bfloat16 encoder:vit --encoder.patch 16 --encoder.width 384 --encoder.depth 12 "
        "--encoder.heads 6",
        "vit",
    ),
    "GPT 124M": Speed(
        f"gpt --data openwebtext --tokens bpe --vocabulary 50257 {GPT} --length 1024 --reach 1024 "
        "--batch-size 16 --dtype bfloat16",
        "gpt2",
        "tokens",
        1024,
    ),
    "BERT-base": Speed(
        f"bert --data wikipedia --vocabulary 30522 {BERT} --heads 12 --width 768 --length 512 "
        "--batch-size 32 --dropout 0.1 --dtype bfloat16",
        "bert",
        "tokens",
        512,
    ),
}
# Steps for a test of this file, on a CPU.
SMALL_SPEED = {
    "GPT, small": Speed(
        "gpt --data openwebtext --layers 1 --heads 2 --width 16 --length 16 --batch-size 4",
        "",
        "tokens",
        16,
    ),
}
CIFAR = "--data cifar10 --epochs 100 --batch-size 512 --optimizer sgd --lr 0.24"
RESNET = "--dtype bfloat16 --run.log-every 97 encoder:res-net"
# Rows, the most valuable first. nanoGPT's setting for a GPU has a validation loss of 1.47.
ROWS = {
    "gpt_shakespeare": "gpt --data tinyshakespeare.txt --norm layer --positions learned --unit "
    "gelu --layers 6 --heads 6 --width 384 --dropout 0.2 --length 256 --reach 256 --batch-size 64 "
    "--steps 5000 --lr 1e-3 --warmup 0.02 --dtype bfloat16 --run.eval-every 500",
    "simclr_cifar10": f"simclr {CIFAR} --weight-decay 5e-4 --temperature 0.5 --head.widths 512 128 "
    f"{RESNET}",
    "iwae_mnist": "iwae --data mnist --k 50 --batch-size 100 --epochs 400 --run.seeds 3 "
    "--run.steps-per-call 20 --run.log-every 600",
    "byol_cifar10": f"byol {CIFAR} --weight-decay 5e-4 --head.widths 1024 256 "
    f"--head.no-last-norm --predictor.widths 1024 256 {RESNET}",
    "pacgan_grid": "pacgan --data grid --pack 2 --run.seeds 10 --run.steps-per-call 20 "
    "--run.log-every 1000",
    "barlow_cifar10": f"barlow {CIFAR} --weight-decay 5e-4 --head.widths 2048 2048 {RESNET}",
    "vicreg_cifar10": f"vicreg {CIFAR} --weight-decay 5e-4 --head.widths 2048 2048 2048 {RESNET}",
    "pacgan_one": "pacgan --data grid --run.seeds 10 --run.steps-per-call 20 --run.log-every 1000",
}
SMALL_ROWS = {"gpt": "gpt --steps 30 --layers 1 --width 16 --heads 2 --run.log-every 10"}
DATA = {  # What a command's data is called where it lies.
    "tinyshakespeare.txt": ("data/tinyshakespeare.txt", "~/tinyshakespeare.txt"),
    "mnist": ("~/tensorflow_datasets/mnist",),
    "cifar10": ("~/tensorflow_datasets/cifar10",),
}


# Part 1, in a process that has the accelerator.


def compare(name: str, dtype: str, ours: Any = None, host: Any = None) -> dict[str, Any] | None:
    """The largest differences between an experiment's first steps on two devices.

    `ours` is the accelerator and `host` a CPU, by default JAX's first ones. None where the
    experiment has no nets that compute in `dtype`.
    """
    import jax
    import numpy as np

    from ssljax import sharding
    from ssljax.program import everywhere, Program
    from ssljax.run import Run
    from tests.small import make_in

    exp = make_in(ROOT / "experiments" / f"{name}.py", dtype)
    if exp is None:
        return None
    ours, host = ours or jax.devices()[0], host or jax.devices("cpu")[0]
    start = None
    found = []
    for device in (host, ours):
        mesh = sharding.make_mesh(devices=[device])
        precise = jax.default_matmul_precision("highest" if dtype == "float32" else None)
        with jax.default_device(device), jax.set_mesh(mesh), precise:
            resident = jax.tree.map(lambda x: everywhere(x, mesh), exp.data.resident())
            feed = exp.data.feed(0, 0, mesh)
            fed = [next(feed) for _ in range(STEPS)]
            program = Program(exp, Run(), mesh, fed[0], resident)
            start = start or jax.device_get(program.init([fed[0]]))
            state = jax.device_put(start, program.layouts)
            metrics, moments = [], None
            for one in fed:
                state, sums = program.update(state, program.new_accumulator(), [[one]])
                metrics.append({k: v[0] for k, v in program.read(sums)[0].items()})
                moments = moments or jax.device_get(state.opt_state)
            found.append((metrics, _floats(moments)))
    (expected, wanted), (actual, had) = found
    differences = {
        f"{k} of step {i}": abs(b[k] - a[k]) / max(abs(a[k]), 0.05)
        for i, (a, b) in enumerate(zip(expected, actual, strict=True), 1)
        for k in a
    }
    worst = max(differences, key=lambda k: _or_infinite(differences[k]))
    norm = float(np.linalg.norm(wanted))
    return {
        "metrics": _or_infinite(differences[worst]),
        "worst": worst,
        "optimizer": _or_infinite(float(np.linalg.norm(had - wanted)) / norm) if norm else 0.0,
    }


def _floats(tree: Any) -> Any:
    import jax
    import numpy as np

    leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
    floats = [x.astype(np.float64).ravel() for x in leaves if np.issubdtype(x.dtype, np.floating)]
    return np.concatenate(floats) if floats else np.zeros(1)


def _or_infinite(x: float) -> float:
    return x if x == x else float("inf")  # NaN compares with nothing.


def passes(found: Mapping[str, Any], dtype: str) -> bool:
    """Whether differences are within the tolerances."""
    return "error" not in found and all(found[k] <= x for k, x in TOLERANCES[dtype].items())


def numerics(names: Sequence[str], out: pathlib.Path) -> None:
    """Writes OUT/numerics/NAME.json of each experiment."""
    for name in names:
        found: dict[str, Any] = {}
        for dtype in DTYPES:
            try:
                found[dtype] = compare(name, dtype)
            except Exception as e:  # The other experiments don't wait for it.
                found[dtype] = {"error": _said(e)}
        _write(out / "numerics" / f"{name}.json", found)


def _said(e: BaseException) -> str:
    return f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"


# Part 2.


def measure(speed: Speed, seconds: float) -> dict[str, Any]:
    """Speed of a step on the first device: after compiling, for about `seconds`."""
    import jax

    from ssljax import cli, sharding
    from ssljax.data.described import described
    from ssljax.ledger.commands import experiment
    from ssljax.plan.flops import count_flops
    from ssljax.plan.machines import GPUS, TPUS
    from ssljax.plan.program import shapes_of_data
    from ssljax.program import Program

    name, *flags = shlex.split(speed.command)
    make = experiment(name)
    run, arguments = cli.parse(make, flags)
    with described():
        exp = make(**arguments)
    device = jax.devices()[0]
    mesh = sharding.make_mesh(devices=[device])
    with jax.set_mesh(mesh):
        fed, resident = (jax.tree.map(_random, tree) for tree in shapes_of_data(exp.data, mesh))
        program = Program(exp, run, mesh, fed, resident)
        state, sums = program.init([fed]), program.new_accumulator()
        traced = program.compiled.trace(state, sums, program.keys[0], resident, (fed,))
        flops = sum(count_flops(traced.jaxpr).products.values())
        start = time.perf_counter()
        for _ in range(3):
            state, sums = program.update(state, sums, [[fed]])
        jax.block_until_ready(sums)
        compiled = time.perf_counter() - start
        times = []
        while sum(times) * 10 < seconds or len(times) < 3:
            start = time.perf_counter()
            for _ in range(10):
                state, sums = program.update(state, sums, [[fed]])
            jax.block_until_ready(sums)
            times.append((time.perf_counter() - start) / 10)
    step = sorted(times)[len(times) // 2]
    peaks = {chip.title: chip.bfloat16 for chip in GPUS.values()}
    peaks |= {kind: TPUS[name].bfloat16 for kind, name in TPU_KINDS.items()}
    peak = peaks.get(device.device_kind)
    return {
        "device": device.device_kind,
        "batch_size": exp.data.batch_size,
        "step_seconds": step,
        "per_second": exp.data.batch_size * speed.length / step,
        "unit": speed.examples,
        "flops": flops,
        "mfu": flops / step / peak if peak else None,
        "compile_seconds": compiled,
    }


def _random(x: Any) -> Any:
    """Pixels at random, since zeros would be multiplied faster, and indices and tokens below 100:
    gradients of the rows of one token would be added one after another."""
    import jax
    import numpy as np

    if np.issubdtype(x.dtype, np.floating):
        value = np.ones(x.shape, x.dtype)  # Aspect ratios.
    else:
        most = 256 if x.dtype == np.uint8 else 100
        value = np.random.default_rng(0).integers(0, most, x.shape).astype(x.dtype)
    return jax.device_put(value, x.sharding)


def measure_torch(kind: str, batch: int, seconds: float) -> dict[str, Any]:
    """Speed of PyTorch's step of the same sizes on its first GPU, or on the CPU."""
    import torch
    import torch.nn.functional as F

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def contrast(z):
        z = F.normalize(z.float())
        logits = z @ z.T / 0.5 - 1e9 * torch.eye(len(z), device=device)
        return F.cross_entropy(logits, torch.arange(len(z), device=device).roll(len(z) // 2))

    if kind == "resnet18":
        from torchvision.models import resnet18

        net = resnet18()
        net.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        net.maxpool = torch.nn.Identity()
        net.fc = torch.nn.Linear(512, 128)
        net = net.to(memory_format=torch.channels_last)
        x = torch.randn(2 * batch, 3, 32, 32).to(memory_format=torch.channels_last)
        loss = lambda: contrast(net(x))
    elif kind == "vit":
        import timm

        net = timm.create_model("vit_small_patch16_224", num_classes=128)
        x = torch.randn(2 * batch, 3, 224, 224)
        loss = lambda: contrast(net(x))
    elif kind == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        net = GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
        x = torch.randint(50257, (batch, 1024))
        loss = lambda: net(x, labels=x).loss
    else:
        from transformers import BertConfig, BertForMaskedLM

        net = BertForMaskedLM(BertConfig())
        x = torch.randint(30522, (batch, 512))
        labels = torch.where(torch.rand(x.shape) < 0.15, x, -100).to(device)
        loss = lambda: net(x, labels=labels).loss
    net, x = net.to(device).train(), x.to(device)
    tx = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=device.type == "cuda")

    def steps(n):
        start = time.perf_counter()
        for _ in range(n):
            with torch.autocast(device.type, torch.bfloat16):
                value = loss()
            value.backward()
            tx.step()
            tx.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / n

    steps(3)
    times = []
    while sum(times) * 5 < seconds or len(times) < 3:
        times.append(steps(5))
    return {"step_seconds": sorted(times)[len(times) // 2], "version": torch.__version__}


def plan_all(machine: str, file: pathlib.Path, speeds: Mapping[str, Speed]) -> None:
    """Writes the plans of part 2 for a machine."""
    from ssljax.plan.headers import plan_command

    plans = {}
    for title, speed in speeds.items():
        name, *flags = shlex.split(speed.command)
        plan = plan_command(name, flags, machine)
        plans[title] = {"machine": machine, "step_seconds": plan.step_seconds, "mfu": plan.mfu}
        _write(file, plans)
        print(title, plans[title], flush=True)


# The parent, which leaves the accelerator to its children.


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    asked = _parse(args)
    out = pathlib.Path(asked.out).expanduser().absolute()
    speeds, rows = (SMALL_SPEED, SMALL_ROWS) if asked.small else (SPEED, ROWS)
    if asked.child:
        _child(asked, out, speeds)
        return
    if asked.plan:
        plan_all(asked.plan, pathlib.Path(asked.plans or out / "plans.json"), speeds)
        return
    start = time.monotonic()
    end = start + 60 * asked.minutes - MARGIN
    names = asked.experiments or EXPERIMENTS
    plans = json.loads(pathlib.Path(asked.plans).read_text()) if asked.plans else {}
    out.mkdir(parents=True, exist_ok=True)
    _stopped.clear()
    before = {n: signal.signal(n, _stop) for n in (signal.SIGTERM, signal.SIGINT)}

    def by(share: float) -> float:
        return min(end, start + share * 60 * asked.minutes)

    try:
        if "numerics" in asked.parts:
            _numerics(names, out, by(NUMERICS_SHARE), asked)
        if "speed" in asked.parts:
            _speed(speeds, out, by(NUMERICS_SHARE + SPEED_SHARE), asked)
        if "rows" in asked.parts:
            _rows(rows, out, end)
    finally:
        text = report(out, names, speeds, rows, plans)
        (out / "report.md").write_text(text)
        print(f"\n{text}\nWritten to {out / 'report.md'}.", flush=True)
        _pack(out)
        for number, handler in before.items():
            signal.signal(number, handler)
    if _stopped:
        sys.exit(128 + _stopped[0])
    results = _results(out, "numerics", names)
    if not all(d is None or passes(d, k) for r in results.values() for k, d in r.items()):
        sys.exit(1)


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("numerics", "speed", "rows")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all, with packing")
    parser.add_argument("--out", default="runs/accelerator", help="folder of the results")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, help="of part 1")
    parser.add_argument("--plans", default="", help="file of --plan, to show beside the speed")
    parser.add_argument("--plan", default="", help="machine to plan part 2 for, as h200x1")
    parser.add_argument("--workers", type=int, default=_workers(), help="processes of part 1")
    parser.add_argument("--small", action="store_true", help="parts 2 and 3 at the size of a test")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args(args)


def _workers() -> int:
    """Processes that share the accelerator: on a TPU, which only one can have, a single one."""
    if glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"):
        return 1
    return max(1, min(12, (os.cpu_count() or 1) - 2))


def _child(asked: argparse.Namespace, out: pathlib.Path, speeds: Mapping[str, Speed]) -> None:
    part, *rest = asked.child
    if part == "numerics":
        numerics(rest, out)
        return
    title, seconds = rest[0], float(rest[1])
    speed = speeds[title]
    try:
        if part == "speed":
            found = measure(speed, seconds)
        else:
            at = speed.command.split().index("--batch-size") + 1
            found = measure_torch(speed.torch, int(speed.command.split()[at]), seconds)
    except Exception as e:  # As out of memory, or a package that PyTorch's step needs.
        traceback.print_exc()
        found = {"error": _said(e)}
    _write(out / part / f"{_slug(title)}.json", found)


def _start(asked: argparse.Namespace, out: pathlib.Path, *child: str) -> subprocess.Popen:
    small = ["--small"] if asked.small else []
    command = [sys.executable, "-m", "tests.accelerator", f"--out={out}", *small, "--child", *child]
    more = {}
    if platforms := os.environ.get("JAX_PLATFORMS"):  # The host is compared with.
        more["JAX_PLATFORMS"] = ",".join(dict.fromkeys([*platforms.split(","), "cpu"]))
    if child[0] == "numerics":  # Several share the memory, and compile a lot.
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
        more |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_FLAGS": flags}
    return _run(command, out, "-".join(child), **more)


def _run(command: Sequence[str], out: pathlib.Path, name: str, **more: str) -> subprocess.Popen:
    """A process of this checkout's code, whose output goes to OUT/logs."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}
    (out / "logs").mkdir(exist_ok=True)
    with open(out / "logs" / f"{_slug(name)[:60]}.txt", "ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)


def _numerics(
    names: Sequence[str], out: pathlib.Path, end: float, asked: argparse.Namespace
) -> None:
    state = {name: _state(out / "numerics" / f"{name}.json") for name in names}
    left = [name for name in names if state[name] == ""] + [
        name for name in names if state[name] == "failed"
    ]
    shares = [s for s in (left[i :: asked.workers] for i in range(asked.workers)) if s]
    if not shares:
        return
    print(f"Numerics of {len(left)} experiments in {len(shares)} processes ...", flush=True)
    with ThreadPoolExecutor(len(shares)) as pool:
        list(pool.map(lambda s: _wait(_start(asked, out, "numerics", *s), end), shares))


def _speed(
    speeds: Mapping[str, Speed], out: pathlib.Path, end: float, asked: argparse.Namespace
) -> None:
    seconds = "0.1" if asked.small else "3"
    todo = []
    for part in ("speed", "torch"):
        for title, speed in speeds.items():
            state = _state(out / part / f"{_slug(title)}.json")
            if state != "there" and (part == "speed" or (speed.torch and _has_torch())):
                todo.append((state == "failed", part, title))
    for _, part, title in sorted(todo, key=lambda item: item[0]):
        if _over(end):
            return
        print(f"{part.capitalize()} of {title} ...", flush=True)
        _wait(_start(asked, out, part, title, seconds), end)


def _state(file: pathlib.Path) -> str:
    """ "there", "failed" or "": of a result of part 1 or 2."""
    if not file.exists():
        return ""
    found = json.loads(file.read_text())
    results = [found, *(x for x in found.values() if isinstance(x, dict))]  # Of each precision.
    return "failed" if any("error" in x for x in results) else "there"


def _has_torch() -> bool:
    import importlib.util

    return importlib.util.find_spec("torch") is not None


def _rows(rows: Mapping[str, str], out: pathlib.Path, end: float) -> None:
    for name, command in rows.items():
        workdir = out / "runs" / name
        words = _with_data(shlex.split(command))
        if (workdir / "results.json").exists() or words is None:
            continue
        if _over(end - MARGIN):
            return
        experiment, *flags = words
        file = ROOT / "experiments" / f"{experiment}.py"
        print(f"Row {name} ...", flush=True)
        where = ["--run.workdir", str(workdir)]
        nets = [i for i, word in enumerate(flags) if word.startswith("encoder:")]
        at = nets[0] if nets else len(flags)
        full = [sys.executable, str(file), *flags[:at], *where, *flags[at:]]
        status = _wait(_run(full, out, f"row-{name}"), end)
        if status not in (0, 128 + signal.SIGTERM):  # The next row doesn't wait for it.
            print(f"Row {name} ended with status {status}: logs/row-{name}.txt.", flush=True)


def _with_data(words: Sequence[str]) -> list[str] | None:
    """A command with the path of its data; None where that isn't here."""
    at = words.index("--data") + 1 if "--data" in words else 0
    places = DATA.get(words[at], ()) if at else ()
    for place in places:
        path = pathlib.Path(place).expanduser()
        path = path if path.is_absolute() else ROOT / path
        if path.exists():
            return [*words[:at], str(path) if path.is_file() else words[at], *words[at + 1 :]]
    return None if places else list(words)


_stopped: list[int] = []  # The signal that ended this program, if one has.


def _stop(number: int, frame: Any) -> None:
    """Ends what runs, by `_wait`, so that results are reported and packed."""
    _stopped.append(number)


def _over(end: float) -> bool:
    return bool(_stopped) or time.monotonic() > end


def _wait(process: subprocess.Popen, end: float) -> int:
    """Waits for a process, and stops it at `end`; returns its status."""
    while process.poll() is None and not _over(end):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(1.0, max(0.0, end - time.monotonic())))
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(MARGIN * 0.7)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def _pack(out: pathlib.Path) -> None:
    """OUT/results.tar.gz: all results, of runs without what resuming needs."""
    left_out = {"checkpoints", "damaged", "tensorboard", "figures", "lock"}

    def keep(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if {*pathlib.PurePath(info.name).parts} & left_out else info

    with tarfile.open(out / "results.tar.gz", "w:gz") as tar:
        for name in ("numerics", "speed", "torch", "runs", "logs", "report.md"):
            if (out / name).exists():
                tar.add(out / name, name, filter=keep)


# The report.


def report(
    out: pathlib.Path,
    names: Sequence[str],
    speeds: Mapping[str, Speed],
    rows: Mapping[str, str],
    plans: Mapping[str, Any],
) -> str:
    """The tables, in Markdown."""
    lines = ["# Numerics", ""]
    bounds = "; ".join(
        f"{dtype}: metrics {t['metrics']:g}, optimizer {t['optimizer']:g}"
        for dtype, t in TOLERANCES.items()
    )
    found = _results(out, "numerics", names)
    lines += [f"Relative differences to the CPU after {STEPS} steps; tolerances: {bounds}.", ""]
    lines += ["| experiment | precision | metrics | optimizer | |", "|---|---|---|---|---|"]
    for name, result in found.items():
        for dtype, d in result.items():
            if d is None:
                continue
            if "error" in d:
                lines.append(f"| {name} | {dtype} | | | **{d['error'].replace('|', '/')}** |")
                continue
            verdict = "" if passes(d, dtype) else "**differs**"
            which = f"{d['metrics']:.1e} ({d['worst']})"
            lines.append(f"| {name} | {dtype} | {which} | {d['optimizer']:.1e} | {verdict} |")
    if missing := [name for name in names if name not in found]:
        lines += ["", f"Not compared yet: {', '.join(missing)}."]
    lines += ["", "# Speed", ""]
    lines += ["| step | device | a second | MFU | step | plan | PyTorch |", "|" + "---|" * 7]
    torch = _results(out, "torch", speeds)
    measured = _results(out, "speed", speeds)
    for title, s in measured.items():
        plan, peer = plans.get(title), torch.get(title, {})
        if "error" in s:
            continue
        cells = [
            title,
            s["device"],
            f"{s['per_second']:,.0f} {s['unit']}",
            f"{s['mfu']:.0%}" if s["mfu"] else "",
            f"{1e3 * s['step_seconds']:.1f} ms",
            f"{1e3 * plan['step_seconds']:.1f} ms ({plan['machine']})" if plan else "",
            f"{1e3 * peer['step_seconds']:.1f} ms ({peer['version']})" if "version" in peer else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for what, results in (("ours", measured), ("PyTorch's", torch)):
        failed = [(title, s["error"]) for title, s in results.items() if "error" in s]
        lines += [f"\n**{title}, {what}, failed**: {error}" for title, error in failed]
    lines += ["", "# Rows", ""]
    for name, command in rows.items():
        state = "not begun"
        if (out / "runs" / name / "results.json").exists():
            state = "finished"
        elif (last := _last_line(out / "logs" / f"row-{name}.txt")).startswith("error"):
            state = f"**{last}**"
        elif (out / "runs" / name).exists():
            state = "begun: the same command goes on"
        elif _with_data(shlex.split(command)) is None:
            state = "its data isn't here"
        lines.append(f"- {name}: {state} (`{command}`)")
    return "\n".join(lines) + "\n"


def _last_line(file: pathlib.Path) -> str:
    lines = file.read_text(errors="replace").split("\n") if file.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "")


def _results(out: pathlib.Path, part: str, titles: Sequence[str] | Mapping) -> dict[str, Any]:
    files = {title: out / part / f"{_slug(title)}.json" for title in titles}
    return {title: json.loads(f.read_text()) for title, f in files.items() if f.exists()}


def _slug(title: str) -> str:
    return "".join(c if c.isalnum() or c in "_-" else "-" for c in title)


def _write(file: pathlib.Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}")
    new.write_text(json.dumps(content, indent=1))
    new.replace(file)


if __name__ == "__main__":
    main()
