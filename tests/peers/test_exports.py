"""Exported weights, loaded by the libraries that they were exported for, against our outputs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bert import bert
from experiments.finetune import finetune
from experiments.gpt import gpt
from experiments.t5 import t5
from ssljax import load
from ssljax.data import PlainImages
from ssljax.export import export
from ssljax.models.encoder_decoder import beam_search, decode
from ssljax.models.resnet import ResNet
from ssljax.models.transformer import Transformer
from ssljax.models.vit import ViT
from ssljax.pretrained import pretrained
from tests.peers import foreign
from tests.saved_runs import save_run

PHOTOS, DIGITS = PlainImages("photos"), PlainImages("digits")
TRANSFORMER = Transformer(layers=2, heads=4, width=32)
GPT2 = TRANSFORMER.clone(norm="layer", positions="learned", unit="gelu-tanh", reach=16)
BERT = GPT2.clone(unit="gelu", blocks="post-norm", segments=2)
T5 = TRANSFORMER.clone(positions="relative", unit="geglu")


def loaded_by(folder, name: str):
    """What the lines in an exported card make."""
    card = json.loads((folder / "card.json").read_text())
    names: dict = {}
    exec("import torch", names)
    exec("\n".join(card["load"]), names)
    return names[name].double().eval() if name == "net" else names[name]


def compare_features(row, net, data, to: str, tmp_path, features=lambda y: y) -> None:
    torch = row.peer("torch")
    save_run(finetune, tmp_path / "run", data=data, encoder=net)
    export(tmp_path / "run", to, tmp_path / "out")
    run = load(tmp_path / "run")
    x = np.random.default_rng(0).integers(0, 256, (3, *run.batch["image"].shape[1:]))
    ours = run.encode(x.astype(np.uint8))
    theirs = loaded_by(tmp_path / "out", "net")
    with torch.no_grad():
        y = features(theirs(torch.tensor(x).permute(0, 3, 1, 2).double() / 255))
    row.agree(ours, y, 1e-4)
    del row.peers["torch"]


@pytest.mark.parametrize(
    "net, data",
    [
        (ResNet(18, "imagenet"), DIGITS),
        (ResNet(50, "imagenet"), PHOTOS),
        (ResNet(34, "cifar"), PHOTOS),
        (ViT(8, 48, 2, 4, "token", "learned"), PHOTOS),
        (ViT(8, 48, 2, 4, "mean", "sincos"), PHOTOS),
        (ViT(4, 48, 2, 4, "token", "sincos"), DIGITS),
    ],
    ids=["resnet18", "resnet50", "resnet34-small", "vit", "vit-mean", "vit-grey"],
)
def test_timm(row, net, data, tmp_path):
    """`--to timm`: features of ResNet-18, -34 and -50 and of ViTs

    By the lines of the card, `timm.create_model("local-dir:...")` but for the stem for small
    images; in float64.
    """
    row.peer("timm")
    compare_features(row, net, data, "timm", tmp_path)


@pytest.mark.parametrize(
    "net, data",
    [
        (ResNet(18, "imagenet"), DIGITS),
        (ResNet(18, "cifar"), PHOTOS),
        (ViT(8, 48, 2, 4, "token"), PHOTOS),
    ],
    ids=["resnet18", "resnet18-small", "vit"],
)
def test_torchvision(row, net, data, tmp_path):
    """`--to torchvision`: features of ResNet-18 and of a ViT

    By the lines of the card, in float64.
    """
    row.peer("torchvision")
    compare_features(row, net, data, "torchvision", tmp_path)


@pytest.mark.parametrize(
    "net",
    [ResNet(34, "imagenet", 8), ResNet(50, "imagenet", 8), ViT(4, 48, 2, 4, "token", "learned")],
    ids=["resnet34", "resnet50", "vit"],
)
def test_transformers_of_images(row, net, tmp_path):
    """`--to hf`: features of ResNet-34 and -50 and of a ViT

    `AutoModel.from_pretrained` of the folder, in float64.
    """
    row.peer("transformers")

    def features(y):
        is_vit = isinstance(net, ViT)
        return y.last_hidden_state[:, 0] if is_vit else y.pooler_output[:, :, 0, 0]

    compare_features(row, net, DIGITS, "hf", tmp_path, features)


@pytest.mark.parametrize(
    "make, net, arguments",
    [
        (gpt, GPT2, {}),
        (gpt, GPT2.clone(unit="gelu"), dict(tokens="bpe", vocabulary=400)),
        (gpt, TRANSFORMER, dict(tokens="bpe", vocabulary=400)),
        (bert, BERT, dict(vocabulary=400)),
        (bert, BERT.clone(segments=0), dict(tokens="bpe", vocabulary=600)),
        (bert, TRANSFORMER, dict(vocabulary=400)),
    ],
    ids=["gpt2", "gpt2-gelu", "llama", "bert", "bert-one-segment", "eurobert"],
)
def test_transformers_of_text(row, make, net, arguments, tmp_path):
    """`--to hf`: hidden states and logits of GPT-2, BERT, Llama and EuroBERT

    `AutoModel` and the model with its head, in float64; tokens of a text by `AutoTokenizer` are the
    same.
    """
    torch, transformers = row.peer("torch"), row.peer("transformers")
    save_run(make, tmp_path / "run", net=net, length=16, batch_size=4, **arguments)
    export(tmp_path / "run", "hf", tmp_path / "out")
    old = pretrained(tmp_path / "run")
    model = old.model
    tokens = np.random.default_rng(0).integers(5, model.vocabulary, (3, 12))
    mask = np.arange(12) < np.array([[12], [7], [12]])
    given = {
        "input_ids": torch.tensor(tokens),
        "attention_mask": torch.tensor(mask.astype(int)),
    }
    head = "AutoModelForCausalLM" if model.causal else "AutoModelForMaskedLM"
    head = getattr(transformers, head).from_pretrained(tmp_path / "out").double().eval()
    plain = loaded_by(tmp_path / "out", "net")
    with torch.no_grad():
        theirs = plain(**given).last_hidden_state, head(**given).logits
    arrays = (jnp.asarray(x) for x in (tokens, mask))
    arrays = list(arrays)
    ours = (
        model.apply(old.params, *arrays, method="hidden"),
        jax.jit(model.apply)(old.params, *arrays),
    )
    for mine, other in zip(ours, theirs):
        row.agree(np.asarray(mine)[mask], other.numpy()[mask], 1e-4)
    tokenizer = loaded_by(tmp_path / "out", "tokenizer")
    text = "The value of x; Überraschung 12\n"
    assert tokenizer(text)["input_ids"] == old.tokenizer.encode(text).ids
    del row.peers["torch"]


def exported_t5(row, net, tmp_path):
    """A run of t5, transformers' net of its export, padded inputs, and these as it takes them."""
    torch = row.peer("torch")
    row.peer("transformers")
    save_run(t5, tmp_path / "run", net=net, length=16, batch_size=4, vocabulary=300)
    export(tmp_path / "run", "hf", tmp_path / "out")
    old = pretrained(tmp_path / "run", "EncoderDecoder")
    inputs = np.random.default_rng(0).integers(2, 400, (6, 12))
    inputs = np.where(np.arange(12) < np.array([[12], [7], [12], [1], [5], [9]]), inputs, -1)
    given = {
        "input_ids": torch.tensor(np.maximum(inputs, 0)),
        "attention_mask": torch.tensor((inputs >= 0).astype(int)),
    }
    del row.peers["torch"]
    return old, loaded_by(tmp_path / "out", "net"), inputs, given


