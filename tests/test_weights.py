"""Weights in files: those of other libraries, with their outputs; exported ones, and cards."""

import errno
import json
import math
import re
import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bert import bert
from experiments.finetune import finetune
from experiments.finetune_text import finetune_text
from experiments.gpt import gpt
from experiments.mae import mae
from experiments.simclr import simclr
from experiments.simcse import simcse
from experiments.t5 import t5
from experiments.text_to_text import text_to_text
from experiments.vae import vae
from ssljax import load
from ssljax.checkpoint import flatten
from ssljax.data import Images, images, PlainImages
from ssljax.data.decode import _middle
from ssljax.data.image_sets import MIDDLE
from ssljax.data.views import Views
from ssljax.errors import InputError
from ssljax.export import _crop_pct, export, main
from ssljax.foreign import read_encoder, read_encoder_decoder, read_language_model
from ssljax.models.coder import Dense
from ssljax.models.convnet import ConvNet
from ssljax.models.encoder import Normalised
from ssljax.models.mlp import MLP
from ssljax.models.resnet import ResNet
from ssljax.models.transformer import Transformer
from ssljax.models.vit import ViT
from ssljax.pretrained import encoder_of, pretrained
from ssljax.weights import nested, read_weights, write_weights
from tests.peers.foreign import FILE, pictures, TARGETS, TOKENS, values
from tests.saved_runs import random_state, save_run

FOREIGN = json.loads(FILE.read_text())
SMALL = Transformer(1, 2, 8)
GPT2 = SMALL.clone(norm="layer", positions="learned", unit="gelu-tanh", reach=16)
BERT = GPT2.clone(unit="gelu", blocks="post-norm", segments=2)
PHOTOS, DIGITS = PlainImages("photos"), PlainImages("digits")


@pytest.mark.parametrize("name", FOREIGN)
def test_outputs_are_those_of_the_library_that_the_weights_are_of(name):
    """As torchvision, timm and transformers have computed them once."""
    told = FOREIGN[name]
    arrays, config = values(told["shapes"]), told["config"]
    if told["side"]:
        found = read_encoder(arrays, config, "file")
        channels = next(x[1] for x in told["shapes"].values() if len(x) == 4)
        x = (pictures(told["side"], channels),)
    elif config["model_type"] == "t5":
        found = read_encoder_decoder(arrays, config, "file", 32)
        x = np.array(TOKENS), np.array(TARGETS)
    else:
        found = read_language_model(arrays, config, "file", 30)
        x = (np.array(TOKENS),)
        assert found.net.causal == (config["model_type"] in ("gpt2", "llama"))
    variables = {
        k: nested(found.variables, f"{k}/")
        for k in ("params", "batch_stats")
        if any(name.startswith(k) for name in found.variables)
    }
    y = jax.jit(found.net.apply)(variables, *x)
    expected = np.array(told["outputs"])
    assert y.shape == expected.shape and np.abs(expected).max() > 0.1
    np.testing.assert_allclose(y, expected, atol=1e-4 * np.abs(expected).max())
    heads = ("fc.", "head.", "heads.", "pooler.")
    assert all(k.startswith(heads) for k in found.left_out)
    assert len(found.left_out) == sum(k.startswith(heads) for k in arrays)


def test_more_rows_than_tokens_and_other_forms_of_t5():
    told = FOREIGN["transformers T5"]
    arrays, config = values(told["shapes"]), told["config"]
    found = read_encoder_decoder(arrays, config, "file", 29)
    variables = {"params": nested(found.variables, "params/")}
    y = found.net.apply(variables, np.array(TOKENS), np.array(TARGETS) % 29)
    assert found.net.vocabulary == y.shape[-1] == 29
    for changes, message in (
        ({"feed_forward_proj": "relu"}, "units are relu"),
        ({"relative_attention_max_distance": 64}, "up to 64, and ours 32 up to 128"),
        ({"num_decoder_layers": 3}, "encoder has 2 layers and its decoder 3"),
        ({"d_ff": "many"}, "can't be used"),
        ({"model_type": "bart"}, "model_type is t5, not bart"),
    ):
        with pytest.raises(InputError, match=message):
            read_encoder_decoder(arrays, {**config, **changes}, "file", 32)
    # A head that is scaled, and one that is the table, as transformers says it today and before.
    tied = {k: x for k, x in arrays.items() if k != "lm_head.weight"}
    plain = {k: x for k, x in config.items() if k != "scale_decoder_outputs"}
    for said, factor in (
        ({**plain, "scale_decoder_outputs": False, "tie_word_embeddings": True}, 1),
        ({**plain, "tie_word_embeddings": False}, 1),
        ({**plain, "scale_decoder_outputs": True}, 4),
        ({**plain, "tie_word_embeddings": True}, 4),
    ):
        head = read_encoder_decoder(tied, said, "file", 32).variables["params/head/kernel"]
        np.testing.assert_allclose(factor * head, arrays["shared.weight"].T, rtol=1e-6)
    with pytest.raises(InputError, match="33 tokens"):
        read_encoder_decoder(arrays, config, "file", 33)


