"""word2vec: skip-gram, 100 dimensions, a window and negatives of 5.

It learns from the file in the variable TEXT, by default Python's manual: 48,000 words, whose
vectors fit the cache, which favours gensim.
"""

import os
import pathlib

PEER = "gensim"
UNIT = "words"
TEXT = os.environ.get("TEXT", "python")
BATCH, LENGTH = 256, 32
PER_STEP = BATCH * LENGTH  # A word counts whether subsampling drops it or not.


def prepare(folder):
    """Writes the text, as the words that both sides learn from."""
    import numpy as np

    from ssljax.data.words import vocabulary

    _, tokens, _, names = vocabulary(TEXT, 5)
    pathlib.Path(folder, "words.txt").write_text(" ".join(np.array(names)[tokens]))


def ours(folder):
    from experiments.word2vec import word2vec
    from tests.benchmarks.peers.program import stepper

    return stepper(word2vec(TEXT, batch_size=BATCH, length=LENGTH, epochs=10**3))


def theirs(folder):
    from gensim.models import Word2Vec

    text = pathlib.Path(folder, "words.txt").read_text().split(" ")
    text = [text[i : i + PER_STEP] for i in range(0, len(text), PER_STEP)]
    cores = len(os.sched_getaffinity(0))
    model = Word2Vec(
        vector_size=100, window=5, negative=5, sample=1e-3, sg=1, min_count=1, workers=cores
    )
    model.build_vocab(text)

    def run(steps):
        some = (text * -(-steps // len(text)))[:steps]
        model.train(some, total_examples=len(some), epochs=1)

    return run
