"""GPT in nanoGPT's setting for a CPU: 4 layers and heads, width 128, 12 rows of 64 characters."""

import math

PEER = "nanoGPT's model"
UNIT = "tokens"
BATCH, LENGTH, SYMBOLS = 12, 64, 101
PER_STEP = BATCH * LENGTH
CLASSIC = dict(norm="layer", positions="learned", unit="gelu", dropout=0.0)  # What peers compute.


def ours(folder):
    from experiments.gpt import gpt
    from ssljax.models.transformer import Transformer
    from tests.benchmarks.peers.program import stepper

    net = Transformer(4, 4, 128, **CLASSIC)
    return stepper(gpt("python", net=net, length=LENGTH, batch_size=BATCH))


def theirs(folder):
    import torch

    model = nano_gpt(SYMBOLS, layers=4, heads=4, width=128, length=LENGTH)
    text = torch.randint(SYMBOLS, (1_000_000,))

    def loss():
        at = torch.randint(len(text) - LENGTH, (BATCH,))
        x, y = (torch.stack([text[i + j : i + j + LENGTH] for i in at]) for j in (0, 1))
        return torch.nn.functional.cross_entropy(model(x).view(-1, SYMBOLS), y.view(-1))

    return trainer(model, loss)


def trainer(model, loss):
    """A function that trains by AdamW for a number of steps, with gradients clipped to 1."""
    import torch

    model.train()
    tx = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)

    def run(steps):
        for _ in range(steps):
            loss().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            tx.step()
            tx.zero_grad(set_to_none=True)

    return run


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
