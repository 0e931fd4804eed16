"""CLIP and SigLIP: a step by the papers' equations, and the features of a run on files."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
import pytest
from sklearn.datasets import load_sample_images

from experiments.clip import clip
from ssljax import InputError, load, Run, sharding, train
from ssljax.data.captions import caption_rows, Pairs
from ssljax.data.views import Views
from ssljax.models.convnet import ConvNet
from ssljax.models.mlp import MLP
from ssljax.models.transformer import LanguageModel, Transformer
from ssljax.pretrained import embeddings

KEY = jax.random.key(0)
ONE = {
    "encoder": MLP((12, 10), norm=True),
    "text": Transformer(layers=1, heads=2, width=8),
    "embedding": 6,
}
SMALL = {
    "encoder": ConvNet(widths=(4, 8)),
    "text": Transformer(layers=1, heads=2, width=16),
    "embedding": 6,
}


class Plain(Views):
    """The image as it is, which compiles at once."""

    def __call__(self, key, batch, number=0):
        return batch["image"].astype(jnp.float32) / 255


def batch_of(exp):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        return exp.data.batch(exp.data.resident(), next(exp.data.feed(0, 0, mesh)))


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_clip_step_matches_the_papers_equation(loss):
    """The loss in a loop over pairs, and its gradient, after a step has moved the nets."""
    exp = clip(
        data=Pairs("digits"),
        view=Plain(),
        loss=loss,
        optimizer="sgd",
        lr=0.1,
        warmup=0.0,
        weight_decay=0.0,
        batch_size=4,
        epochs=1,
        **ONE,
    )
    batch = batch_of(exp)
    step = jax.jit(exp.step)
    state, _ = step(jax.jit(exp.init)(KEY, batch), batch, KEY)
    new, metrics = step(state.replace(step=jnp.int32(1)), batch, KEY)
    trace = lambda s: optax.tree.get(s.opt_state, "trace")
    found = jax.tree.map(lambda a, b: a - 0.9 * b, trace(new), trace(state))
    x = batch["image"].astype(jnp.float32) / 255

    def equation(p):
        text = LanguageModel(ONE["text"], p["text"]["embed"]["embedding"].shape[0], causal=False)
        h, _ = ONE["encoder"].apply(
            {"params": p["encoder"], "batch_stats": state.extra["encoder"]},
            x,
            True,
            mutable=["batch_stats"],
        )
        z = h @ p["head"]["Dense_0"]["kernel"]
        h = jnp.stack(
            [
                text.apply({"params": p["text"]}, row[row >= 0][None], method="hidden")[0].mean(0)
                for row in np.asarray(batch["tokens"])
            ]
        )
        t = h @ p["text_head"]["Dense_0"]["kernel"]
        z, t = (a / jnp.linalg.norm(a, axis=1, keepdims=True) for a in (z, t))
        scale, total = jnp.exp(p["scale"]), 0.0
        for i in range(4):
            if loss == "softmax":
                rows, columns = (scale * a for a in (t @ z[i], z @ t[i]))
                total += jnp.log(jnp.exp(rows).sum()) / 2 + jnp.log(jnp.exp(columns).sum()) / 2
                total -= scale * z[i] @ t[i]
            else:
                for j in range(4):
                    sign = 1 if i == j else -1
                    total += jnp.log(1 + jnp.exp(-sign * (scale * z[i] @ t[j] + p["bias"])))
        return total / 4

    want, gradient = jax.jit(jax.value_and_grad(equation))(state.params)
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
    most = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * most), found, gradient)
    assert abs(float(gradient["scale"])) > 0
    high = state.replace(params=state.params | {"scale": jnp.float32(9.0)})
    np.testing.assert_allclose(step(high, batch, KEY)[1]["scale"], 100, rtol=1e-5)


def test_a_run_on_files_gives_pictures_and_texts_features_in_one_space(
    tmp_path, one_device, monkeypatch
):
    """Parts of two photographs: what `load` and `embeddings` give is what evaluators read."""
    pictures = dict(zip(["a flower", "a temple"], load_sample_images().images[::-1]))
    lines = ["filepath\ttitle"]
    for i in range(40):
        name = sorted(pictures)[i % 2]
        part = pictures[name][2 * i : 2 * i + 160, 3 * i : 3 * i + 200]
        Image.fromarray(part).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png\t{name}, part {i // 2}")
    (tmp_path / "pictures.tsv").write_text("\n".join(lines))
    arguments = SMALL | {
        "data": Pairs(str(tmp_path / "pictures.tsv"), 16),
        "view": Views(crop=1.0, flip=0.0, jitter=0.0, gray=0.0),
        "batch_size": 12,
        "epochs": 1,
    }
    exp = replace(clip(**arguments), num_steps=2)
    assert list(exp.evals)[:2] == ["retrieval", "words"] and "knn" not in exp.evals
    run = Run(workdir=str(tmp_path / "run"))
    state = train(replace(exp, evals={"retrieval": exp.evals["retrieval"]}), run)
    batch = batch_of(exp)
    sets = arguments["data"].pairs(whole=True)
    rows = caption_rows(sets, "wordpiece", 1000, 16)[1]["train"][:3]
    embed = jax.jit(exp.embed)
    found = embeddings(tmp_path / "run", sets.train.captions[:3])
    np.testing.assert_allclose(found, embed(state, rows), atol=1e-6)
    assert np.ptp(found, 0).max() > 1e-4  # Different words have different features.
    pictures = np.asarray(batch["image"])
    of_pictures = embeddings(tmp_path / "run", pictures)
    np.testing.assert_allclose(of_pictures, embed(state, pictures), atol=1e-6)
    assert of_pictures.shape == (12, 6)
    again = load(tmp_path / "run").encode(pictures)
    np.testing.assert_allclose(again, jax.jit(exp.encode)(state, pictures), atol=1e-6)
    (tmp_path / "pictures.tsv").rename(tmp_path / "moved.tsv")
    texts = embeddings(tmp_path / "run", sets.train.captions[:3])
    np.testing.assert_array_equal(texts, found)  # By the tokens of the run.
    np.testing.assert_array_equal(embeddings(tmp_path / "run", pictures), of_pictures)
    np.testing.assert_array_equal(load(tmp_path / "run").encode(pictures), again)
    with pytest.raises(InputError, match="Images must be uint8"):
        embeddings(tmp_path / "run", pictures / 255)
    with pytest.raises(InputError, match="Give a list of texts"):
        embeddings(tmp_path / "run", "a cat")
