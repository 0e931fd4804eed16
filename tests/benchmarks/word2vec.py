"""Words per second of experiments/word2vec.py and of gensim, and the word tests of both.

    .venv/bin/python tests/benchmarks/word2vec.py brown.txt,gutenberg.txt \\
        --peer-python PYTHON_WITH_GENSIM --runs 3

Both sides train in turns on the same text with the same settings, each in a process of its own
bound to `--threads` cores (gensim has as many workers). Compiling, reading and evaluating are not
timed. A word counts each time an epoch passes it, whether subsampling drops it or not.

On Brown and Gutenberg, one epoch, two quiet cores (2026-11-22): 1.01 million words a second against
.35 with one thread, 1.07 against .55 with two, for which ours keeps 1.4 cores busy.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
PEER = """
import sys, time
import numpy as np
from gensim.models import Word2Vec
words, width, window, negatives, sample, epochs, lr, sg, threads, vectors = sys.argv[1:]
text = open(words).read().split(" ")
text = [text[i:i + 10000] for i in range(0, len(text), 10000)]
model = Word2Vec(vector_size=int(width), window=int(window), negative=int(negatives),
                 sample=float(sample), sg=int(sg), alpha=float(lr), min_count=1,
                 workers=int(threads), seed=0)
model.build_vocab(text)
start, cpu = time.perf_counter(), time.process_time()
model.train(text, total_examples=model.corpus_count, epochs=int(epochs))
print(time.perf_counter() - start, time.process_time() - cpu)
np.savez(vectors, names=np.array(model.wv.index_to_key), vectors=model.wv.vectors)
"""


def ours(data: str, arguments: dict, out: str) -> None:
    """Trains as the loop does, without its log, and keeps the vectors."""
    sys.path.insert(0, str(ROOT))
    import jax
    import numpy as np

    from experiments.word2vec import word2vec
    from ssljax import sharding
    from ssljax.program import Program
    from ssljax.run import Run

    tokens = np.load(data)
    import experiments.word2vec as file

    class Nothing:
        to_str = staticmethod(lambda: "")

    count = np.bincount(tokens["tokens"])
    file.vocabulary = lambda *_: (Nothing, tokens["tokens"], count, tokens["names"].tolist())
    exp = word2vec(**arguments)
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        feed = exp.data.feed(0, 0, mesh)
        first = next(feed)
        program = Program(exp, Run(), mesh, first, ())
        warm = program.update(program.init([first]), program.new_accumulator(), [[first]])
        jax.block_until_ready(warm)
        state, watch = program.init([first]), program.new_accumulator()
        feed = exp.data.feed(0, 0, mesh)
        jax.block_until_ready(state)
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(exp.num_steps):
            state, watch = program.update(state, watch, [[next(feed)]])
        jax.block_until_ready(state)
        print(time.perf_counter() - start, time.process_time() - cpu)
    np.savez(out, names=tokens["names"], vectors=np.asarray(state.params["in"]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="as --data of the experiment")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python with gensim")
    parser.add_argument("--runs", type=int, default=1, help="of each side, in turn")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="and cores")
    parser.add_argument("--model", choices=("skip-gram", "cbow"), default="skip-gram")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--peer-lr", type=float, default=0.025, help="gensim's own")
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    import numpy as np

    from ssljax.data.words import vocabulary
    from ssljax.evals.words import word_tests

    _, tokens, _, names = vocabulary(given.data, 5)
    os.sched_setaffinity(
        0, sorted(os.sched_getaffinity(0))[: given.threads]
    )  # Which the sides inherit.
    with tempfile.TemporaryDirectory() as folder:
        at = lambda name: os.path.join(folder, name)
        np.savez(at("tokens.npz"), tokens=tokens, names=np.array(names))
        pathlib.Path(at("words.txt")).write_text(
            " ".join(np.array(names)[tokens]), encoding="utf-8"
        )
        settings = {"model": given.model, "epochs": given.epochs, "lr": given.lr}
        sides = {
            "ssljax": [
                sys.executable,
                __file__,
                "--ours",
                at("tokens.npz"),
                json.dumps(settings),
                at("ssljax.npz"),
            ],
            "gensim": [
                given.peer_python,
                "-c",
                PEER,
                at("words.txt"),
                "100",
                "5",
                "5",
                "1e-3",
                str(given.epochs),
                str(given.peer_lr),
                str(int(given.model == "skip-gram")),
                str(given.threads),
                at("gensim.npz"),
            ],
        }
        print(
            f"{len(tokens)} words, {len(names)} different, {settings}, gensim at "
            f"{given.peer_lr}, {given.threads} threads"
        )
        for _ in range(given.runs):
            for side, command in sides.items():
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{side} failed:\n{done.stderr}")
                seconds, cpu = map(float, done.stdout.splitlines()[-1].split())
                with np.load(at(f"{side}.npz")) as file:
                    tests = word_tests(lambda x: x, file["names"].tolist())
                    found = {
                        f"{k} {n}": v
                        for k, test in tests.items()
                        for n, v in test(file["vectors"]).items()
                    }
                rate = given.epochs * len(tokens) / 1e6
                print(
                    f"{side}: {rate / seconds:.3f} million words/s, "
                    f"{rate / cpu:.3f} a second of CPU; "
                    + ", ".join(f"{k} {v:.3f}" for k, v in found.items()),
                    flush=True,
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ours"]:
        ours(sys.argv[2], json.loads(sys.argv[3]), sys.argv[4])
    else:
        main()
