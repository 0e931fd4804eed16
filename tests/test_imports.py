"""Imports: what takes long to import waits until it is used."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
HEAVY = (
    "array_record",
    "grain",
    "matplotlib",
    "orbax",
    "pyarrow",
    "scipy",
    "sklearn",
    "soundfile",
    "tensorboardX",
    "tensorflow_datasets",
    "tokenizers",
    "wandb",
)
CODE = """
import importlib, json, pathlib, sys
heavy, names = json.loads(sys.argv[1])
loaded = {}
for name in names:
    importlib.import_module(name)
    loaded[name] = [module for module in heavy if module in sys.modules]
print(json.dumps(loaded))
"""


def test_heavy_packages_are_not_imported_with_ssljax_or_an_experiment():
    files = sorted(ROOT.glob("experiments/*.py"))
    names = ["ssljax", *(f"experiments.{file.stem}" for file in files)]
    assert len(names) > 40
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps([HEAVY, names])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {k: v for k, v in json.loads(done.stdout).items() if v} == {}
