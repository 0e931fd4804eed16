"""Labelled texts, and models that begin with the weights of another run."""

from dataclasses import replace
import functools
import json
import shutil
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bert import bert
from experiments.byol import byol
from experiments.dino import dino
from experiments.finetune import finetune
from experiments.finetune_text import finetune_text
from experiments.inpainting import inpainting
from experiments.lstm import lstm
from experiments.mae import mae
from experiments.rotation import rotation
from experiments.simclr import simclr
from experiments.simcse import simcse
from ssljax import fingerprint, load, methods, record, Run, train
from ssljax.data import Images, images
from ssljax.data.documents import Documents, half_pages, labelled_documents, long_paragraphs
from ssljax.data.token_rows import labelled_rows, SPECIAL, token_rows
from ssljax.data.tokenizers import characters, wordpiece
from ssljax.data.views import MultiCrop, Views
from ssljax.errors import InputError
from ssljax.models.convnet import ConvNet
from ssljax.models.mlp import MLP
from ssljax.models.rnn import RNN
from ssljax.models.transformer import LanguageModel, Transformer
from ssljax.models.vit import ViT
from ssljax.pretrained import encoder_of, pretrained, pretrained_or_new, RunEncoder
from ssljax.ranges import checked

NET = Transformer(1, 2, 8, dropout=0.1)
DIGITS = Images("digits")


def test_positions_that_were_not_learned_are_not_read(tmp_path, one_device):
    net = NET.clone(positions="learned")
    train(
        replace(bert(net=net, vocabulary=400, length=16, batch_size=8), num_steps=1, evals={}),
        Run(workdir=str(tmp_path / "bert")),
    )
    assert finetune_text(pretrained=str(tmp_path / "bert"), length=16)
    with pytest.raises(
        InputError,
        match="has learned the positions of 16 tokens: give --length 16 or less, or pretrain",
    ):
        finetune_text(pretrained=str(tmp_path / "bert"), length=17)


def test_half_pages_of_the_manual_have_topics_as_classes():
    train_set, test_set = (
        labelled_documents("python", "train"),
        labelled_documents("python", "test"),
    )
    assert not set(train_set.text) & set(test_set.text)
    assert len(train_set.class_names) == 8 and "Special method names" in train_set.class_names
    for docs in (train_set, test_set):
        assert set(docs.labels) == set(range(8)) and min(map(len, docs.text)) >= 800
    long = lambda docs: set().union(*map(long_paragraphs, docs.text))
    assert not long(train_set) & long(test_set)
    assert abs(len(test_set) / (len(train_set) + len(test_set)) - 0.25) < 0.01
    found = labelled_documents(
        "python", "train"
    )  # The same each time, though labels are of a dictionary's topics.
    assert found.text == train_set.text and (found.labels == train_set.labels).all()
    assert half_pages("ab\n\ncd\n\nef\n\ng", 6) == ["ab\n\ncd"]


def test_sets_without_classes_are_sentences(tmp_path):
    (tmp_path / "a.txt").write_text("text " * 100)
    with pytest.raises(InputError, match="has no classes: give a TFDS set"):
        labelled_documents(str(tmp_path / "a.txt"), "train")


def test_rows_begin_and_end_as_bert_has_them():
    docs = Documents(["aa bb", "aa " * 30], np.array([1, 0], np.int32), ["x", "y"])
    tokenizer = wordpiece(docs, 20)
    a, b, (cls, sep) = (
        *map(tokenizer.token_to_id, ("aa", "bb")),
        map(tokenizer.token_to_id, ("[CLS]", "[SEP]")),
    )
    rows = labelled_rows(tokenizer, docs, 6)
    np.testing.assert_array_equal(rows.image, [[cls, a, b, sep, -1, -1], [cls, a, a, a, a, sep]])
    np.testing.assert_array_equal(rows.labels, [1, 0])
    letters = labelled_rows(characters(docs), docs, 6).image
    assert letters[0].tolist()[-1] == -1 and (letters[:, :5] > 0).all()  # No such tokens there.
    with pytest.raises(InputError, match="vocabulary"):
        token_rows("python", "wordpiece", 20, 16)