@pytest.mark.parametrize("part", [1.0, MIDDLE])
def test_timm_cuts_the_middle_of_photographs_as_we_do(part):
    for side in range(8, 513):
        (_, short), _ = _middle(900, 700, side, part)
        assert math.floor(side / _crop_pct(side, part)) == short
    assert _crop_pct(224, part) == part


def arrays_in(folder):
    return read_weights(str(folder)).arrays


EXPORTED = {
    ("timm", "ResNet"): (ResNet(18, "imagenet"), PHOTOS),
    ("timm", "ResNet, small stem"): (ResNet(18), DIGITS),
    ("timm", "ViT"): (ViT(4, 8, 1, 2, "token", "learned"), DIGITS),
    ("timm", "ViT, mean, sincos"): (ViT(4, 8, 1, 2), DIGITS),
    ("torchvision", "ResNet"): (ResNet(18, "imagenet"), PHOTOS),
    ("torchvision", "ViT"): (ViT(8, 8, 1, 2, "token"), PHOTOS),
    ("hf", "ResNet"): (ResNet(18, "imagenet", 2), DIGITS),
    ("hf", "ViT"): (ViT(4, 8, 1, 2, "token", "learned"), DIGITS),
    ("safetensors", "ConvNet"): (ConvNet((4, 6)), DIGITS),
}


@pytest.mark.parametrize("to, kind", EXPORTED, ids=lambda x: x)
def test_exported_encoders_are_read_back(to, kind, tmp_path, capsys):
    net, data = EXPORTED[to, kind]
    state = save_run(finetune, tmp_path / "run", data=data, encoder=net)
    export(tmp_path / "run", to, tmp_path / "out")
    capsys.readouterr()
    back = encoder_of(str(tmp_path / "out"))
    assert re.search(r"\d+ of \d+ arrays loaded from", capsys.readouterr().out)
    arrays = flatten({"params": back.params, "batch_stats": back.stats})
    given = {"params": state.params["encoder"], "batch_stats": state.extra["encoder"]}
    table = arrays.pop("params/places/table", None)
    ours = flatten(given)
    learned = ours.pop("params/places/table", None)
    if learned is not None:
        np.testing.assert_array_equal(table, learned)
    assert arrays.keys() == ours.keys()
    for name, x in ours.items():
        np.testing.assert_array_equal(arrays[name], x, err_msg=name)
    positions = "learned" if isinstance(net, ViT) and to != "safetensors" else None
    assert back.net == (net.clone(positions=positions) if positions else net)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    shape = list(images(data.data, "test").shape)
    seen = card["preprocessing"]
    assert seen["image"] == seen["net_input"] == shape and seen["features_are_outputs"]
    assert seen["mean"] == [0.0] * shape[2] and seen["std"] == [1.0] * shape[2]
    assert card["architecture"]["class"] == type(net).__name__
    if to == "hf":  # As transformers' BitImageProcessor reads it: resized, and the middle cut out.
        said = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
        assert said["size"] == {"shortest_edge": round(shape[0] / seen["part_of_shorter_side"])}
        assert said["crop_size"] == {"height": shape[0], "width": shape[1]}
    if table is not None and learned is None:  # The file has sincos' values as its table.
        x = images(data.data, "test").image[:3] / np.float32(255)
        variables = {"params": back.params, "batch_stats": back.stats}
        np.testing.assert_allclose(back.net.apply(variables, x), net.apply(given, x), atol=1e-5)


