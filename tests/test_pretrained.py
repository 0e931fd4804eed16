"""Labelled texts, and models that begin with the weights of another run."""

from dataclasses import replace
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bert import bert
from experiments.finetune import finetune
from experiments.finetune_text import finetune_text
from experiments.rotation import rotation
from experiments.simcse import simcse
from ssljax import fingerprint, load, record, Run, train
from ssljax.data.documents import Documents, half_pages, labelled_documents, long_paragraphs
from ssljax.data.token_rows import labelled_rows, SPECIAL, token_rows
from ssljax.data.tokenizers import characters, wordpiece
from ssljax.errors import InputError
from ssljax.models.convnet import ConvNet
from ssljax.models.transformer import LanguageModel, Transformer
from ssljax.pretrained import encoder_of, pretrained, pretrained_or_new

NET = Transformer(1, 2, 8, dropout=0.1)


def test_positions_that_were_not_learned_are_not_read(tmp_path, one_device):
    net = NET.clone(positions="learned")
    train(
        replace(bert(net=net, vocabulary=400, length=16, batch_size=8), num_steps=1, evals={}),
        Run(workdir=str(tmp_path / "bert")),
        record.plain(dict(net=net, length=16)),
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
    old = train(
        replace(bert(**arguments), num_steps=2, evals={}),
        Run(workdir=str(folder)),
        record.plain(dict(net=NET, length=16)),
    )
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
    jax.tree.map(np.testing.assert_array_equal, found.params, load(folder)["params"]["model"])
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
    train(replace(exp, num_steps=1, evals={}), Run(workdir=str(child)), record.plain(arguments))
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
    arguments = dict(encoder=ConvNet(widths=(4, 6)), batch_size=32, epochs=1)
    exp = replace(rotation(**arguments), num_steps=3, evals={})
    old = train(exp, Run(workdir=str(tmp_path)), record.plain(arguments))
    start = lambda scratch: train(
        replace(
            finetune(pretrained=str(tmp_path), scratch=scratch, batch_size=32, lr=0.0),
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
    train(exp, Run(workdir=str(folder)), record.plain(dict(net=NET, length=16)))
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


def test_damaged_records_of_an_encoder_are_one_sentence(tmp_path, one_device):
    arguments = dict(encoder=ConvNet(widths=(4, 6)), batch_size=32, epochs=1)
    exp = replace(rotation(**arguments), num_steps=1, evals={})
    train(exp, Run(workdir=str(tmp_path)), record.plain(arguments))
    file = tmp_path / "record.json"
    whole = json.loads(file.read_text())
    for content in damages(file.read_text()):
        file.write_bytes(content)
        try:
            assert encoder_of(tmp_path).net == arguments["encoder"]  # Another part is damaged.
        except InputError as e:
            assert "\n" not in str(e)
    for change in ({"widths": "wide"}, {"widths": [4, "6"]}, {"size": 1.5}, {"more": 3}):
        encoder = {**whole["computes"]["encoder"], **change}
        file.write_text(json.dumps({**whole, "computes": {"encoder": encoder}}))
        with pytest.raises(InputError, match="record.json is damaged .its net can't be built"):
            encoder_of(tmp_path)
    for encoder in ("ConvNet", ["ConvNet"], {"widths": [4]}):
        file.write_text(json.dumps({**whole, "computes": {"encoder": encoder}}))
        with pytest.raises(InputError, match="record.json is damaged .its net has no class"):
            encoder_of(tmp_path)
    encoder = {"class": "MyNet", "width": 3}
    file.write_text(json.dumps({**whole, "computes": {"encoder": encoder}}))
    with pytest.raises(InputError, match="is a MyNet, not a ConvNet, ResNet or ViT"):
        encoder_of(tmp_path)
    file.unlink()
    with pytest.raises(InputError, match="holds no run of a file with an --encoder"):
        encoder_of(tmp_path)


def test_weights_and_data_of_a_pretrained_run_are_reported(tmp_path, one_device):
    arguments = dict(encoder=ConvNet(widths=(4, 6)), batch_size=32, epochs=1)
    exp = replace(rotation(**arguments), num_steps=1, evals={})
    train(exp, Run(workdir=str(tmp_path / "a")), record.plain(arguments))
    train(exp, Run(workdir=str(tmp_path / "b"), seed=1), record.plain(arguments))
    found = []
    for folder in ("a", "b", "a"):
        with fingerprint.reading() as read:
            encoder_of(str(tmp_path / folder))
        found.append(read[str(tmp_path / folder)]["weights of seed 0"])
    assert found[0] == found[2] != found[1]
