"""Parts for a machine without a network: the committed code, wheels and data, of a size each.

    python -m tests.carry --to parts --python 3.12 --have jax jaxlib flax optax numpy ...
        --data mnist cifar10 ~/tinyshakespeare.txt

writes parts/01, parts/02, ..., of at most --mib MiB each, and parts/01/unpack.sh. Carry them over,
one by one if need be, and there

    bash parts/01/unpack.sh parts WHERE

puts the checkout, with the one commit whose name records have, into WHERE/ssljax, the wheels into
WHERE/site and the data where ssljax looks for them; it prints what to type then. --have names
packages that are there already (`pip list`), which are not carried; what they need isn't either.
"""

import argparse
from collections.abc import Sequence
import importlib.metadata
import pathlib
import subprocess
import sys
import tarfile
import tempfile

from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).resolve().parent.parent
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (39, 35, 34, 31, 28, 27, 24, 17)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64"]
SETS = pathlib.Path("~/tensorflow_datasets").expanduser()
UNPACK = """#!/usr/bin/env bash
# unpack.sh PARTS WHERE: the checkout, wheels and data of PARTS/01, PARTS/02, and so on.
set -eu  # Without pipefail: tar stops reading at the end of the archive.
parts=$1
mkdir -p "$2"
where=$(cd "$2" && pwd)
cat "$parts"/*/archive.?? | tar -x -C "$where"
python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$where/site" \\
  "$where"/wheels/*.whl
mkdir -p ~/tensorflow_datasets
if [ -d "$where/sets" ]; then cp -r "$where"/sets/. ~/tensorflow_datasets; fi
echo "cd $where/ssljax && PYTHONPATH=$where/site python3 -m tests.accelerator --minutes 9 --out OUT"
"""


def wheels(python: str, have: Sequence[str], to: pathlib.Path) -> list[str]:
    """Downloads the wheels of what ssljax[text,tfds] needs, but for `have`, of the versions that
    are installed here; returns their names.
    """
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    chosen = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
    chosen += [f"--platform={p}" for p in PLATFORMS]
    to.mkdir(parents=True, exist_ok=True)
    names = [f"{name}=={version}" for name, version in _needs({_plain(x) for x in have}).items()]
    for name in names:
        download = [*pip, "download", "--no-deps", f"--dest={to}", *chosen, name]
        if subprocess.run(download, stderr=subprocess.DEVNULL).returncode:  # It has no wheel.
            subprocess.run([*pip, "wheel", "--no-deps", f"--wheel-dir={to}", name], check=True)
    compiled = [f.name for f in to.glob("*.whl") if "-none-any" not in f.name]
    wrong = [f for f in compiled if f"cp{python.replace('.', '')}" not in f and "abi3" not in f]
    if wrong:
        sys.exit(f"error: {', '.join(wrong)} is not of Python {python}.")
    return names


def _needs(have: set[str]) -> dict[str, str]:
    """{name: version} of ssljax[text,tfds] and what it needs, without what `have` brings."""
    found: dict[str, str] = {}
    left = [Requirement("ssljax[text,tfds]")]
    while left:
        one = left.pop()
        of = importlib.metadata.distribution(one.name)
        for line in of.requires or ():
            need = Requirement(line)
            name = _plain(need.name)
            wanted = any(
                need.marker is None or need.marker.evaluate({"extra": extra})
                for extra in ("", *one.extras)
            )
            if wanted and name not in found and name not in have:
                found[name] = importlib.metadata.version(name)
                left.append(need)
    return found


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def checkout(to: pathlib.Path) -> None:
    """A clone of the last commit alone, so that records have its name."""
    source = f"file://{ROOT}"
    subprocess.run(["git", "clone", "-q", "--depth=1", source, str(to)], check=True)
    subprocess.run(["git", "-C", str(to), "remote", "remove", "origin"], check=True)


def split(folder: pathlib.Path, to: pathlib.Path, size: int) -> int:
    """Writes a folder as one archive in to/01, to/02, ..., of `size` bytes each; their number."""
    part, written, file = 0, size, None

    class Parts:
        def write(self, data: bytes) -> int:
            nonlocal part, written, file
            for start in range(0, len(data), 2**16):
                piece = data[start : start + 2**16]
                if written + len(piece) > size:
                    if file:
                        file.close()
                    part, written = part + 1, 0
                    (to / f"{part:02d}").mkdir(parents=True)
                    file = open(to / f"{part:02d}" / f"archive.{part:02d}", "wb")  # noqa: SIM115
                file.write(piece)
                written += len(piece)
            return len(data)

    with tarfile.open(fileobj=Parts(), mode="w|") as tar:  # Its content is compressed already.
        for child in sorted(folder.iterdir()):
            tar.add(child, child.name)
    if file:
        file.close()
    return part


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=pathlib.Path, required=True, help="new folder")
    parser.add_argument("--python", default="3.12", help="version of Python there")
    parser.add_argument("--have", nargs="*", default=[], help="packages that are there")
    parser.add_argument("--data", nargs="*", default=[], help="prepared sets, and texts by path")
    parser.add_argument("--mib", type=float, default=60, help="largest size of a part")
    asked = parser.parse_args(args)
    if asked.to.exists():
        sys.exit(f"error: {asked.to} exists: choose a new folder.")
    with tempfile.TemporaryDirectory() as folder:
        stage = pathlib.Path(folder)
        checkout(stage / "ssljax")
        for name in asked.data:
            places = [SETS / name, pathlib.Path(name).expanduser()]
            source = next((place for place in places if place.exists()), None)
            if source is None:
                sys.exit(f"error: there is no {name}: prepare it, or give a file's path.")
            to = stage / ("ssljax/data" if source.is_file() else "sets") / source.name
            to.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-r", str(source), str(to)], check=True)
        print("\n".join(wheels(asked.python, asked.have, stage / "wheels")))
        asked.to.mkdir(parents=True)
        count = split(stage, asked.to, int(asked.mib * 2**20))
    (asked.to / "01" / "unpack.sh").write_text(UNPACK)
    sizes = [sum(f.stat().st_size for f in p.iterdir()) for p in sorted(asked.to.iterdir())]
    print(f"{count} parts of at most {max(sizes) / 2**20:.1f} MiB in {asked.to}.")


if __name__ == "__main__":
    main()