MODELS = {
    "gpt2": (gpt, GPT2, dict(tokens="bpe", vocabulary=300)),
    "bert": (bert, BERT, dict(vocabulary=400)),
    "bert without segments": (bert, BERT.clone(segments=0), dict(vocabulary=400)),
    "llama": (gpt, SMALL, {}),
    "eurobert": (bert, SMALL, dict(vocabulary=400)),
}


@pytest.mark.parametrize("to", ["hf", "safetensors"])
@pytest.mark.parametrize("kind", MODELS)
def test_exported_language_models_are_read_back(kind, to, tmp_path, capsys):
    make, net, arguments = MODELS[kind]
    state = save_run(make, tmp_path / "run", net=net, length=12, batch_size=4, **arguments)
    export(tmp_path / "run", to, tmp_path / "out")
    found = pretrained(str(tmp_path / "out"))
    assert re.search(r"arrays loaded from .*out", capsys.readouterr().out)
    assert found.tokenizer.to_str() == pretrained(tmp_path / "run").tokenizer.to_str()
    params = flatten(found.params)
    ours = {k: np.asarray(x) for k, x in flatten(state.params["model"]).items()}
    if kind == "bert without segments" and to == "hf":
        assert not params.pop("params/net/segments").any()
    assert params.keys() == ours.keys()
    for name, x in ours.items():
        np.testing.assert_array_equal(params[name], x, err_msg=name)
    expected = pretrained(tmp_path / "run").model
    rest = {"reach": 512} if net.positions == "rotary" else {}
    if kind == "bert without segments" and to == "hf":
        rest = {"segments": 1}
    assert found.model == expected.clone(net=expected.net.clone(**rest))
    if to == "safetensors" and kind == "gpt2":
        with pytest.raises(InputError, match="has learned the positions of 12 tokens"):
            finetune_text(pretrained=str(tmp_path / "out"), length=13)
    if to == "hf" and kind == "eurobert":
        tuned = finetune_text(pretrained=str(tmp_path / "out"), length=16, batch_size=4)
        start = tuned.warm_start(random_state(tuned)).params["model"]
        jax.tree.map(np.testing.assert_array_equal, start, state.params["model"])
        assert (
            simcse(pretrained=str(tmp_path / "out"), length=16, batch_size=4).files == tuned.files
        )


@pytest.mark.parametrize("to", ["hf", "safetensors"])
@pytest.mark.parametrize("sizes", [{}, {"head_width": 3, "hidden": 10}], ids=["usual", "others"])
def test_exported_encoders_and_decoders_are_read_back(sizes, to, tmp_path, capsys):
    net = SMALL.clone(positions="relative", unit="geglu", **sizes)
    state = save_run(t5, tmp_path / "run", net=net, length=12, batch_size=4, vocabulary=300)
    export(tmp_path / "run", to, tmp_path / "out")
    capsys.readouterr()
    found = pretrained(str(tmp_path / "out"), "EncoderDecoder")
    assert re.search(r"arrays loaded from .*out", capsys.readouterr().out)
    assert found.model == pretrained(tmp_path / "run", "EncoderDecoder").model
    params, ours = flatten(found.params), flatten(state.params["model"])
    assert params.keys() == ours.keys()
    for name, x in ours.items():  # √3 is rounded.
        np.testing.assert_allclose(params[name], x, rtol=3e-7, err_msg=name)
    tuned = text_to_text(pretrained=str(tmp_path / "out"), batch_size=4)
    start = tuned.warm_start(random_state(tuned)).params["model"]
    jax.tree.map(np.testing.assert_array_equal, start, found.params)
    assert tuned.files == found._replace(model=found.model.clone(net=net.clone(dropout=0.1))).files
    with pytest.raises(InputError, match="t5" if to == "hf" else "no run of a language model"):
        pretrained(str(tmp_path / "out"))
    mixed = net.clone(unit="swiglu")
    save_run(t5, tmp_path / "mixed", net=mixed, length=12, batch_size=4, vocabulary=300)
    with pytest.raises(InputError, match="--unit swiglu.*T5 is expressible"):
        export(tmp_path / "mixed", "hf", tmp_path / "none")


