"""Word vectors against people's judgements: similarity, analogies, and neighbours to read."""

from collections.abc import Callable, Mapping, Sequence
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import signals
from ssljax.errors import InputError
from ssljax.evals.evaluator import Evaluator
from ssljax.losses.infonce import normalize

Tree = Any
Vectors = Callable[[Tree], Any]  # state -> (words, d), a row for each word of the vocabulary
RESTRICT = 30_000  # Answers of analogies are looked for among so many of the most frequent words.
LEAST = 20  # Pairs or questions; a number from fewer says nothing.


def word_tests(
    vectors: Vectors,
    vocabulary: Sequence[str],
    wordsim: str = "",
    simlex: str = "",
    questions: str = "",
) -> dict[str, Evaluator]:
    """Evaluators of WordSim-353, SimLex-999 and the analogies of questions-words.txt.

    A file that is not given is looked for in files/ where TFDS keeps its data; a note says which
    test is left out. InputError where a given file is missing or has another form.
    """
    folder = pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    files: dict[str, tuple[str, str, Callable[..., Sequence[Any]], Callable[..., Evaluator]]] = {
        "wordsim": (wordsim, "wordsim353.tsv", read_pairs, similarity),
        "simlex": (simlex, "simlex999.txt", read_pairs, similarity),
        "questions": (questions, "questions-words.txt", read_questions, analogies),
    }
    tests = {}
    for name, (given, usual, read, test) in files.items():
        path = pathlib.Path(given).expanduser() if given else folder / "files" / usual
        if not path.is_file():
            if given:
                raise InputError(f"There is no file {given}: check --{name}.")
            print(f"Note: {name} is left out, since there is no {path}: give it as --{name}.")
            continue
        cases = read(path)
        known = set(vocabulary[:RESTRICT] if name == "questions" else vocabulary)
        lower = [[w.lower() for w in case[:-1]] for case in cases]
        if (covered := sum(known.issuperset(case) for case in lower)) < LEAST:
            print(
                f"Note: {name} is left out: the vocabulary has the words of {covered} of its "
                f"{len(cases)} cases."
            )
            continue
        tests[name] = test(vectors, vocabulary, cases)
    return tests


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path} can't be read as a text in UTF-8 ({e}).") from e


def read_pairs(path: pathlib.Path) -> list[tuple[str, str, float]]:
    """Lines of two words and a score, separated by tabs; lines that begin with # are skipped."""
    rows = [line.split("\t") for line in _lines(path) if line and line[0] != "#"]
    try:
        return [(a, b, float(score)) for a, b, score in rows]
    except ValueError:
        raise InputError(
            f"{path} must have two words and a number on each line, with tabs between."
        ) from None


def read_questions(path: pathlib.Path) -> list[tuple[str, str, str, str, str]]:
    """Lines `a b c d` (a is to b as c is to d), each with its section.

    A line that begins with a colon opens a section.
    """
    section, found = "", []
    for line in _lines(path):
        if line.startswith(":"):
            section = line[1:].strip()
        elif line.strip():
            found.append((*line.split(), section))
    if not found or any(len(q) != 5 for q in found):
        raise InputError(
            f"{path} must have four words on each line, and a line `: section` before them."
        )
    return found


def similarity(
    vectors: Vectors,
    vocabulary: Sequence[str],
    pairs: Sequence[tuple[str, str, float]],
) -> Evaluator:
    """`spearman`: Spearman's correlation of cosines with people's scores of pairs of words.

    Pairs with words that are not in the vocabulary are left out: `coverage` is the percent that
    remains. InputError if fewer than two remain.
    """
    row = {w: i for i, w in enumerate(vocabulary)}
    known = [
        (row[a], row[b], score)
        for a, b, score in ((a.lower(), b.lower(), s) for a, b, s in pairs)
        if a in row and b in row
    ]
    if len(known) < 2:
        raise InputError(f"The vocabulary has both words of {len(known)} of {len(pairs)} pairs.")
    left, right, score = map(np.array, zip(*known, strict=True))

    def evaluate(state: Tree) -> Mapping[str, float]:
        from scipy.stats import spearmanr

        x = unit(vectors(state))
        found: Any = spearmanr(np.sum(x[left] * x[right], -1), score)
        return {
            "spearman": float(found.statistic),
            "coverage": 100 * len(known) / len(pairs),
        }

    return Evaluator(
        evaluate,
        better={"spearman": "higher"},
        trace=lambda state: _check_vectors(vectors, state, vocabulary),
    )


