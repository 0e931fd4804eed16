"""Feature nets: a classifier that was trained by its experiment, read back; and its accuracy."""

from dataclasses import replace
import json

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import pytest

from experiments.supervised import supervised
from ssljax import load, main, sharding
from ssljax.checkpoint import Checkpoints
from ssljax.data import Images, images
from ssljax.evals.accuracy import accuracy, accuracy_of_versions
from ssljax.evals.feature_nets import classifier, feature_net, pixels
from ssljax.evals.features import features, raw_pixels
from ssljax.evals.fid import generated
from ssljax.models.resnet import ResNet
from ssljax.record import plain


@pytest.fixture(scope="module")
def test():
    return images("digits", "test")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of two seeds by the command line."""
    folder = tmp_path_factory.mktemp("classifier")
    mesh = jax.make_mesh(
        (1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1]
    )
    with pytest.MonkeyPatch.context() as patch:  # Of one device, whose steps are quicker here.
        patch.setattr(sharding, "make_mesh", lambda *_, **__: mesh)
        main(
            supervised,
            [
                "--epochs=6",
                "--encoder.widths",
                "16",
                "32",
                "--run.seeds=2",
                f"--run.workdir={folder}",
            ],
        )
    return folder


def test_classifier_reads_a_run(workdir, test):
    nets = [classifier(workdir, seed) for seed in (0, 1)]
    found = json.loads((workdir / "results.json").read_text())["results"]["test/accuracy"]
    assert min(found) > 60
    for net, percent in zip(nets, found):
        assert net.name == f"digits_classifier_{percent:.1f}"
        z = features(net.apply, net.params, test)
        assert z.shape == (360, 32)
        # The head on these features gives the accuracy on record.
        head = load(workdir, nets.index(net)).state["params"]["head"]
        assert 100 * np.mean(
            np.argmax(z @ head["kernel"] + head["bias"], 1) == test.labels
        ) == pytest.approx(percent)
        np.testing.assert_allclose(
            net.logits(net.params, z), z @ head["kernel"] + head["bias"], atol=1e-4
        )
    assert feature_net(str(workdir)).name == nets[0].name


def test_classifier_fid_of_blurred_images(workdir, test):
    train = images("digits", "train")
    x = jnp.asarray(test.image / np.float32(255))

    def draw(state, key, n):
        at = jax.random.choice(key, len(x), (n,), replace=False)
        return state["blur"] * x.mean(0) + (1 - state["blur"]) * x[at]

    net = replace(classifier(workdir), batch_size=360)
    numbers = [generated(draw, net, train, test)({"blur": jnp.float32(b)}) for b in (0, 0.5)]
    fids = [x[f"fid_{net.name}"] for x in numbers]
    assert (
        fids[0] == pytest.approx(numbers[0][f"fid_{net.name}_floor"], rel=1e-3)
        and fids[1] > 3 * fids[0]
    )


def test_accuracy_of_versions_numbers(workdir, test):
    """By hand, for images turned upside down, darkened by the state and left alone."""
    net = classifier(workdir)

    def versions(state, x):
        x = x / jnp.float32(255)
        return {"": x[:, ::-1], "_of_dark": state * x, "_of_same": x}

    numbers = accuracy_of_versions(versions, net, test)(jnp.float32(0.5))
    named = lambda x: np.argmax(net.logits(net.params, net.apply(net.params, x)), 1)
    by_hand = lambda x: float(100 * np.mean(np.asarray(named(x)) == test.labels))
    dark = np.round(test.image * np.float32(0.5)).astype(np.uint8)
    want = {
        "accuracy": by_hand(test.image[:, ::-1]),
        "accuracy_of_dark": by_hand(dark),
        "accuracy_of_same": by_hand(test.image),
        "accuracy_of_images": by_hand(test.image),
    }
    assert (
        numbers == pytest.approx(want, abs=0.6)
        and numbers["accuracy_of_same"] == numbers["accuracy_of_images"]
    )
    assert numbers["accuracy"] < numbers["accuracy_of_images"] - 20
    with pytest.raises(ValueError, match="pixels is no classifier"):
        accuracy_of_versions(versions, pixels(), test)


def test_classifier_refuses_images_of_other_channels(workdir):
    net = classifier(workdir)
    with pytest.raises(
        ValueError, match="takes images of 1 channels, not 3: train one on the same data"
    ):
        net.apply(net.params, jnp.zeros((2, 8, 8, 3), jnp.uint8))


def test_classifier_without_a_run_says_the_command(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(
            ValueError, match="no trained classifier: make one with `launch/local.sh"
        ):
            classifier(folder)


def test_pixels_are_the_raw_pixels(test):
    net = feature_net()
    assert net.name == pixels().name == "pixels"
    np.testing.assert_allclose(features(net.apply, net.params, test), raw_pixels(test), rtol=1e-6)


def test_classifier_rebuilds_a_resnet(tmp_path, test):
    net = ResNet(width=4)
    state = supervised(Images("digits"), encoder=net).init(
        jax.random.key(0), {"image": test.image[:2]}
    )
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(1, state)
    checkpoints.close()
    arguments = {"data": "a/folder.npz", "image_size": 0, "encoder": plain(net)}
    (tmp_path / "record.json").write_text(json.dumps({"computes": arguments}))
    (tmp_path / "results.json").write_text(json.dumps({"results": {"test/accuracy": [12.34]}}))
    found = classifier(tmp_path)
    variables = {"params": state.params["encoder"], "batch_stats": state.extra["encoder"]}
    expected = net.apply(variables, test.image[:5] / np.float32(255))
    np.testing.assert_allclose(found.apply(found.params, test.image[:5]), expected, atol=1e-5)
    assert found.name == "folder_classifier_12.3"
    arguments["data"] = "a/folder.npz:validation"
    (tmp_path / "record.json").write_text(json.dumps({"computes": arguments}))
    assert classifier(tmp_path).name == "folder_validation_classifier_12.3"


def test_accuracy_numbers(test):
    always = lambda state, x: jnp.zeros((len(x), 10)).at[:, 3].set(state["w"])
    numbers = accuracy(always, test)({"w": jnp.float32(2)})
    share = np.mean(test.labels == 3)
    assert numbers["accuracy"] == pytest.approx(100 * share)
    total = np.log(np.exp(2) + 9)
    assert numbers["cross_entropy"] == pytest.approx(total - 2 * share)
    assert numbers["most_frequent"] == pytest.approx(100 * np.bincount(test.labels).max() / 360)
    with pytest.raises(ValueError, match=r"not in \[0, 5\)"):
        accuracy(lambda state, x: jnp.zeros((len(x), 5)), test)({})