def test_pooled_is_the_mean_of_the_tokens_that_are_there():
    model = LanguageModel(NET, 9, causal=False)
    tokens = jax.random.randint(jax.random.key(0), (2, 6), 0, 9)
    params = model.init(jax.random.key(1), tokens)
    rows = jnp.where(jnp.arange(6) < jnp.array([[4], [6]]), tokens, -1)
    found = model.apply(params, rows, method="pooled")
    for i, n in ((0, 4), (1, 6)):
        alone = model.apply(params, tokens[i : i + 1, :n], method="hidden")[0].mean(0)
        np.testing.assert_allclose(found[i], alone, atol=1e-5)
    at = jnp.array([[3, 0], [5, 5]])
    asked = model.apply(params, tokens, at, method="logits_at")
    np.testing.assert_allclose(
        asked, jnp.take_along_axis(model.apply(params, tokens), at[:, :, None], 1), atol=1e-5
    )


def test_fine_tuning_begins_with_the_weights_of_the_run(tmp_path, one_device):
    """And with its net and tokens, whatever the flags say; without labels it would stay there."""
    arguments = dict(net=NET, vocabulary=400, length=16, batch_size=8)
    folder = tmp_path / "bert"
    old = train(replace(bert(**arguments), num_steps=2, evals={}), Run(workdir=str(folder)))
    exp = finetune_text(
        pretrained=str(folder),
        net=Transformer(2, 2, 16, dropout=0.0),
        batch_size=8,
        length=16,
        lr=0.0,
    )
    new = train(replace(exp, num_steps=1, evals={}))
    jax.tree.map(np.testing.assert_array_equal, new.params["model"], old.params["model"])
    fresh = train(replace(exp, num_steps=1, evals={}, warm_start=None))
    assert not np.array_equal(
        *(s.params["model"]["params"]["embed"]["embedding"] for s in (fresh, old))
    )
    assert exp.files["tokenizer.json"] == (folder / "tokenizer.json").read_text()
    found = pretrained(folder)
    assert (
        not found.model.causal
        and found.model.net == NET
        and found.tokenizer.token_to_id("[CLS]") < SPECIAL
    )
    jax.tree.map(np.testing.assert_array_equal, found.params, load(folder).state["params"]["model"])
    assert pretrained_or_new(
        str(folder), NET.clone(width=99, dropout=0.5), None, "bpe", 0, 64
    ).model.net == NET.clone(dropout=0.5)

    floor = finetune_text(pretrained=str(folder), scratch=True, batch_size=8, length=16, lr=0.0)
    state = train(
        replace(floor, num_steps=1, evals={})
    )  # Of the same net and tokens, without what was learned.
    jax.tree.map(np.testing.assert_array_equal, state.params, fresh.params)
    assert floor.files["tokenizer.json"] == exp.files["tokenizer.json"]

    child, arguments = (
        tmp_path / "child",
        dict(net=NET.clone(width=99, dropout=0.3), pretrained=str(folder)),
    )
    exp = finetune_text(**arguments, batch_size=8, length=16, lr=0.0)
    assert exp.files == simcse(**arguments, batch_size=8, length=16).files
    train(replace(exp, num_steps=1, evals={}), Run(workdir=str(child)))
    shutil.rmtree(folder)  # A run that began with this one does without it.
    found = pretrained(child)
    assert found.model.net == NET.clone(dropout=0.3) and not found.model.causal
    jax.tree.map(np.testing.assert_array_equal, found.params, old.params["model"])
    (child / "net.json").unlink()
    for bad in (tmp_path, tmp_path / "nowhere", child):
        with pytest.raises(InputError, match="holds no run of a language model"):
            pretrained(bad)
    with pytest.raises(InputError, match="above 0 and at most 1"):
        finetune_text(fraction=0.0)
    with pytest.raises(InputError, match="--fraction 1e-05 leaves none of the .* training texts"):
        finetune_text(fraction=1e-5)


def test_from_scratch_is_the_form_of_the_pretrained_encoder_with_new_weights(tmp_path, one_device):
    """Which is not that of the default encoder: a floor of another net would be none."""
    arguments = dict(data=DIGITS, encoder=ConvNet(widths=(4, 6)), batch_size=32, epochs=1)
    exp = replace(rotation(**arguments), num_steps=3, evals={})
    old = train(exp, Run(workdir=str(tmp_path)))
    start = lambda scratch: train(
        replace(
            finetune(DIGITS, pretrained=str(tmp_path), scratch=scratch, batch_size=32, lr=0.0),
            num_steps=1,
            evals={},
        )
    )  # At a rate of 0 it stays where it begins.
    warm, fresh = start(False), start(True)
    jax.tree.map(np.testing.assert_array_equal, warm.params["encoder"], old.params["encoder"])
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, warm)
    kernels = [s.params["encoder"]["conv1"]["kernel"] for s in (fresh, warm)]
    assert not np.array_equal(*kernels)
    jax.tree.map(np.testing.assert_array_equal, fresh.params["head"], warm.params["head"])


