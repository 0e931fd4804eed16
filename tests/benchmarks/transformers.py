"""Training speed of the Transformers: GPT and nanoGPT's model, BERT and Hugging Face's.

    .venv/bin/python tests/benchmarks/transformers.py --peer-python ENV/bin/python \\
        [--rounds 5] [--steps 100] [--devices 1]

ENV needs torch and transformers, and no JAX. Both sides train the same sizes with AdamW and without
dropout, on the cores that this process may use (we split them into `--devices`, by default one
each): GPT in nanoGPT's setting for a CPU (4 layers, 4 heads, width 128, 12 rows of 64 characters),
BERT with 4 layers of width 256, 32 rows of 128 tokens and a vocabulary of 8192, or that of
`--data`. They take turns, each in a process of its own; the ratio is that of the medians. Our time
is the one that `train` records, with everything that it writes.

Measured by leaving parts out, on one core (2026-11-22): of GPT's 66 ms a step, attention takes 15
and the tanh of GELU 6; the other 45 are products of small matrices, at about 80 GFLOP/s.
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
ROWS = {"gpt": 12, "bert": 32}
TOKENS = {"gpt": ROWS["gpt"] * 64, "bert": ROWS["bert"] * 128}  # In a step.


def ours(which: str, steps: int, data: str, devices: int) -> tuple[float, int]:
    """Tokens per second of `train`, after its first step, and the size of the vocabulary."""
    sys.path.insert(0, str(ROOT))
    from dataclasses import replace

    from experiments.bert import bert
    from experiments.gpt import gpt
    from ssljax import logs, Run, sharding, train
    from ssljax.models.transformer import Transformer

    sharding.split_cpu(devices)

    classic = dict(
        norm="layer", positions="learned", unit="gelu", dropout=0.0
    )  # What the peers compute.
    if which == "gpt":
        exp = gpt(
            data, net=Transformer(4, 4, 128, **classic), length=64, batch_size=12, steps=steps
        )
    else:
        exp = bert(
            data,
            net=Transformer(4, 4, 256, **classic),
            length=128,
            batch_size=32,
            vocabulary=8192,
            steps=steps,
        )
    with tempfile.TemporaryDirectory() as workdir:
        train(replace(exp, evals={}), Run(workdir=workdir, save_every=10**9))
        rows = [r for r in logs.read_metrics(pathlib.Path(workdir)) if "seconds" in r]
    vocabulary = len(json.loads(exp.files["tokenizer.json"])["model"]["vocab"])
    return TOKENS[which] * (steps - 1) / rows[-1]["seconds"], vocabulary


def theirs(which: str, steps: int, vocabulary: int) -> tuple[float, int]:
    """Tokens per second of the same step in PyTorch, after its third, and the vocabulary size."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    if which == "gpt":
        model = nano_gpt(vocabulary, layers=4, heads=4, width=128, length=64)
        text = torch.randint(vocabulary, (1_000_000,))

        def loss():
            at = torch.randint(len(text) - 64, (12,))
            x, y = (torch.stack([text[i + j : i + j + 64] for i in at]) for j in (0, 1))
            return torch.nn.functional.cross_entropy(model(x).view(-1, vocabulary), y.view(-1))
    else:
        sys.path = [
            p
            for p in sys.path
            if pathlib.Path(p).resolve() != pathlib.Path(__file__).resolve().parent
        ]
        from transformers import (
            BertConfig,
            BertForMaskedLM,
        )  # Not this file, which has the same name.

        model = BertForMaskedLM(
            BertConfig(
                vocab_size=vocabulary,
                hidden_size=256,
                num_hidden_layers=4,
                num_attention_heads=4,
                intermediate_size=1024,
                max_position_embeddings=128,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
        text = torch.randint(5, vocabulary, (32, 128))

        def loss():
            chosen, how = torch.rand(text.shape) < 0.15, torch.rand(text.shape)
            x = torch.where(chosen & (how < 0.8), 4, text)
            x = torch.where(chosen & (how > 0.9), torch.randint(5, vocabulary, text.shape), x)
            return model(input_ids=x, labels=torch.where(chosen, text, -100)).loss

    model.train()
    tx = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    for i in range(steps + 3):
        if i == 3:
            start = time.perf_counter()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        tx.step()
        tx.zero_grad(set_to_none=True)
    return TOKENS[which] * steps / (time.perf_counter() - start), vocabulary


def nano_gpt(vocabulary: int, layers: int, heads: int, width: int, length: int):
    """The model of https://github.com/karpathy/nanoGPT, with biases and without dropout.

    Tokens (n, t) to logits.
    """
    import torch
    from torch import nn
    import torch.nn.functional as F

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            b, t, d = x.shape
            q, k, v = (
                a.view(b, t, heads, -1).transpose(1, 2)
                for a in self.qkv(self.norm1(x)).split(d, dim=2)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
            self.blocks, self.norm = (
                nn.ModuleList(Block() for _ in range(layers)),
                nn.LayerNorm(width),
            )
            for name, p in self.named_parameters():
                if p.ndim == 2:
                    nn.init.normal_(
                        p,
                        std=0.02
                        / (math.sqrt(2 * layers) if "out" in name or "down" in name else 1),
                    )

        def forward(self, x):
            x = self.embed(x) + self.place(torch.arange(x.shape[1]))
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.embed.weight.T

    return Model()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", help="the Python with torch and transformers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--devices",
        type=int,
        help="of the CPU, for ours; else as many as cores, if the batch divides",
    )
    parser.add_argument("--models", nargs="+", choices=list(TOKENS), default=list(TOKENS))
    parser.add_argument(
        "--data", default="python", help="what ours learns; the peers have as many random tokens"
    )
    parser.add_argument("--vocabulary", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--side",
        choices=["ours", "theirs"],
        help="time one side in this process and print it as JSON",
    )
    args = parser.parse_args()
    if args.side:
        one, n = args.models[0], args.steps
        ran = (
            ours(one, n, args.data, args.devices)
            if args.side == "ours"
            else theirs(one, n, args.vocabulary)
        )
        print(json.dumps(ran))
        sys.exit()
    if not args.peer_python:
        parser.error(
            "--peer-python is needed: the Python with torch and transformers to compare with"
        )
    for model in args.models:
        devices = args.devices or math.gcd(ROWS[model], len(os.sched_getaffinity(0)))
        found: dict[str, list[float]] = {"ours": [], "theirs": []}
        vocabulary = 0
        for _ in range(args.rounds):
            for side, python in (("ours", sys.executable), ("theirs", args.peer_python)):
                said = subprocess.run(
                    [
                        python,
                        __file__,
                        "--side",
                        side,
                        "--models",
                        model,
                        "--steps",
                        str(args.steps),
                        "--data",
                        args.data,
                        "--vocabulary",
                        str(vocabulary),
                        "--devices",
                        str(devices),
                    ],
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                ).stdout
                rate, vocabulary = json.loads(said.splitlines()[-1])
                found[side].append(rate)
        a, b = (sorted(v)[len(v) // 2] for v in found.values())
        each = ", ".join(f"{x / y:.2f}" for x, y in zip(found["ours"], found["theirs"]))
        print(
            f"RESULT {model}, vocabulary {vocabulary}: ours {a:.0f} tokens/s, PyTorch {b:.0f}, "
            f"ratio {a / b:.2f} "
            f"(of each round: {each})",
            flush=True,
        )
