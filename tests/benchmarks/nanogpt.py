"""Held-out loss of our GPT in the time of nanoGPT's 2,000 steps on a CPU, and nanoGPT's loss.

    .venv/bin/python tests/benchmarks/nanogpt.py --peer-python ENV/bin/python --data input.txt \\
        [--steps 2000] [--devices 1]

`input.txt` is tiny-shakespeare, or any text; its last tenth is held out. ENV needs torch, and no
JAX. nanoGPT's model is trained with its settings for a CPU: 4 layers, 4 heads, width 128, 12 rows
of 64 characters, AdamW, a cosine from 1e-3 to 1e-4 after 100 steps, no dropout. Then
experiments/gpt.py with its defaults is trained, briefly for its speed, and after that for as many
steps as take between nine tenths of the same time and all of it (at most four tries), on
`--devices` of the CPU, by default one per core if the batch divides.

Times start after the first step on both sides. Each held-out character counts once, in windows of
64 end to end.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
LENGTH, ROWS = 64, 12


def ours(data: str, steps: int, devices: int) -> tuple[float, float]:
    """Seconds of training, and held-out nats a character."""
    from dataclasses import replace

    from experiments.gpt import gpt
    from ssljax import logs, Run, sharding, train

    sharding.split_cpu(devices)
    exp = gpt(data, length=LENGTH, batch_size=ROWS, steps=steps)
    evals = {"test": exp.evals["test_windows"]}
    with tempfile.TemporaryDirectory() as workdir:
        train(replace(exp, evals=evals), Run(workdir=workdir, save_every=10**9))
        rows = logs.read_metrics(pathlib.Path(workdir))
        results = json.loads((pathlib.Path(workdir) / "results.json").read_text())["results"]
    return max(r["seconds"] for r in rows if "seconds" in r), results["test/nll"][0]


def theirs(data: str, steps: int) -> tuple[float, float]:
    """The same of nanoGPT."""
    import torch
    import torch.nn.functional as F

    from tests.benchmarks.peers.gpt import nano_gpt

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    text = pathlib.Path(data).read_text()
    symbols = {c: i for i, c in enumerate(sorted(set(text)))}
    tokens = torch.tensor([symbols[c] for c in text])
    seen, held_out = tokens[: int(0.9 * len(tokens))], tokens[int(0.9 * len(tokens)) :]
    model = nano_gpt(len(symbols), layers=4, heads=4, width=128, length=LENGTH)
    kinds = [
        [p for p in model.parameters() if (p.ndim > 1) == decayed] for decayed in (True, False)
    ]
    tx = torch.optim.AdamW(
        [{"params": kinds[0], "weight_decay": 0.1}, {"params": kinds[1], "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.99),
    )
    for step in range(steps):
        if step == 1:
            start = time.perf_counter()
        done = (step - 100) / (steps - 100)
        rate = (
            1e-3 * (step + 1) / 101
            if step < 100
            else 1e-4 + 9e-4 * (1 + math.cos(math.pi * done)) / 2
        )
        for group in tx.param_groups:
            group["lr"] = rate
        at = torch.randint(len(seen) - LENGTH, (ROWS,))
        x, y = (torch.stack([seen[i + j : i + j + LENGTH] for i in at]) for j in (0, 1))
        F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        tx.step()
        tx.zero_grad(set_to_none=True)
    seconds, total, count = time.perf_counter() - start, 0.0, 0
    with torch.no_grad():
        for i in range(0, len(held_out) - 1, LENGTH):
            y = held_out[i + 1 : i + 1 + LENGTH]
            total += F.cross_entropy(
                model(held_out[None, i : i + len(y)])[0], y, reduction="sum"
            ).item()
            count += len(y)
    return seconds, total / count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", help="the Python with torch")
    parser.add_argument("--data", required=True, help="a text file")
    parser.add_argument("--steps", type=int, default=2000, help="of nanoGPT")
    parser.add_argument(
        "--devices",
        type=int,
        default=math.gcd(ROWS, len(os.sched_getaffinity(0))),
        help="of the CPU, for ours",
    )
    parser.add_argument(
        "--side", choices=["ours", "theirs"], help="train one side in this process, print JSON"
    )
    args = parser.parse_args()
    if args.side:
        sys.path.insert(0, str(ROOT))
        ran = (
            ours(args.data, args.steps, args.devices)
            if args.side == "ours"
            else theirs(args.data, args.steps)
        )
        print(json.dumps(ran))
        sys.exit()
    if not args.peer_python:
        parser.error("--peer-python is needed: the Python with torch to compare with")

    def side(python: str, which: str, steps: int) -> tuple[float, float]:
        said = subprocess.run(
            [
                python,
                __file__,
                "--side",
                which,
                "--data",
                args.data,
                "--steps",
                str(steps),
                "--devices",
                str(args.devices),
            ],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        return json.loads(said.splitlines()[-1])

    seconds, nll = side(args.peer_python, "theirs", args.steps)
    steps = args.steps // 4
    took, found = side(sys.executable, "ours", steps)
    for _ in range(4):  # The machine's speed drifts.
        steps = round(0.96 * steps * seconds / took)
        took, found = side(sys.executable, "ours", steps)
        if 0.9 * seconds < took < seconds:
            break
    print(
        f"RESULT nanoGPT: {nll:.3f} nats a held-out character after {args.steps} steps in "
        f"{seconds:.0f} s; "
        f"ours: {found:.3f} after {steps} steps in {took:.0f} s",
        flush=True,
    )