def damages(text: str):
    """Damaged contents of a file of JSON: not JSON, not UTF-8, other types, and a changed value."""
    yield from (b"", b"{", b"\xff\xfe", b"[]", b"null", b"7", b"{}", text.encode()[:-20])
    content = json.loads(text)
    for key in content:
        yield json.dumps({k: v for k, v in content.items() if k != key}).encode()
        for value in (None, [], {}, "text", -3, [1, "x"]):
            if value != content[key]:
                yield json.dumps({**content, key: value}).encode()


def test_damaged_files_of_a_language_model_are_one_sentence(tmp_path, one_device):
    folder = tmp_path / "bert"
    exp = replace(bert(net=NET, vocabulary=400, length=16, batch_size=8), num_steps=1, evals={})
    train(exp, Run(workdir=str(folder)))
    for name in ("net.json", "tokenizer.json"):
        whole = (folder / name).read_text()
        for content in damages(whole):
            (folder / name).write_bytes(content)
            with pytest.raises(InputError, match=f"{name} is damaged .*train that run again") as e:
                pretrained(folder)
            assert "\n" not in str(e.value)
        (folder / name).unlink()
        (folder / name).mkdir()
        with pytest.raises(InputError, match=f"{name} is damaged"):
            pretrained(folder)
        (folder / name).rmdir()
        (folder / name).write_text(whole)
    # A run of an older version has no digests of these files: their content must fit the weights.
    file = folder / "record.json"
    old = json.loads(file.read_text())
    del old["files"]
    file.write_text(json.dumps(old))
    form = json.loads((folder / "net.json").read_text())
    for change in ({"width": 16}, {"layers": 2}, {"heads": "2"}, {"norm": "no"}, {"dropout": 2}):
        (folder / "net.json").write_text(json.dumps({**form, **change}))
        with pytest.raises(InputError, match="net.json is damaged"):
            pretrained(folder)
    (folder / "net.json").write_text(json.dumps({**form, "class": "ViT"}))
    with pytest.raises(InputError, match="holds no run of a language model"):
        pretrained(folder)


def with_net(record, net):
    """The record with another net."""
    return {**record, "kept": {**record["kept"], "net": net}}


def with_net_before(record, net):
    """The record as versions before `Experiment.kept` wrote it, with another net."""
    old = {k: v for k, v in record.items() if k not in ("kept", "experiment")}
    return {**old, "computes": {"encoder": net}}


def test_damaged_records_of_an_encoder_are_one_sentence(tmp_path, one_device):
    arguments = dict(data=DIGITS, encoder=ConvNet(widths=(4, 6)), batch_size=32, epochs=1)
    exp = replace(rotation(**arguments), num_steps=1, evals={})
    train(exp, Run(workdir=str(tmp_path)))
    file = tmp_path / "record.json"
    whole = json.loads(file.read_text())
    for content in damages(file.read_text()):
        file.write_bytes(content)
        try:
            net = encoder_of(tmp_path).net  # Another part is damaged, or it says to keep none.
            assert net == arguments["encoder"] or isinstance(net, RunEncoder)
        except InputError as e:
            assert "\n" not in str(e)
    for change in ({"widths": "wide"}, {"widths": [4, "6"]}, {"size": 1.5}, {"more": 3}):
        encoder = {**whole["computes"]["encoder"], **change}
        for record_of in (with_net, with_net_before):
            file.write_text(json.dumps(record_of(whole, encoder)))
            with pytest.raises(InputError, match="record.json is damaged .its net can't be built"):
                encoder_of(tmp_path)
    for encoder in ("ConvNet", ["ConvNet"], {"widths": [4]}):
        file.write_text(json.dumps(with_net_before(whole, encoder)))
        with pytest.raises(InputError, match="record.json is damaged .its net has no class"):
            encoder_of(tmp_path)
        file.write_text(json.dumps(with_net(whole, encoder)))
        with pytest.raises(InputError, match="record.json is damaged .kept is not what a run"):
            encoder_of(tmp_path)
    for record_of in (with_net, with_net_before):
        file.write_text(json.dumps(record_of(whole, {"class": "MyNet", "width": 3})))
        with pytest.raises(InputError, match="is a MyNet, which ssljax.models.encoder does not"):
            encoder_of(tmp_path)
    for path in ("extra/none", "params/encoder/conv1/kernel/0", "step", "/"):
        for part in ("params", "stats"):
            file.write_text(json.dumps({**whole, "kept": {**whole["kept"], part: path}}))
            with pytest.raises(InputError, match="is damaged .kept names no arrays of the run"):
                encoder_of(tmp_path)
    file.unlink()
    with pytest.raises(InputError, match="holds no run of a file with an --encoder"):
        encoder_of(tmp_path)
    with pytest.raises(InputError, match="none does not exist, and so holds no run of a file with"):
        encoder_of(tmp_path / "none")


