"""Zaremba's small LSTM: 20 rows of 20 words, a vocabulary of 10,000, two layers of 200."""

PEER = "torch.nn.LSTM"
UNIT = "words"
BATCH, LENGTH, VOCABULARY, WIDTH = 20, 20, 10_000, 200
PER_STEP = BATCH * LENGTH


def ours(folder):
    import numpy as np

    from experiments.lstm import lstm
    from ssljax.data import token_feeds
    from ssljax.data.documents import Documents
    from tests.benchmarks.peers.program import stepper

    # Random words, since only the time counts, and each of the vocabulary often enough.
    words = np.random.default_rng(0).integers(VOCABULARY, size=BATCH * LENGTH * 50 + 1)
    every = [*range(VOCABULARY), *range(VOCABULARY), *words]
    text = Documents([" ".join(f"w{i}" for i in every)])
    token_feeds.documents = lambda data, split: text
    return stepper(lstm(vocabulary=VOCABULARY))


def theirs(folder):
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
