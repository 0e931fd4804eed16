"""Some trials of each kind of the soak, with fixed seeds."""

import pytest

from tests.soak import Soak, trial

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def soak(tmp_path_factory):
    return Soak(tmp_path_factory.mktemp("soak"), programs=1)


@pytest.mark.parametrize(
    "name",
    ["kills:0", "signals:0", "flips:0", "doubled:0"]
    + [f"commands:{i}" for i in range(10)]
    + [f"data:{i}" for i in range(10)],
)
def test_a_trial_has_no_fault(soak, name):
    assert not trial(soak, name)
