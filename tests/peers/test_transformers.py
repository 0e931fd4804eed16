"""Attention, ViT, GPT-2, BERT, Llama and recurrent nets with the peers' weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.models.attention import attend, distance_buckets
from ssljax.models.rnn import RNN
from ssljax.models.transformer import LanguageModel, Transformer
from ssljax.models.vit import ViT
from tests.peers.torch_side import agree_with_gradients, ours_with_gradients, tensor


def array(t) -> np.ndarray:
    return t.detach().numpy()


def dense(module) -> dict:
    """A `torch.nn.Linear` as ours."""
    bias = {} if module.bias is None else {"bias": array(module.bias)}
    return {"kernel": array(module.weight).T, **bias}


def norm(module) -> dict:
    bias = getattr(module, "bias", None)
    return {"scale": array(module.weight)} | ({} if bias is None else {"bias": array(bias)})


def disturb(net, seed: int = 0) -> None:
    """Random values for all parameters, norms around 1, so that none is at its start."""
    import torch

    torch.manual_seed(seed)
    for name, p in net.named_parameters():
        scale = 0.1 if p.ndim == 1 else p.shape[-1] ** -0.5
        p.data = scale * torch.randn_like(p) + ("norm" in name or "ln_" in name) * (p.ndim == 1)
        if name.endswith("bias"):
            p.data -= p.data.mean()


@pytest.mark.parametrize("kind", ["all", "causal", "masked"])
def test_attention(row, kind):
    """Attention, value and gradients

    PyTorch's `scaled_dot_product_attention`: all tokens, causal, and with a mask.
    """
    functional = row.peer("torch.nn.functional")
    rng = np.random.default_rng(0)
    q, k, v, probe = (rng.normal(size=(3, 17, 4, 8)).astype(np.float32) for _ in range(4))
    mask = np.concatenate([np.ones((3, 1)), rng.random((3, 16)) < 0.6], 1).astype(bool)
    mask = mask[:, None, None] if kind == "masked" else None

    def theirs(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        seen = None if mask is None else tensor(mask)
        y = functional.scaled_dot_product_attention(q, k, v, seen, is_causal=kind == "causal")
        return (y.transpose(1, 2) * tensor(probe)).sum()

    ours = lambda q, k, v: jnp.sum(attend(q, k, v, kind == "causal", mask) * probe)
    agree_with_gradients(row, 1e-5, ours, theirs, q, k, v)


def vit_weights(net, pool: str) -> dict:
    """timm's ViT as ours."""
    side = net.patch_embed.grid_size[0]
    kernel = array(net.patch_embed.proj.weight).transpose(2, 3, 1, 0)
    blocks = {"norm": norm(net.norm)}
    for i, block in enumerate(net.blocks, 1):
        blocks |= {
            f"norm{i}a": norm(block.norm1),
            f"norm{i}b": norm(block.norm2),
            f"qkv{i}": dense(block.attn.qkv),
            f"out{i}": dense(block.attn.proj),
            f"up{i}": dense(block.mlp.fc1),
            f"down{i}": dense(block.mlp.fc2),
        }
    embed = kernel.reshape(-1, kernel.shape[-1])
    return {
        "embed": {"kernel": embed, "bias": array(net.patch_embed.proj.bias)},
        "places": {"table": array(net.pos_embed)[0].reshape(side, side, -1)},
        "blocks": blocks,
    } | ({"token": array(net.cls_token)[0, 0]} if pool == "token" else {})


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_vit(row, pool):
    """ViT: features of images

    timm's `VisionTransformer` with the same weights (learned positions, exact GELU, ε = 1e-6), by
    its class token and by the mean of the patches.
    """
    timm = row.peer("timm.models.vision_transformer")
    net = timm.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, num_classes=0,
        class_token=pool == "token", global_pool="token" if pool == "token" else "avg",
        no_embed_class=True, fc_norm=False,
    )  # fmt: skip
    disturb(net)
    x = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    ours = ViT(patch=8, width=48, depth=3, heads=4, pool=pool, positions="learned")
    params = vit_weights(net, pool)
    theirs = net.double().eval()(tensor(x).permute(0, 3, 1, 2)).detach()
    row.agree(ours.apply({"params": params}, jnp.asarray(x)), theirs, 1e-5)