def test_weights_and_data_of_a_pretrained_run_are_reported(tmp_path, one_device):
    arguments = dict(data=DIGITS, encoder=ConvNet(widths=(4, 6)), batch_size=32, epochs=1)
    exp = replace(rotation(**arguments), num_steps=1, evals={})
    train(exp, Run(workdir=str(tmp_path / "a")))
    train(exp, Run(workdir=str(tmp_path / "b"), seed=1))
    found = []
    for folder in ("a", "b", "a"):
        with fingerprint.reading() as read:
            encoder_of(str(tmp_path / folder))
        found.append(read[str(tmp_path / folder)]["weights of seed 0"])
    assert found[0] == found[2] != found[1]


SMALL_VIT = ViT(patch=2, width=12, depth=1, heads=2)
PLAIN = Views(crop=0.6, jitter=0.0, gray=0.0, blur=(0.5, 0.1))
# Tiny arguments, with nested dataclasses, tuples, and both nets of a union.
LOADED = {
    simclr: dict(encoder=ConvNet(widths=(4, 6)), view=PLAIN, head=MLP((8, 4))),
    byol: dict(encoder=ConvNet(widths=(4, 6)), head=MLP((8, 4), norm=True), view=PLAIN)
    | dict(predictor=MLP((8, 4), norm=True)),
    dino: dict(encoder=SMALL_VIT, crops=MultiCrop(PLAIN, small=2, part=0.7), prototypes=8),
    mae: dict(vit=SMALL_VIT),
    inpainting: dict(),
}


def train_briefly(make, folder, seeds=1, **arguments):
    """Three steps of an experiment, as its program would: (experiment, state)."""
    arguments = dict(data=DIGITS, batch_size=32, epochs=1) | arguments
    exp = replace(make(**arguments), num_steps=3, evals={})
    return exp, train(exp, Run(workdir=str(folder), seeds=seeds))


