"""Replays of failed steps whose files are damaged."""

import shutil

import pytest

from ssljax import InputError, Run, train
from tests.tiny import tiny

pytestmark = pytest.mark.usefixtures("one_device")


def test_damaged_files_of_a_failed_step_are_one_sentence(tmp_path):
    bad, run = tiny(nan_at=3), Run(workdir=str(tmp_path / "run"), replay=False)
    with pytest.raises(InputError, match="became nan in step 4"):
        train(bad, run)
    failure, replayed = tmp_path / "run" / "failure", Run(workdir=run.workdir, replay=True)
    shutil.copytree(failure, tmp_path / "whole")
    weights = max((failure / "state").rglob("d/*"), key=lambda f: f.stat().st_size)
    files = [failure / "failure.json", failure / "batch.npz", weights]
    for file in files:
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        cases = [b"", content[: len(content) // 2], bytes(len(content)), bytes(flipped), None]
        for damage in cases + [b"[]", b'{"step": 3, "lane": 0}'] * (file.suffix == ".json"):
            file.unlink()
            if damage is not None:
                file.write_bytes(damage)
            missing = file.name == "failure.json" and damage is None
            words = "no failed step" if missing else "is damaged .*run the command without"
            with pytest.raises(InputError, match=words) as e:
                train(bad, replayed)
            assert "\n" not in str(e.value)
            shutil.rmtree(failure)
            shutil.copytree(tmp_path / "whole", failure)
    with pytest.raises(SystemExit, match="log"):
        train(bad, replayed)