@pytest.mark.parametrize("net", [T5, T5.clone(head_width=5, hidden=24)], ids=["t5", "head-width"])
def test_transformers_of_text_to_text(row, net, tmp_path):
    """`--to hf`: logits of T5

    `T5ForConditionalGeneration` in float64, with padded inputs.
    """
    old, theirs, inputs, given = exported_t5(row, net, tmp_path)
    import torch

    targets = np.random.default_rng(1).integers(2, 400, (6, 7))
    before = torch.tensor(np.pad(targets[:, :-1], ((0, 0), (1, 0))))
    with torch.no_grad():
        logits = theirs(**given, decoder_input_ids=before).logits
    row.agree(old.model.apply(old.params, inputs, targets), logits, 1e-4)


@pytest.mark.parametrize("beams", [1, 4])
def test_answers_of_text_to_text(row, beams, tmp_path):
    """T5's greedy answers and those of 4 beams, the tokens themselves

    `generate` of the exported net, without a penalty of the length.
    """
    old, theirs, inputs, given = exported_t5(row, T5, tmp_path)
    import torch

    # Logits that differ enough that rounding doesn't choose.
    params = jax.tree.map(np.copy, old.params)
    params["params"]["head"]["kernel"] *= 3
    theirs.lm_head.weight.data *= 3
    how = dict(num_beams=beams, do_sample=False, max_new_tokens=8, length_penalty=0.0)
    how |= {"early_stopping": "never"} if beams > 1 else {}
    with torch.no_grad():
        answers = theirs.generate(**given, **how).numpy()[:, 1:]
    answers = np.pad(answers, ((0, 0), (0, 8 - answers.shape[1])))
    ended = np.cumsum(answers == 1, axis=1) > 0

    def answer(params, x):
        if beams > 1:
            return beam_search(old.model, params, x, 8, beams)[0]
        return decode(old.model, params, jax.random.key(0), x, 8)

    row.agree(jax.jit(answer)(params, inputs), np.where(ended, -1, answers), 0)


def test_stored_outputs(row):
    """Outputs of nets of torchvision, timm and transformers, which CI compares ours with

    `tests/foreign.json` against what the libraries compute now.
    """
    for package in ("torchvision", "timm", "transformers"):
        row.peer(package)
    stored = json.loads(foreign.FILE.read_text())
    names = []
    for name, net, _, side in foreign.nets():
        shapes, y = foreign.outputs(name, net, side)
        assert shapes == stored[name]["shapes"], name
        row.agree(stored[name]["outputs"], y, 1e-5)
        names.append(name)
    assert names == list(stored)