@pytest.mark.parametrize("make", LOADED, ids=lambda make: make.__name__)
def test_loaded_run_encodes_images_as_its_experiment_does(make, tmp_path, one_device):
    exp, state = train_briefly(make, tmp_path, **LOADED[make])
    run, x = load(tmp_path), images("digits", "test").image[:12]
    found = run.encode(x)
    assert found.ndim == 2 and np.std(found, axis=0).max() > 0
    np.testing.assert_array_equal(found, jax.jit(exp.encode)(state, x))
    assert not np.array_equal(found, jax.jit(exp.encode)(jax.tree.map(jnp.zeros_like, state), x))
    assert run.record == json.loads((tmp_path / "record.json").read_text())
    with pytest.raises(InputError, match="must be uint8, as in training, not float32"):
        run.encode(x / np.float32(255))
    # Its start is what was evaluated.
    tuned = finetune(DIGITS, pretrained=str(tmp_path), batch_size=32)
    fresh = jax.jit(tuned.init)(jax.random.key(0), {"image": x, "label": np.zeros(12, np.int32)})
    warm = tuned.warm_start(fresh)
    np.testing.assert_allclose(jax.jit(tuned.encode)(warm, x), found, rtol=1e-6, atol=1e-6)
    assert not np.allclose(tuned.encode(fresh, x), found, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("make", [rotation, dino, mae], ids=lambda make: make.__name__)
def test_records_of_older_versions_keep_the_same_encoder(make, tmp_path, one_device):
    arguments = LOADED.get(make, dict(encoder=ConvNet(widths=(4, 6))))
    exp, state = train_briefly(make, tmp_path, **arguments)
    net, params, stats, _ = encoder_of(tmp_path)
    file = tmp_path / "record.json"
    content = json.loads(file.read_text())
    del content["kept"], content["experiment"]
    file.write_text(json.dumps(content))
    old = encoder_of(tmp_path)
    assert old.net == net == arguments.get("encoder", arguments.get("vit"))
    jax.tree.map(np.testing.assert_array_equal, old[1:3], (params, stats))
    x = images("digits", "test").image[:12]
    with pytest.raises(InputError, match=r"which is no file of .*or give the function .*make="):
        load(tmp_path).encode(x)  # The command of such a record is the name of this test's.
    found = load(tmp_path, make=make).encode(x)
    np.testing.assert_array_equal(found, jax.jit(exp.encode)(state, x))


def test_each_seed_is_loaded(tmp_path, one_device):
    exp, states = train_briefly(rotation, tmp_path, 2, encoder=ConvNet(widths=(4, 6)))
    x = images("digits", "test").image[:12]
    found = [load(tmp_path, seed).encode(x) for seed in range(2)]
    for lane in range(2):
        state = jax.tree.map(lambda a: a[lane], states)
        np.testing.assert_array_equal(found[lane], jax.jit(exp.encode)(state, x))
        kept = encoder_of(tmp_path, lane).params
        jax.tree.map(np.testing.assert_array_equal, kept, state.params["encoder"])
    assert not np.allclose(*found)


class MyNet(nn.Module):
    """An encoder that ssljax does not have."""

    width: int = 5

    @nn.compact
    def __call__(self, x, train=False):
        h = nn.Dense(self.width)(x.reshape(len(x), -1))
        return nn.BatchNorm(use_running_average=not train)(h)


def test_encoder_of_ones_own_is_given_as_a_module(tmp_path, one_device):
    net, folder = MyNet(6), tmp_path / "mine"
    arguments = dict(encoder=net, view=PLAIN)
    exp, state = train_briefly(simclr, folder, **arguments)
    with pytest.raises(InputError, match="is a MyNet, which ssljax.models.encoder does not have"):
        encoder_of(folder)
    with pytest.raises(InputError, match="is a MyNet, not a ConvNet"):
        encoder_of(folder, net=ConvNet())
    kept = encoder_of(folder, net=net)
    x = images("digits", "test").image[:12]
    variables = {"params": kept.params, "batch_stats": kept.stats}
    expected = jax.jit(exp.encode)(state, x)
    found = net.apply(variables, x / np.float32(255))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="is a MyNet, which"):
        finetune(DIGITS, pretrained=str(folder), batch_size=32)
    tuned = finetune(DIGITS, pretrained=str(folder), batch_size=32, encoder=net)
    state = train(replace(tuned, num_steps=1, evals={}, step=lambda s, b, k: (s, {})))
    np.testing.assert_allclose(tuned.encode(state, x), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="encoder .*can't be restored .there is no class MyNet"):
        load(folder).encode(x)

    given = functools.partial(simclr, encoder=net)
    np.testing.assert_array_equal(load(folder, make=given).encode(x), expected)

    @checked
    def mine(data: Images = Images(), encoder: MyNet = MyNet(), batch_size: int = 32):
        return simclr(data, PLAIN, encoder, batch_size=batch_size, epochs=1)

    exp = replace(mine(DIGITS, net), num_steps=1, evals={})
    state = train(exp, Run(workdir=str(tmp_path / "of_mine")))
    found = load(tmp_path / "of_mine", make=mine).encode(x)
    np.testing.assert_array_equal(found, jax.jit(exp.encode)(state, x))


