"""Training speed of ssljax and of other libraries on this CPU, in one table.

    .venv/bin/python tests/benchmarks/speed.py --peer-python ENV/bin/python [--only gpt lstm]

ENV has the peers: pip install torch torchvision transformers pythae gensim. Each row is one of
tests/benchmarks/peers/: both sides train the same sizes, each in a process of its own, on all cores
that this process may use. They take turns in stretches of some seconds; a ratio above 1 means that
ssljax is faster. The table has the median of the pairs and their range. Compiling, reading and
evaluating are not timed. On our side the CPU is split into a device per core for the ResNets
(--run.cpu-devices), and left whole for the others.

Measured so on two cores of a shared host (2026-11-28; JAX 0.10.2, PyTorch 2.14.1, gensim 4.4.0),
median ratio and range: resnet 1.23 (1.11 to 1.45), resnet_channels_last .99 (.91 to 1.12), gpt 1.04
(.99 to 1.16); with less quiet bert 1.57 (1.54 to 1.83), lstm 1.39 (1.35 to 1.52), vae 1.85 (1.65 to
2.57), word2vec .88 (.78 to .93), and 1.20 (.85 to 1.62) on the 2.1 million words of Gutenberg's
(TEXT=gutenberg.txt).
"""

import argparse
import importlib
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
ROWS = ("resnet", "resnet_channels_last", "gpt", "bert", "lstm", "vae", "word2vec")
SPLIT = ("resnet", "resnet_channels_last")  # Faster so: their BatchNorms use all cores.


def serve(side: str, row: str, folder: str, devices: int) -> None:
    """Trains for as many steps as each line of the input asks for, and prints the seconds."""
    sys.path[0] = str(ROOT)  # In place of this folder.
    module = importlib.import_module(f"tests.benchmarks.peers.{row}")
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print is no answer.
    if side == "ours":
        from ssljax import sharding
        from ssljax.memory import keep_freed_memory

        keep_freed_memory()  # As a run does.
        sharding.split_cpu(devices)
    run = getattr(module, side)(folder)
    run(3)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        run(int(line))
        print(time.perf_counter() - start, file=out, flush=True)


class Side:
    """A process that trains when it is asked to."""

    def __init__(self, python: str, side: str, row: str, folder: str, devices: int):
        command = [python, __file__, "--serve", side, row, folder, str(devices)]
        self.process = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.read()
        self.steps = 1
        self.seconds(1)

    def read(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(map(str, self.process.args))} has ended: see above.")
        return line

    def seconds(self, steps: int) -> float:
        """Seconds that these steps take."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return float(self.read())

    def choose_steps(self, seconds: float) -> None:
        """Takes as many steps a stretch as fill so many seconds."""
        self.steps = 1
        while (took := self.seconds(self.steps)) < seconds / 4:
            self.steps *= 4
        self.steps = max(1, round(self.steps * seconds / took))

    def rate(self) -> float:
        """Steps a second in a stretch."""
        return self.steps / self.seconds(self.steps)

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def versions(python: str, packages: list[str]) -> str:
    code = f"from importlib.metadata import version as v\nfor p in {packages}: print(p, v(p))"
    done = subprocess.run([python, "-c", code], text=True, capture_output=True, check=True)
    return ", ".join(done.stdout.splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", required=True, help="the Python that has the peers")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS, help="rows of the table")
    parser.add_argument("--pairs", type=int, default=5, help="stretches of each side")
    parser.add_argument("--seconds", type=float, default=3, help="of a stretch")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    cores = len(os.sched_getaffinity(0))
    print(f"{platform.processor() or platform.machine()}, {cores} cores")
    print(versions(sys.executable, ["jax", "flax", "optax"]))
    peers = ["torch", "torchvision", "transformers", "pythae", "gensim"]
    print(versions(args.peer_python, peers))
    print(f"{'':22}{'ssljax':>10}{'peer':>10}{'ratio':>8}{'range':>14}", flush=True)
    for row in args.only:
        module = importlib.import_module(f"tests.benchmarks.peers.{row}")
        devices = math.gcd(module.BATCH, cores) if row in SPLIT else 1
        with tempfile.TemporaryDirectory() as folder:
            if hasattr(module, "prepare"):
                module.prepare(folder)
            sides = [
                Side(sys.executable, "ours", row, folder, devices),
                Side(args.peer_python, "theirs", row, folder, devices),
            ]
            for side in sides:
                side.choose_steps(args.seconds)
            pairs = [[side.rate() for side in sides] for _ in range(args.pairs)]
            for side in sides:
                side.end()
        ours, theirs = (statistics.median(p[i] for p in pairs) * module.PER_STEP for i in (0, 1))
        each = sorted(a / b for a, b in pairs)
        print(
            f"{row:22}{ours:10.0f}{theirs:10.0f}{statistics.median(each):8.2f}"
            f"{f'{each[0]:.2f} to {each[-1]:.2f}':>14}  {module.UNIT}/s; {module.PEER}",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:5], int(sys.argv[5]))
    else:
        main()