def analogies(
    vectors: Vectors,
    vocabulary: Sequence[str],
    questions: Sequence[tuple[str, str, str, str, str]],
    restrict: int = RESTRICT,
) -> Evaluator:
    """Percent of analogies solved by 3CosAdd: the word nearest to b - a + c, except a, b and c.

    Mikolov et al., 2013, arXiv:1301.3781, section 4. Answers are among the first `restrict` words
    of the vocabulary, which is ordered by frequency; questions with other words are left out, and
    `coverage` is the percent that remains. `syntactic` are the sections gram..., `semantic` the
    others. InputError if no question remains.
    """
    row = {w: i for i, w in enumerate(vocabulary[:restrict])}
    lower = [([w.lower() for w in q[:4]], q[4]) for q in questions]
    known = [
        ([row[w] for w in q], section.startswith("gram"))
        for q, section in lower
        if row.keys() >= set(q)
    ]
    if not known:
        raise InputError(f"The vocabulary has the words of none of {len(questions)} analogies.")
    at, syntactic = np.array([q for q, _ in known]), np.array([s for _, s in known])

    def evaluate(state: Tree) -> Mapping[str, float]:
        x = unit(vectors(state))[:restrict]
        solved = []
        for a, b, c, d in (part.T for part in np.array_split(at, -(-len(at) // 512))):
            signals.check()
            cosines = (x[b] - x[a] + x[c]) @ x.T
            for asked in (a, b, c):
                cosines[np.arange(len(a)), asked] = -np.inf
            solved.append(cosines.argmax(-1) == d)
        solved = np.concatenate(solved)
        kinds = {"semantic": ~syntactic, "syntactic": syntactic}
        return {"accuracy": 100 * solved.mean(), "coverage": 100 * len(known) / len(questions)} | {
            kind: 100 * solved[these].mean() for kind, these in kinds.items() if these.any()
        }

    return Evaluator(
        evaluate,
        better={"accuracy": "higher", "semantic": "higher", "syntactic": "higher"},
        settings={"restrict": restrict},
        trace=lambda state: _check_vectors(vectors, state, vocabulary),
    )


def nearest_words(
    vectors: Vectors,
    vocabulary: Sequence[str],
    queries: Sequence[str] = (),
    k: int = 8,
) -> Evaluator:
    """`words`: a table of the `k` words nearest to each of `queries` by cosine.

    Queries that are not in the vocabulary are left out; by default there are 16, from common to
    rare words.
    """
    last = len(vocabulary) - 1
    ranks = np.unique(np.geomspace(max(1, min(50, last)), max(1, last), 24).astype(int))[:16]
    ranks = np.minimum(ranks, last)
    at = [vocabulary.index(w) for w in queries if w in vocabulary] or list(ranks)

    def evaluate(state: Tree) -> Mapping[str, str]:
        x = unit(vectors(state))
        cosines = x[at] @ x.T
        cosines[np.arange(len(at)), at] = -np.inf
        best = np.argsort(-cosines, -1)[:, : min(k, last)]
        width = max(len(vocabulary[i]) for i in at)
        lines = []
        for r, i in enumerate(at):
            near = [f"{vocabulary[j]} {cosines[r, j]:.2f}" for j in best[r]]
            lines.append(f"{vocabulary[i]:{width}}  {', '.join(near)}")
        return {"words": "\n".join(lines)}

    return Evaluator(
        evaluate,
        pictures=True,
        trace=lambda state: _check_vectors(vectors, state, vocabulary),
    )


def _check_vectors(vectors: Vectors, state: Tree, vocabulary: Sequence[str]) -> None:
    shape = jax.eval_shape(vectors, state).shape
    if len(shape) != 2 or shape[0] != len(vocabulary):
        raise InputError(
            f"Vectors must have a row for each of {len(vocabulary)} words, not be {shape}."
        )


def unit(x: Any) -> np.ndarray:
    """Rows at length 1, float32."""
    return np.asarray(normalize(jnp.asarray(x, jnp.float32)))