def test_runs_that_cannot_encode_are_one_sentence(tmp_path, one_device):
    text = tmp_path / "lstm"
    arguments = dict(tokens="characters", rnn=RNN(layers=1, width=8), batch_size=8)
    exp = replace(lstm(**arguments), num_steps=1, evals={})
    train(exp, Run(workdir=str(text)))
    with pytest.raises(InputError, match="has no encode: compute features from the arrays"):
        load(text).encode(np.zeros((2, 16), np.int32))
    data = tmp_path / "digits.npz"
    digits = images("digits", "train")
    x, y = digits.image[:64], digits.labels[:64]
    np.savez(data, train_images=x, train_labels=y, test_images=x, test_labels=y)
    folder = tmp_path / "rotation"
    train_briefly(rotation, folder, data=Images(str(data)), encoder=ConvNet(widths=(4, 6)))
    x = digits.image[:4]
    assert load(folder).encode(x).shape == (4, 6)
    data.unlink()
    assert load(folder).encode(x).shape == (4, 6)  # Its record has the form of that data.
    with pytest.raises(InputError, match="experiment of .* can't be made again: .*digits.npz"):
        load(folder).experiment  # noqa: B018
    file = folder / "record.json"
    content = json.loads(file.read_text())
    for changed, says in (
        ({"of_old": 3}, "of_old .*can't be restored .rotation has no such argument"),
        ({"encoder": {"class": "ConvNet", "depth": 3}}, "encoder .*ConvNet has no field depth"),
        ({"encoder": {"class": "Other"}}, "encoder .*there is no class Other"),
    ):
        computes = content["computes"] | {"data": "digits"} | changed
        file.write_text(json.dumps(content | {"computes": computes}))
        with pytest.raises(InputError, match=says) as e:
            load(folder).encode(x)
        assert "\n" not in str(e.value)
    computes = content["computes"] | {"data": "digits", "encoder": record.plain(ConvNet((4, 7)))}
    file.write_text(json.dumps(content | {"computes": computes}))
    with pytest.raises(InputError, match="its experiment have another params/encoder"):
        load(folder).encode(x)
    file.unlink()
    assert int(load(folder).state["step"]) == 3
    with pytest.raises(InputError, match="holds no record.json"):
        load(folder).encode(x)


def test_code_in_a_runs_folder_is_not_run(tmp_path, one_device, capsys):
    train_briefly(rotation, tmp_path, encoder=ConvNet(widths=(4, 6)))
    (tmp_path / "source" / "rotation.py").write_text("raise SystemExit(3)")
    assert load(tmp_path).encode(images("digits", "test").image[:4]).shape == (4, 6)
    assert "rotation.py is not the rotation.py that" in capsys.readouterr().out
    file = tmp_path / "record.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"experiment": "elsewhere.py"}))
    (tmp_path / "source" / "elsewhere.py").write_text("raise SystemExit(3)")
    with pytest.raises(InputError, match="made by elsewhere.py, which is no file of"):
        load(tmp_path).encode(images("digits", "test").image[:4])


def test_own_code_is_found_in_the_current_folder(tmp_path, one_device, capsys, monkeypatch):
    workdir, project = tmp_path / "run", tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    train_briefly(rotation, workdir, encoder=ConvNet(widths=(4, 6)))
    x = images("digits", "test").image[:4]
    z = load(workdir).encode(x)
    file = workdir / "record.json"
    of = lambda name: {"experiment": f"{name}.py", "function": name}
    file.write_text(json.dumps(json.loads(file.read_text()) | of("mine")))
    methods.fork("rotation", project / "mine.py")
    shutil.copy(project / "mine.py", workdir / "source")
    np.testing.assert_array_equal(load(workdir).encode(x), z)
    # Of two files of the name, the one that the run was launched with.
    file.write_text(json.dumps(json.loads(file.read_text()) | of("rotation")))
    (project / "rotation.py").write_text("raise SystemExit(3)")
    np.testing.assert_array_equal(load(workdir).encode(x), z)
    code = (project / "mine.py").read_text().replace("mine", "rotation")
    for folder in (project, workdir / "source"):
        (folder / "rotation.py").write_text(f"print('of the current folder')\n{code}")
    capsys.readouterr()
    np.testing.assert_array_equal(load(workdir).encode(x), z)
    assert "of the current folder" in capsys.readouterr().out
    # What it imports from its folder is found from wherever Python was started.
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    (project / "rotation.py").write_text(f"import mine_too\nprint(mine_too.word)\n{code}")
    (project / "mine_too.py").write_text("word = 'from a helper'")
    np.testing.assert_array_equal(load(workdir).encode(x), z)
    assert "from a helper" in capsys.readouterr().out
    for folder in (project, workdir / "source"):
        (folder / "rotation.py").write_text(code.replace("rotation(", "turned("))
    with pytest.raises(InputError, match="rotation.py has no function rotation: name the one"):
        load(workdir).encode(x)