def test_what_no_other_library_can_express_is_refused_by_name(tmp_path):
    for i, (make, arguments, to, says) in enumerate(
        (
            (finetune, dict(encoder=ResNet(width=8)), "timm", "64 channels .* this one has 8"),
            (finetune, dict(encoder=ResNet()), "hf", "this one that for small images"),
            (finetune, dict(encoder=ViT(4, 8, 1, 2)), "hf", "mean of its patches"),
            (finetune, dict(encoder=ViT(4, 8, 1, 2, "token")), "torchvision", "8x8 with 1 chan"),
            (finetune, dict(encoder=ConvNet((4,))), "timm", "is that of ConvNet, which timm has"),
            (vae, dict(coder=Dense((8,))), "timm", "is that of vae.py, which timm has no net for"),
            (
                bert,
                dict(net=SMALL.clone(norm="layer"), length=8, vocabulary=400),
                "hf",
                "no masked mo",
            ),
            (
                gpt,
                dict(net=BERT.clone(segments=0), length=8),
                "hf",
                "no causal model with --norm l",
            ),
        )
    ):
        data = {vae: {"data": Images("digits")}, finetune: {"data": DIGITS}}.get(make, {})
        save_run(make, tmp_path / f"{i}", **arguments, **data)
        with pytest.raises(InputError, match=says) as e:
            export(tmp_path / f"{i}", to, tmp_path / "out")
        assert "\n" not in str(e.value) and not (tmp_path / "out").exists()


def test_a_card_has_the_numbers_of_the_run_and_how_images_are_prepared(tmp_path, capsys):
    view = Views(view_size=12, interpolation="bicubic", jitter=0.0, gray=0.0)
    save_run(simclr, tmp_path / "run", data=PHOTOS, encoder=ConvNet((4, 6)), view=view)
    results = {
        "step": 1,
        "seeds": [0],
        "seconds": 1.0,
        "results": {"knn/accuracy": [61.0]},
        "untrained": {"knn/accuracy": [40.5]},
    }
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    main([str(tmp_path / "run"), "--to", "safetensors", "-o", str(tmp_path / "out")])
    assert "arrays of" in capsys.readouterr().out
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    found = [x for x in card["metrics"] if x["name"] == "knn/accuracy"]
    assert found[0]["trained"] == [61.0] and found[0]["untrained"] == [40.5]
    assert card["data"] == "photos" and card["step"] == 1 and card["licence_of_data"] is None
    made = json.loads((tmp_path / "run" / "record.json").read_text())["launches"][0]
    assert (card["commit"], card["command"]) == (made["commit"], made["command"])
    seen = card["preprocessing"]
    assert seen["net_input"] == [12, 12, 3] and seen["interpolation"] == "bicubic"
    assert seen["scale"] == 1 / 255 and seen["features_are_outputs"]
    assert read_weights(str(tmp_path / "out")).card == card  # In the file itself too.
    with pytest.raises(InputError, match="is there already: give a new or an empty folder"):
        export(tmp_path / "run", "safetensors", tmp_path / "out")
    assert {f.name for f in tmp_path.iterdir()} == {"run", "out"}


@pytest.mark.parametrize("make", [vae, simclr, mae], ids=lambda make: make.__name__)
def test_fine_tuning_starts_from_a_file_as_from_its_run(make, tmp_path, capsys):
    """A VAE keeps no encoder: what it encodes with is tuned."""
    arguments = {
        vae: dict(coder=Dense((16,)), latents=5),
        simclr: dict(encoder=ConvNet((4, 6)), head=MLP((8, 4))),
        mae: dict(vit=ViT(4, 8, 1, 2)),
    }[make]
    save_run(make, tmp_path / "run", data=DIGITS, **arguments)
    export(tmp_path / "run", "safetensors", tmp_path / "out")
    x = images("digits", "test").image[:12]
    expected = load(tmp_path / "run").encode(x)
    for source in ("run", "out", "out/model.safetensors"):
        capsys.readouterr()
        tuned = finetune(PlainImages("digits"), pretrained=str(tmp_path / source), batch_size=8)
        said = capsys.readouterr().out
        warm = tuned.warm_start(random_state(tuned))
        found = jax.jit(tuned.encode)(warm, x)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        count, total = map(int, re.search(r"(\d+) of (\d+) arrays loaded from", said).groups())
        assert (
            count < total
            and {vae: "not params/decoder", simclr: "params/head/"}.get(make, "") in said
        )
    if make is vae:
        grads = jax.grad(lambda p: jnp.sum(tuned.encode(warm.replace(params=p), x) ** 2))
        sizes = jax.tree.map(lambda g: float(jnp.abs(g).max()), grads(warm.params)["encoder"])
        # Of the code's means, not of their variances, which features don't depend on.
        assert min(jax.tree.leaves(sizes)) > 0
        batch = {"image": jnp.asarray(x[:8]), "label": jnp.arange(8) % 10}
        fresh = jax.jit(tuned.init)(jax.random.key(0), batch)
        assert jax.tree.map(jnp.shape, fresh.params) == jax.tree.map(jnp.shape, warm.params)
        assert np.std(tuned.encode(fresh, x), axis=0).min() > 0


