"""Folders as runs leave them, written by hand."""

import json
import pathlib
from typing import Any

from ssljax import logs

EVALS = {
    "knn": {
        "better": {"accuracy": "higher"},
        "floors": {"accuracy": "raw_pixels"},
        "settings": {"k": 20},
    },
    "collapse": {"better": {}, "floors": {}, "settings": {}},
}


def write_run(
    folder: pathlib.Path,
    accuracy: list[float] = [44.0],  # noqa: B006
    seed: int = 0,
    results: bool = True,
    reached: int = 100,
    computes: dict[str, Any] = {},  # noqa: B006
    launch: dict[str, Any] = {},  # noqa: B006
    floor: float = 25.0,
    **record: Any,
) -> pathlib.Path:
    """A run of 100 steps of "simclr.py" with one accuracy for each seed, 60 s after `reached`."""
    n = len(accuracy)
    folder.mkdir(parents=True)
    launch = {
        "start": 0,
        "time": "2026-11-28T10:30:00Z",
        "command": ["simclr.py", "--lr", "0.1"],
        "commit": "abc",
        "versions": {"jax": "0.10.2"},
        "hardware": "2-core CPU",
    } | launch
    digests = {f"{part} images": {"count": 9, "digest": part} for part in ("training", "test")}
    content = {
        "computes": {"data": "digits", "lr": 0.1, "image_size": 0}
        | computes
        | {"run": {"seed": seed, "seeds": n}},
        "defaults": {"data": "doodles", "lr": 0.2, "blur": 0.5},
        "lanes": "loop",
        "num_steps": 100,
        "batch_size": 32,
        "launches": [launch],
        "read": {"digits": digests},
        "experiment": "simclr.py",
        "evals": EVALS,
    } | record
    (folder / "record.json").write_text(json.dumps(content))
    trained = {
        "collapse/rank": [7.0] * n,
        "knn/accuracy": accuracy,
        "knn/raw_pixels": [floor] * n,
    }
    untrained = {name: [v / 2 for v in values] for name, values in trained.items()}
    seeds = list(range(seed, seed + n))
    for step, numbers in ((0, untrained), (reached, trained)):
        logs.append_row(folder / "metrics.jsonl", {"step": step} | numbers)
        for i, of in enumerate(seeds):
            for evaluator in EVALS:
                own = {k.split("/")[1]: v[i] for k, v in numbers.items() if evaluator in k}
                row = {"step": step, "seed": of, "evaluator": evaluator, "numbers": own}
                logs.append_row(folder / "evaluations.jsonl", row)
    for step in range(10, reached + 1, 10):
        row = {"step": step, "loss": [1 / (step + i) for i in range(n)], "seconds": 0.6 * step}
        logs.append_row(folder / "metrics.jsonl", row)
    (folder / "checkpoints" / str(reached)).mkdir(parents=True)
    if results:
        found = {"step": 100, "seeds": seeds, "seconds": 60.0}
        found |= {"results": trained, "untrained": untrained}
        (folder / "results.json").write_text(json.dumps(found))
    return folder
