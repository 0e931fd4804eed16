"""BERT of 4 layers and heads, width 256, 32 rows of 128 tokens, a vocabulary of 8,192."""

from tests.benchmarks.peers.gpt import CLASSIC, trainer

PEER = "transformers"
UNIT = "tokens"
BATCH, LENGTH, VOCABULARY = 32, 128, 8192
PER_STEP = BATCH * LENGTH


def ours(folder):
    from experiments.bert import bert
    from ssljax.models.transformer import Transformer
    from tests.benchmarks.peers.program import stepper

    net = Transformer(4, 4, 256, **CLASSIC)
    exp = bert("python", net=net, length=LENGTH, batch_size=BATCH, vocabulary=VOCABULARY)
    return stepper(exp)


def theirs(folder):
    import torch
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForMaskedLM(config)
    text = torch.randint(5, VOCABULARY, (BATCH, LENGTH))

    def loss():
        chosen, how = torch.rand(text.shape) < 0.15, torch.rand(text.shape)
        x = torch.where(chosen & (how < 0.8), 4, text)
        x = torch.where(chosen & (how > 0.9), torch.randint(5, VOCABULARY, text.shape), x)
        return model(input_ids=x, labels=torch.where(chosen, text, -100)).loss

    return trainer(model, loss)