def language_model(positions: str, unit: str, norm: str, **options) -> LanguageModel:
    net = Transformer(
        layers=3, heads=4, width=64, norm=norm, positions=positions, unit=unit, reach=32, **options
    )
    return LanguageModel(net=net, vocabulary=100)


TOKENS = np.random.default_rng(0).integers(0, 100, (3, 20))


def test_gpt2(row):
    """GPT-2: logits of tokens

    transformers' `GPT2LMHeadModel` with the same weights (tanh GELU, ε = 1e-5).
    """
    transformers = row.peer("transformers")
    config = transformers.GPT2Config(
        vocab_size=100, n_positions=32, n_embd=64, n_layer=3, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    disturb(model)
    inner = model.transformer
    conv1d = lambda m: {"kernel": array(m.weight), "bias": array(m.bias)}
    net = {"positions": array(inner.wpe.weight), "norm": norm(inner.ln_f)}
    for i, block in enumerate(inner.h, 1):
        net |= {
            f"norm{i}a": norm(block.ln_1),
            f"norm{i}b": norm(block.ln_2),
            f"qkv{i}": conv1d(block.attn.c_attn),
            f"out{i}": conv1d(block.attn.c_proj),
            f"up{i}": conv1d(block.mlp.c_fc),
            f"down{i}": conv1d(block.mlp.c_proj),
        }
    params = {"embed": {"embedding": array(inner.wte.weight)}, "net": net}
    theirs = model.double().eval()(tensor(TOKENS)).logits.detach()
    ours = language_model("learned", "gelu-tanh", "layer")
    row.agree(ours.apply({"params": params}, jnp.asarray(TOKENS)), theirs, 1e-5)


def bert(row):
    """transformers' BERT and its weights as ours."""
    transformers = row.peer("transformers")
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=256, max_position_embeddings=32, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = transformers.BertForMaskedLM(config)
    disturb(model)
    embeddings, head = model.bert.embeddings, model.cls.predictions
    net = {
        "positions": array(embeddings.position_embeddings.weight),
        "segments": array(embeddings.token_type_embeddings.weight),
        "embed_norm": norm(embeddings.LayerNorm),
    }
    for i, block in enumerate(model.bert.encoder.layer, 1):
        a = block.attention
        qkv = [dense(m) for m in (a.self.query, a.self.key, a.self.value)]
        net |= {
            f"norm{i}a": norm(a.output.LayerNorm),
            f"norm{i}b": norm(block.output.LayerNorm),
            f"qkv{i}": {
                name: np.concatenate([m[name] for m in qkv], axis=-1) for name in ("kernel", "bias")
            },
            f"out{i}": dense(a.output.dense),
            f"up{i}": dense(block.intermediate.dense),
            f"down{i}": dense(block.output.dense),
        }
    params = {
        "embed": {"embedding": array(embeddings.word_embeddings.weight)},
        "net": net,
        "transform": dense(head.transform.dense),
        "transform_norm": norm(head.transform.LayerNorm),
        "bias": array(head.bias),
    }
    return model.double().eval(), {"params": params}


def test_bert(row):
    """BERT: logits of tokens in two segments, with padding

    transformers' `BertForMaskedLM` with the same weights (post-norm, exact GELU, ε = 1e-12).
    """
    model, params = bert(row)
    ours = language_model("learned", "gelu", "layer", blocks="post-norm", segments=2)
    segment = (np.arange(20) > 7) * np.ones((3, 1), int)
    mask = np.arange(20) < np.array([[20], [15], [9]])
    theirs = model(
        tensor(TOKENS), attention_mask=tensor(mask.astype(int)), token_type_ids=tensor(segment)
    ).logits.detach()
    arrays = (jnp.asarray(x) for x in (TOKENS, mask))
    found = ours.clone(causal=False).apply(params, *arrays, segment=jnp.asarray(segment))
    row.agree(np.asarray(found)[mask], theirs.numpy()[mask], 1e-5)


def llama(row):
    """transformers' Llama and its weights as ours."""
    transformers = row.peer("transformers")
    config = transformers.LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=192, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=32,
        rms_norm_eps=1e-6, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    disturb(model)
    inner = model.model
    net = {"norm": norm(inner.norm)}
    for i, block in enumerate(inner.layers, 1):
        a = block.self_attn
        qkv = [dense(m)["kernel"] for m in (a.q_proj, a.k_proj, a.v_proj)]
        net |= {
            f"norm{i}a": norm(block.input_layernorm),
            f"norm{i}b": norm(block.post_attention_layernorm),
            f"qkv{i}": {"kernel": np.concatenate(qkv, axis=1)},
            f"out{i}": dense(a.o_proj),
            f"gate{i}": dense(block.mlp.gate_proj),
            f"up{i}": dense(block.mlp.up_proj),
            f"down{i}": dense(block.mlp.down_proj),
        }
    params = {"embed": {"embedding": array(inner.embed_tokens.weight)}, "net": net}
    return model.double().eval(), {"params": params}


def test_llama(row):
    """Llama: logits of tokens

    transformers' `LlamaForCausalLM` with the same weights (RMSNorm, rotary positions, SwiGLU).
    """
    model, params = llama(row)
    theirs = model(tensor(TOKENS)).logits.detach()
    ours = language_model("rotary", "swiglu", "rms")
    row.agree(ours.apply(params, jnp.asarray(TOKENS)), theirs, 1e-5)


def test_llama_generation(row):
    """Greedy continuation, the tokens themselves

    `LlamaForCausalLM.generate` with its cache; ours draws at temperature 0.
    """
    from ssljax.models.transformer import generate

    model, params = llama(row)
    prompt = tensor(TOKENS[:, :4])
    theirs = model.generate(
        prompt, attention_mask=prompt * 0 + 1, max_new_tokens=16, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    ours = generate(
        language_model("rotary", "swiglu", "rms"),
        params,
        jax.random.key(0),
        jnp.asarray(TOKENS[:, :4]),
        length=16,
        window=32,
        temperature=0.0,
    )
    row.agree(ours, theirs[:, 4:], 0)


def test_encoder_and_decoder(row):
    """Encoder and decoder: features of the target tokens, gradients by both inputs

    PyTorch's `nn.Transformer` with the same weights (pre-norm, exact GELU), a causal mask and
    padded memories.
    """
    torch = row.peer("torch")
    net = torch.nn.Transformer(
        24, 4, 2, 2, dim_feedforward=96, dropout=0.0, activation="gelu", batch_first=True,
        norm_first=True,
    )  # fmt: skip
    disturb(net)

    def weights(side) -> dict:
        found = {"positions": np.zeros((32, 24), np.float32), "norm": norm(side.norm)}
        for i, block in enumerate(side.layers, 1):
            attentions = {"qkv": block.self_attn}
            unit, names = block.norm2, {"out": block.self_attn.out_proj}
            if hasattr(block, "multihead_attn"):
                across = block.multihead_attn
                parts = zip(
                    np.split(array(across.in_proj_weight).T, [24], axis=1),
                    np.split(array(across.in_proj_bias), [24]),
                )
                for name, (kernel, bias) in zip(("q", "kv"), parts):
                    found[f"{name}{i}"] = {"kernel": kernel, "bias": bias}
                found[f"norm{i}c"] = norm(block.norm2)
                unit, names["cross"] = block.norm3, across.out_proj
            for name, a in attentions.items():
                w, b = array(a.in_proj_weight).T, array(a.in_proj_bias)
                found[f"{name}{i}"] = {"kernel": w, "bias": b}
            names |= {"up": block.linear1, "down": block.linear2}
            found |= {f"{name}{i}": dense(module) for name, module in names.items()}
            found |= {f"norm{i}a": norm(block.norm1), f"norm{i}b": norm(unit)}
        return {"params": jax.tree.map(jnp.asarray, found)}

    ours = Transformer(2, 4, 24, norm="layer", positions="learned", unit="gelu", reach=32)
    both = weights(net.encoder), weights(net.decoder)
    rng = np.random.default_rng(0)
    x, y, probe = (rng.normal(size=(3, n, 24)).astype(np.float32) for n in (9, 7, 7))
    mask = np.arange(9) < np.array([[9], [4], [1]])

    def features(x, y):
        memory = ours.apply(both[0], x, mask=jnp.asarray(mask))[0]
        given = dict(memory=memory, memory_mask=jnp.asarray(mask))
        return jnp.sum(ours.apply(both[1], y, causal=True, **given)[0] * probe)

    net = net.double().eval()

    def theirs(x, y):
        padded, ahead = tensor(~mask), tensor(~np.tri(7, dtype=bool))
        masks = dict(src_key_padding_mask=padded, memory_key_padding_mask=padded)
        return (net(x, y, tgt_mask=ahead, **masks) * tensor(probe)).sum()

    agree_with_gradients(row, 1e-5, features, theirs, x, y)


def test_distance_buckets(row):
    """Buckets of distances, the numbers themselves

    `T5Attention._relative_position_bucket` for all distances up to 300, of encoders and decoders.
    """
    t5 = row.peer("transformers.models.t5.modeling_t5")
    distance = np.arange(-300, 301)
    for both in (True, False):
        bucket = t5.T5Attention._relative_position_bucket
        theirs = bucket(tensor(distance), both, num_buckets=32, max_distance=128)
        row.agree(distance_buckets(jnp.asarray(distance), both), theirs, 0)


def recurrent_weights(net, cell: str, layers: int) -> dict:
    """A recurrent net of PyTorch as ours; a GRU's gates come as r, z, n there, as n, r, z here."""
    params = {}
    for i in range(layers):
        w, u, b, c = (
            array(getattr(net, f"{kind}_l{i}"))
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        if cell == "gru":
            params[f"inner_bias{i}"] = np.split(c, 3)[2]
            c = np.concatenate([*np.split(c, 3)[:2], np.zeros_like(np.split(c, 3)[2])])
            w, b = (np.concatenate([x[-len(x) // 3 :], x[: -len(x) // 3]]) for x in (w, b + c))
            params |= {f"input{i}": w.T, f"recurrent{i}": u.T, f"bias{i}": b}
        else:
            params |= {f"input{i}": w.T, f"recurrent{i}": u.T, f"bias{i}": b + c}
    return params


@pytest.mark.parametrize("cell", ["lstm", "gru", "tanh"])
def test_recurrent(row, cell):
    """LSTM, GRU and tanh layers: outputs, gradients by inputs

    PyTorch's `LSTM`, `GRU` and `RNN` of two layers with the same weights.
    """
    torch = row.peer("torch")
    torch.manual_seed(0)
    module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "tanh": torch.nn.RNN}[cell]
    net = module(7, 12, num_layers=2, batch_first=True)
    rng = np.random.default_rng(0)
    x, probe = (rng.normal(size=(4, 15, d)).astype(np.float32) for d in (7, 12))
    variables = {"params": recurrent_weights(net, cell, 2)}
    ours = RNN(cell=cell, width=12, layers=2)
    net = net.double()
    row.agree(ours.apply(variables, jnp.asarray(x))[0], net(tensor(x))[0].detach(), 1e-5)
    agree_with_gradients(
        row,
        1e-5,
        lambda x: jnp.sum(ours.apply(variables, x)[0] * probe),
        lambda x: (net(x)[0] * tensor(probe)).sum(),
        x,
    )


def test_lstm_weight_gradient(row):
    """LSTM: gradients by the weights

    PyTorch's `LSTM` of one layer; ours multiplies once for all time steps.
    """
    torch = row.peer("torch")
    torch.manual_seed(0)
    net = torch.nn.LSTM(7, 12, batch_first=True)
    x = np.random.default_rng(0).normal(size=(4, 15, 7)).astype(np.float32)
    params = recurrent_weights(net, "lstm", 1)
    ours = RNN(cell="lstm", width=12, layers=1)

    def loss(w, u, b):
        weights = {"input0": w, "recurrent0": u, "bias0": b}
        return jnp.sum(ours.apply({"params": weights}, jnp.asarray(x))[0] ** 2)

    names = "input0", "recurrent0", "bias0"
    found = ours_with_gradients(loss, *(params[name] for name in names))
    net = net.double()
    net(tensor(x))[0].square().sum().backward()
    grads = net.weight_ih_l0.grad.T, net.weight_hh_l0.grad.T, net.bias_ih_l0.grad
    for mine, other in zip(found[1:], grads):
        row.agree(mine, other, 1e-5)