def test_a_run_tuned_from_a_run_without_an_encoder_is_loaded_without_it(tmp_path):
    save_run(vae, tmp_path / "vae", data=DIGITS, coder=Dense((16,)), latents=5)
    arguments = dict(data=PlainImages("digits"), pretrained=str(tmp_path / "vae"), batch_size=8)
    state = save_run(finetune, tmp_path / "tuned", **arguments)
    shutil.rmtree(tmp_path / "vae")
    again = encoder_of(tmp_path / "tuned")
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params["encoder"])
    tuned = finetune(PlainImages("digits"), pretrained=str(tmp_path / "tuned"), batch_size=8)
    x = images("digits", "test").image[:4]
    warm = tuned.warm_start(random_state(tuned))
    assert np.std(tuned.encode(warm, x), axis=0).min() > 0


def test_published_nets_are_fine_tuned_with_their_normalisation(tmp_path, capsys):
    told = FOREIGN["timm ViT"]
    write_weights(tmp_path / "model.safetensors", values(told["shapes"]), {})
    (tmp_path / "config.json").write_text(json.dumps(told["config"]))
    tuned = finetune(PlainImages("photos", image_size=16), pretrained=str(tmp_path), batch_size=8)
    assert "ViT of 3 heads as in timm" in (said := capsys.readouterr().out)
    assert re.search(r"30 of 32 arrays loaded from .*; not head", said), said
    warm = tuned.warm_start(random_state(tuned))
    x = np.round(255 * pictures(16, 3)).astype(np.uint8)
    found = jax.jit(tuned.encode)(warm, x)
    np.testing.assert_allclose(found, told["outputs"], atol=0.05)
    net = tuned.kept(warm).net
    assert isinstance(net, Normalised) and net.mean == (0.5, 0.4, 0.3)
    other = finetune(PlainImages("photos", image_size=16), batch_size=8, encoder=net.net)
    assert not np.allclose(
        jax.jit(other.encode)(
            random_state(other).replace(
                params={**warm.params, "encoder": warm.params["encoder"]["net"]}
            ),
            x,
        ),
        told["outputs"],
        atol=0.1,
    )  # Without the normalisation.
    state = save_run(
        finetune,
        tmp_path / "tuned",
        data=PlainImages("photos", image_size=16),
        pretrained=str(tmp_path),
        batch_size=8,
    )
    again = encoder_of(tmp_path / "tuned")
    assert again.net == net
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params["encoder"])
    export(tmp_path / "tuned", "timm", tmp_path / "back")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["pretrained_cfg"]["mean"] == [0.5, 0.4, 0.3]
    assert encoder_of(str(tmp_path / "back")).net == net


