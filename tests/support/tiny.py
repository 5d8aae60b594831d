"""Tiny models of every family, built from configs, and batches with padding for them. No download, no tokenizer.

model = tiny_model("bert", dropout=0.1)     # in training mode, the same weights at every call
batch = tiny_batch()                        # input_ids, attention_mask, labels
"""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedConfig,
    RobertaConfig,
    T5Config,
    XLNetConfig,
)

from hf_rat.models import HANConfig, TextCNNConfig

VOCABULARY = 60
PAD, EOS, FIRST = 0, 2, 3
"""Every tiny model pads with 0. An example begins with token 3 (a [CLS], so that tokens repeat) and ends with 2."""

_SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": FIRST}
_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def _both(dropout: float) -> dict[str, float]:
    return {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}


def _config(family: str, dropout: float) -> PreTrainedConfig:
    p = dropout
    # A wide initialisation: with the usual 0.02 the logits of a tiny model hardly depend on its input.
    wide = {"initializer_range": 0.3}
    bert_like = {**_SIZES, **_SPECIAL, **wide, "max_position_embeddings": 24}
    match family:
        case "bert":
            return BertConfig(**bert_like, **_both(p))
        case "roberta":
            return RobertaConfig(**bert_like, **_both(p))
        case "distilbert":
            sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 24}
            return DistilBertConfig(**sizes, **_SPECIAL, **wide, dropout=p, attention_dropout=p, seq_classif_dropout=p)
        case "albert":
            return AlbertConfig(**bert_like, **_both(p), embedding_size=8, classifier_dropout_prob=p)
        case "electra":
            return ElectraConfig(**bert_like, **_both(p), embedding_size=8)
        case "deberta_v2":
            relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 16}
            return DebertaV2Config(**bert_like, **_both(p), **relative, pooler_dropout=p)
        case "xlnet":
            sizes = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}
            return XLNetConfig(**sizes, **_SPECIAL, **wide, dropout=p, summary_last_dropout=p)
        case "modernbert":
            names = ("embedding_dropout", "mlp_dropout", "attention_dropout", "classifier_dropout")
            ids = {**_SPECIAL, "cls_token_id": FIRST, "sep_token_id": EOS}
            sizes = {**_SIZES, "max_position_embeddings": 24, "local_attention": 4}
            return ModernBertConfig(**sizes, **ids, **wide, **dict.fromkeys(names, p))
        case "gpt2":
            sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24}
            return GPT2Config(**sizes, **_SPECIAL, **wide, resid_pdrop=p, embd_pdrop=p, attn_pdrop=p)
        case "llama":
            sizes = {**_SIZES, "num_key_value_heads": 2, "max_position_embeddings": 24}
            return LlamaConfig(**sizes, **_SPECIAL, **wide, attention_dropout=p)
        case "t5":
            sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
            return T5Config(**sizes, **_SPECIAL, decoder_start_token_id=PAD, dropout_rate=p, classifier_dropout=p)
        case "bart":
            sides = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in _BART_SIDE.items()}
            rates = {"dropout": p, "attention_dropout": p, "activation_dropout": p, "classifier_dropout": p}
            ids = {**_SPECIAL, "decoder_start_token_id": EOS, "forced_eos_token_id": EOS}
            return BartConfig(**sides, **rates, **ids, d_model=16, max_position_embeddings=24, init_std=0.3)
        case "textcnn":
            sizes = {"embedding_size": 16, "num_filters": 6}
            return TextCNNConfig(**sizes, **_SPECIAL, **wide, classifier_dropout=p)
        case "han":
            sizes = {"embedding_size": 16, "hidden_size": 8}
            gru = {"recurrent_dropouts": {"variational": p}}
            return HANConfig(**sizes, **gru, **_SPECIAL, **wide, classifier_dropout=p)
        case "han_sentences":
            cut = {"sentence_level": True, "sentence_separator_token_id": 9}
            sizes = {"embedding_size": 16, "hidden_size": 8}
            return HANConfig(**sizes, **cut, **_SPECIAL, **wide, classifier_dropout=p)
    raise ValueError(f"no tiny model of family {family!r}")


_BART_SIDE = {"layers": 2, "attention_heads": 2, "ffn_dim": 24}

FAMILIES = (
    "bert",
    "roberta",
    "distilbert",
    "albert",
    "electra",
    "deberta_v2",
    "xlnet",
    "modernbert",
    "gpt2",
    "llama",
    "t5",
    "bart",
    "textcnn",
    "han",
    "han_sentences",
)


@cache
def _built(family: str, dropout: float, labels: int, settings: tuple[tuple[str, object], ...]) -> nn.Module:
    config = _config(family, dropout)
    config.num_labels = labels
    for name, value in settings:
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config)


def tiny_model(family: str = "bert", dropout: float = 0.0, labels: int = 3, **settings: object) -> nn.Module:
    """A sequence classifier in training mode, with the same weights at every call with the same arguments.

    Args:
        family: one of FAMILIES.
        dropout: the rate of all its dropouts.
        labels: number of outputs; 1 makes it a regression.
        settings: further fields of the config, set after it is built.
    """
    return copy.deepcopy(_built(family, dropout, labels, tuple(sorted(settings.items())))).train()


def tiny_batch(
    size: int = 4, length: int = 7, labels: int = 3, kind: str = "single", seed: int = 0
) -> dict[str, Tensor]:
    """input_ids and attention_mask (size, length), padded on the right, and labels.

    Args:
        size: examples. All but the first are padded by 1 to 3 tokens.
        labels: number of classes.
        kind: "single" (size,) int64; "multi" (size, labels) float 0/1; "regression" (size,) float; "none": no labels.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST + 1, VOCABULARY, (size, length), generator=generator)
    ids[:, 0] = FIRST
    mask = torch.ones_like(ids)
    for row in range(size):
        end = length - (row % 4)
        ids[row, end - 1] = EOS
        ids[row, end:] = PAD
        mask[row, end:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if kind == "single":
        batch["labels"] = torch.randint(labels, (size,), generator=generator)
    elif kind == "multi":
        batch["labels"] = torch.randint(2, (size, labels), generator=generator).float()
    elif kind == "regression":
        batch["labels"] = torch.randn(size, generator=generator)
    return batch


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """name -> gradient (zeros where there is none) of every trainable parameter."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """Every parameter's gradient agrees, relative to the largest entry of that gradient, and not all are zero."""
    assert ours.keys() == theirs.keys()
    assert max(float(gradient.abs().max()) for gradient in theirs.values()) > 0, "all gradients are zero"
    overall = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        scale = float(gradient.abs().max()) + 1e-3 * overall
        apart = float((ours[name] - gradient).abs().max())
        assert apart <= tolerance * scale, f"{name}: gradients differ by {apart:.3g}, the largest entry is {scale:.3g}"
