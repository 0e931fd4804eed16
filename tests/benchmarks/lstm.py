"""Words per second in training Zaremba's small LSTM: experiments/lstm.py and PyTorch.

    .venv/bin/python tests/benchmarks/lstm.py --peer-python PATH [--steps 100]

PATH is a Python with torch. Words are random, since only the time counts: 20 streams of 20, a
vocabulary of 10,000, two layers of 200, clipped SGD. The sides take turns in short stretches, each
in a process of its own, so that both meet the same load of the machine.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
BATCH, LENGTH, VOCABULARY, WIDTH = 20, 20, 10_000, 200


def ours():
    import jax
    import jax.numpy as jnp
    import numpy as np

    sys.path.insert(0, str(ROOT))
    from experiments.lstm import lstm
    from ssljax.data import token_feeds
    from ssljax.data.documents import Documents

    words = np.random.default_rng(0).integers(VOCABULARY, size=BATCH * LENGTH * 50 + 1)
    # The experiment as it is, but with these words for its text.
    spelt = lambda numbers: Documents([" ".join(f"w{i}" for i in numbers)])
    twice = [*range(VOCABULARY), *range(VOCABULARY), *words]
    token_feeds.documents = lambda data, split: spelt(twice)
    exp = lstm(vocabulary=VOCABULARY)
    data, key = exp.data, jax.random.key(0)
    resident, feed = jnp.asarray(data.resident()), data.feed(0, 0, None)
    step = jax.jit(
        lambda state, fed: exp.step(state, data.batch(resident, fed), key)[0], donate_argnums=0
    )
    state = jax.jit(exp.init)(key, data.batch(resident, next(feed)))

    def run(steps):
        nonlocal state
        for _ in range(steps):
            state = step(state, next(feed))
        jax.block_until_ready(state)

    return run


def peers():
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            self.rnn = nn.LSTM(WIDTH, WIDTH, 2)
            self.out = nn.Linear(WIDTH, VOCABULARY)
            for p in self.parameters():
                nn.init.uniform_(p, -0.1, 0.1)

        def forward(self, x, carry):
            h, carry = self.rnn(self.embedding(x), carry)
            return self.out(h.view(-1, WIDTH)), tuple(c.detach() for c in carry)

    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    words = torch.randint(VOCABULARY, (LENGTH * 50 + 1, BATCH))
    carry, at = (torch.zeros(2, BATCH, WIDTH), torch.zeros(2, BATCH, WIDTH)), 0

    def run(steps):
        nonlocal carry, at
        for _ in range(steps):
            logits, carry = model(words[at : at + LENGTH], carry)
            loss = LENGTH * nn.functional.cross_entropy(
                logits, words[at + 1 : at + LENGTH + 1].view(-1)
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5)
            optimizer.step()
            at = (at + LENGTH) % (LENGTH * 50)

    return run


def serve(run):
    """Seconds by the clock and of the processor for as many steps as each line asks for."""
    run(3)
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter(), time.process_time()
        run(int(line))
        print(time.perf_counter() - start[0], time.process_time() - start[1], flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer-python", required=True, help="a Python in which torch can be imported"
    )
    parser.add_argument("--steps", type=int, default=100, help="of each side")
    parser.add_argument("--serve", choices=("ours", "peers"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve({"ours": ours, "peers": peers}[args.serve]())
    sides, stretch = {}, 10
    for name, python in (("ours", sys.executable), ("peers", args.peer_python)):
        sides[name] = subprocess.Popen(
            [python, __file__, "--peer-python", "-", "--serve", name],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={k: v for k, v in os.environ.items() if name == "ours" or k != "PYTHONPATH"},
        )
        while (line := sides[name].stdout.readline()) != "ready\n":
            if not line:
                raise SystemExit(f"The side of {name} did not start: see above.")
    rates = {name: [] for name in sides}
    for _ in range(max(1, args.steps // stretch)):
        for name, side in sides.items():
            side.stdin.write(f"{stretch}\n")
            side.stdin.flush()
            rates[name].append(
                [stretch * BATCH * LENGTH / float(t) for t in side.stdout.readline().split()]
            )
    for side in sides.values():
        side.stdin.close()
        side.wait()
    for i, unit in enumerate(
        ("second", "second of a processor")
    ):  # The latter says more where others use the machine.
        a, b = (statistics.median(r[i] for r in rates[name]) for name in ("ours", "peers"))
        print(
            f"RESULT words a {unit}: ssljax {a:.0f}, torch.nn.LSTM {b:.0f}, ratio {a / b:.2f} "
            f"(median of {len(rates['ours'])} stretches each)"
        )


if __name__ == "__main__":
    main()