def test_arrays_that_do_not_fit_are_named_with_both_shapes(tmp_path):
    told = FOREIGN["timm ViT"]
    arrays, config = values(told["shapes"]), told["config"]
    shapes = r"qkv.weight in file is of shape \(70, 24\), and our .*qkv1/kernel needs \(72, 24\)"
    for change, says in (
        ({"blocks.0.attn.qkv.weight": np.zeros((70, 24))}, shapes),
        ({"blocks.1.mlp.fc1.weight": None}, "file has no array blocks.1.mlp.fc1.weight, which our"),
        ({"blocks.0.ls1.gamma": np.zeros(24)}, "our net has no place for, blocks.0.ls1"),
        ({"pos_embed": np.zeros((1, 13, 24))}, r"positions of \(1, 13, 24\) and patches of"),
        ({"pos_embed": None}, "file has no array pos_embed"),
    ):  # fmt: skip
        given = {k: x for k, x in (arrays | change).items() if x is not None}
        with pytest.raises(InputError, match=says):
            read_encoder(given, config, "file")
    with pytest.raises(InputError, match="doesn't say how many heads it has: put its config.json"):
        read_encoder(arrays, {}, "file")
    with pytest.raises(InputError, match="holds neither a ResNet nor a ViT .*a, b"):
        read_encoder({"a": np.zeros(2), "b": np.zeros(2)}, {}, "file")
    resnet = values(FOREIGN["transformers ResNet-50"]["shapes"])
    few = {k: x for k, x in resnet.items() if "stages.3.layers.2" not in k}
    with pytest.raises(
        InputError, match="a ResNet of 3, 4, 6, 2 blocks, which is none of ResNet-18"
    ):
        read_encoder(few, {}, "file")
    told = FOREIGN["transformers Llama"]
    arrays, config = values(told["shapes"]), told["config"]
    for change, says in (
        ({"model_type": "t5"}, "whose model_type is gpt2, bert, llama, eurobert, not t5"),
        ({"num_key_value_heads": 1}, "1 heads of keys for 2 of queries"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "rotations of base 500000"),
        ({"hidden_size": None}, "config.json of file can't be used"),
        ({"hidden_size": 32}, r"is of shape \(30, 16\), and our .* needs \(30, 32\)"),
    ):
        with pytest.raises(InputError, match=says):
            read_language_model(arrays, config | change, "file", 30)
    with pytest.raises(InputError, match="has 30 tokens in model.embed_tokens.weight and 31 in"):
        read_language_model(arrays, config, "file", 31)
    save_run(finetune, tmp_path / "run", data=DIGITS, encoder=ConvNet((4, 6)))
    tuned = finetune(PlainImages("photos"), pretrained=str(tmp_path / "run"), batch_size=8)
    with pytest.raises(
        InputError,
        match=r"conv1/kernel is of shape \(4, 4, 1, 4\) there, .* of \(4, 4, 3, 4\) here",
    ):
        tuned.warm_start(random_state(tuned))


def test_files_that_are_no_weights_are_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(b"\x80" * 90)
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(b"\x80")
    (tmp_path / "two").mkdir()
    for name in "ab":
        write_weights(tmp_path / "two" / f"{name}.safetensors", {"x": np.zeros(2)}, {})
    for name, says in (
        (tmp_path / "a.safetensors", "can't be read as a safetensors file"),
        (tmp_path / "none.safetensors", "There is no file"),
        (tmp_path / "pickle", "holds no .safetensors file: weights in other formats"),
        (tmp_path / "two", "holds 2 .safetensors files: name one of them"),
    ):
        for read in (encoder_of, pretrained):
            with pytest.raises(InputError, match=says) as e:
                read(str(name))
            assert "\n" not in str(e.value)
    import huggingface_hub

    def no_network(name, **_):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    with pytest.raises(InputError, match=r"hf-hub:timm/x can't be had from the hub \(no route\)"):
        finetune(PlainImages("digits"), pretrained="hf-hub:timm/x")
    told = FOREIGN["transformers ResNet-50"]
    (tmp_path / "hub").mkdir()
    write_weights(tmp_path / "hub" / "model.safetensors", values(told["shapes"]), {})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: tmp_path / "hub")
    assert encoder_of("hf-hub:microsoft/resnet").net == ResNet(50, "imagenet", 8)


def test_what_the_file_system_refuses_is_an_error_of_its_own(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large: .*x.safetensors") as e:
            write_weights(tmp_path / "x.safetensors", {"x": np.zeros(4000, np.float32)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert e.value.errno == errno.EFBIG


def test_weights_split_over_files_and_of_half_precision_are_read(tmp_path):
    import ml_dtypes

    told = FOREIGN["transformers ViT"]
    arrays = {k: x.astype(ml_dtypes.bfloat16) for k, x in values(told["shapes"]).items()}
    names = list(arrays)
    parts = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for file, part in parts.items():
        write_weights(tmp_path / file, {k: arrays[k] for k in part}, {})
    index = {"weight_map": {k: file for file, part in parts.items() for k in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps(told["config"]))
    found = read_weights(str(tmp_path))
    assert found.arrays.keys() == arrays.keys()
    for name, x in arrays.items():
        assert found.arrays[name].dtype == np.float32
        np.testing.assert_array_equal(found.arrays[name], x.astype(np.float32))
    assert encoder_of(str(tmp_path)).net.width == 16
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"model-2.safetensors is missing, which .*index.json names"
    ):
        encoder_of(str(tmp_path))
