"""Nets of torchvision, timm and transformers, with their outputs, for tests without PyTorch.

    python -m tests.peers.foreign      # writes tests/foreign.json

The file has the names and shapes of each net's arrays, whose values are drawn by `drawn`, and what
the library computes with them.
"""

from collections.abc import Iterator, Mapping
import json
import pathlib
import tempfile
from typing import Any

import numpy as np

from ssljax.weights import read_weights, write_weights
from tests.saved_runs import drawn

FILE = pathlib.Path(__file__).parent.parent / "foreign.json"
HALF = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.2]}
TOKENS = [[5, 9, 17, 2, 28, 11], [3, 3, 21, 14, 7, 25]]
TARGETS = [[8, 2, 29, 1], [4, 4, 12, 30]]  # Of a model with a decoder,
BEFORE = [[0, *row[:-1]] for row in TARGETS]  # and what it has read before each.


def values(shapes: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a net."""
    rng = np.random.default_rng(0)
    return {name: drawn(name, tuple(shape), rng) for name, shape in shapes.items()}


def pictures(side: int, channels: int) -> np.ndarray:
    """Two images (2, side, side, channels) in [0, 1]."""
    x = np.random.default_rng(1).random((2, side, side, channels))
    return x.astype(np.float32)


def nets() -> Iterator[tuple[str, Any, dict[str, Any], int]]:
    """(name, net, content of its config.json, side of its images or 0)."""
    import timm
    import torch
    import torchvision
    import transformers as t

    small = torchvision.models.resnet18(num_classes=5)
    yield "torchvision ResNet-18", small, {}, 64
    cifar = torchvision.models.resnet34(num_classes=5)
    cifar.conv1 = torch.nn.Conv2d(1, 64, 3, 1, 1, bias=False)
    cifar.maxpool = torch.nn.Identity()
    yield "torchvision ResNet-34, small stem", cifar, {}, 8
    config = t.ResNetConfig(embedding_size=8, hidden_sizes=[32, 64, 128, 256], depths=[3, 4, 6, 3])
    yield "transformers ResNet-50", t.ResNetModel(config), {"model_type": "resnet"}, 64
    vit = timm.models.vision_transformer.VisionTransformer
    given = dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=5)
    said = {"model_args": {"num_heads": 3}, "pretrained_cfg": HALF}
    yield "timm ViT", vit(**given), said, 16
    mean = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    said = {"model_args": {"num_heads": 3}}
    yield "timm ViT, mean of the patches", vit(**given, **mean), said, 16
    net = torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 64, num_classes=5)
    yield "torchvision ViT", net, {"model_args": {"num_heads": 2}}, 16
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    config = t.ViTConfig(**sizes, image_size=16, patch_size=8, layer_norm_eps=1e-6)
    yield "transformers ViT", t.ViTModel(config), {"num_attention_heads": 2}, 16
    none = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ends = dict(bos_token_id=0, eos_token_id=0)
    config = t.GPT2Config(vocab_size=30, n_positions=8, n_embd=16, n_layer=2, n_head=2, **ends)
    yield "transformers GPT-2", t.GPT2LMHeadModel(config), config.to_dict(), 0
    config = t.BertConfig(vocab_size=30, **sizes, max_position_embeddings=8, **none)
    yield "transformers BERT", t.BertForMaskedLM(config), config.to_dict(), 0
    sizes |= dict(vocab_size=30, intermediate_size=64, rms_norm_eps=1e-6, tie_word_embeddings=True)
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
    config = t.LlamaConfig(**sizes, num_key_value_heads=2, **rope)
    yield "transformers Llama", t.LlamaForCausalLM(config), config.to_dict(), 0
    special = dict(pad_token_id=0, mask_token_id=4, bos_token_id=2, eos_token_id=3)
    config = t.EuroBertConfig(**sizes, **rope, **special)
    yield "transformers EuroBERT", t.EuroBertForMaskedLM(config), config.to_dict(), 0
    sizes = dict(vocab_size=32, d_model=16, d_kv=6, d_ff=20, num_layers=2, num_heads=2)
    config = t.T5Config(**sizes, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    net = t.T5ForConditionalGeneration(config)
    net.lm_head.weight = torch.nn.Parameter(net.lm_head.weight.clone())
    yield "transformers T5", net, config.to_dict(), 0


def outputs(name: str, net: Any, side: int) -> tuple[dict[str, list[int]], np.ndarray]:
    """Shapes of a net's arrays in a file, and its features or logits with those of `values`."""
    import torch

    if hasattr(net, "save_pretrained"):  # Names in a file of transformers are not a module's.
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "model.safetensors"
            net.save_pretrained(folder)
            shapes = shapes_of(read_weights(str(file)).arrays)
            write_weights(file, values(shapes), {})
            net = type(net).from_pretrained(folder)
    else:
        shapes = shapes_of(net.state_dict())
        net.load_state_dict({k: torch.tensor(x) for k, x in values(shapes).items()}, strict=False)
    net = net.double().eval()
    with torch.no_grad():
        if not side:
            given = {"decoder_input_ids": torch.tensor(BEFORE)} if "T5" in name else {}
            return shapes, net(torch.tensor(TOKENS), **given).logits.numpy()
        channels = next(x for x in shapes.values() if len(x) == 4)[1]
        x = torch.tensor(pictures(side, channels)).permute(0, 3, 1, 2).double()
        for last in ("fc", "head", "heads"):
            if hasattr(net, last):
                setattr(net, last, torch.nn.Identity())
        if name == "timm ViT":  # It sees normalised images.
            mean, std = (torch.tensor(HALF[k])[:, None, None] for k in ("mean", "std"))
            x = (x - mean) / std
        y = net(x)
    if name == "transformers ViT":
        y = y.last_hidden_state[:, 0]
    if name == "transformers ResNet-50":
        y = y.pooler_output[:, :, 0, 0]
    return shapes, y.numpy()


def shapes_of(arrays: Mapping[str, Any]) -> dict[str, list[int]]:
    """Shapes of all arrays but PyTorch's counters."""
    return {k: list(x.shape) for k, x in arrays.items() if not k.endswith("num_batches_tracked")}


# What ours reads of a config.json.
READ = [
    *("model_type", "model_args", "pretrained_cfg", "n_layer", "n_head", "n_embd", "n_positions"),
    *("activation_function", "layer_norm_epsilon", "resid_pdrop", "hidden_size", "hidden_act"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "type_vocab_size"),
    *("max_position_embeddings", "layer_norm_eps", "hidden_dropout_prob", "rms_norm_eps"),
    *("rope_parameters", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers"),
    *("num_heads", "relative_attention_num_buckets", "relative_attention_max_distance"),
    *("dropout_rate", "layer_norm_epsilon", "feed_forward_proj"),
    "scale_decoder_outputs",
]


def main() -> None:
    """Writes the file."""
    found = {}
    for name, net, config, side in nets():
        shapes, y = outputs(name, net, side)
        found[name] = {
            "config": {k: config[k] for k in READ if k in config},
            "side": side,
            "shapes": shapes,
            "outputs": np.round(y, 6).tolist(),
        }
    text = json.dumps(found, separators=(",", ":"))
    FILE.write_text(text.replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
