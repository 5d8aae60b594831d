"""Layers, depths and heads of models, against names written here."""

import re

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from tiny import tiny_model
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel

from hf_rat.engine.layers import body_of, depths, reinit_layers, scale_by_layer
from hf_rat.models import RNNConfig
from hf_rat.passes.layers import layers_of

# Family -> how the names of its layers begin; what lies above them in the base model.
STACKS = {
    "bert": ("bert.encoder.layer.", "bert.pooler"),
    "roberta": ("roberta.encoder.layer.", "-"),
    "distilbert": ("distilbert.transformer.layer.", "-"),
    "deberta_v2": ("deberta.encoder.layer.", "-"),
    "xlnet": ("transformer.layer.", "-"),
    "modernbert": ("model.layers.", "model.final_norm"),
    "gpt2": ("transformer.h.", "transformer.ln_f"),
    "llama": ("model.layers.", "model.norm"),
    "lstm": ("rnn.layers.", "-"),
}
HEADS = ("classifier", "pre_classifier", "head", "score", "pooler", "sequence_summary", "logits_proj")


def model_of(family):
    if family != "lstm":
        return tiny_model(family)
    sizes = {"vocab_size": 60, "embedding_size": 6, "hidden_size": 6, "num_hidden_layers": 2, "num_labels": 3}
    return AutoModelForSequenceClassification.from_config(RNNConfig(cell="lstm", **sizes))


def depth_by_name(name, stack, above):
    if name.startswith(stack):
        return 2 - int(re.match(r"\d+", name.removeprefix(stack))[0])
    return 0 if name.startswith((above, *HEADS, "weights", "attention")) else 3


@pytest.mark.parametrize("family", STACKS)
def test_how_deep_every_parameter_lies(family):
    model = model_of(family)
    found = depths(model, "test")
    expected = {name: depth_by_name(name, *STACKS[family]) for name, _ in model.named_parameters()}
    assert {name: found[id(p)] for name, p in model.named_parameters()} == expected
    assert set(expected.values()) == {0, 1, 2, 3}


def test_adapters_lie_in_their_layers():
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query"])
    model = get_peft_model(tiny_model("bert"), config)
    found = depths(model, "test")
    for name, parameter in model.named_parameters():
        if "lora" in name:
            assert found[id(parameter)] == 2 - int(re.search(r"layer\.(\d)", name)[1])
    assert {name for name, p in model.named_parameters() if any(p is one for one in body_of(model, "test"))} == {
        name for name, p in model.named_parameters() if "lora" in name
    }


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_a_lower_layer_learns_slower(decay):
    model = model_of("bert")
    ends = [[p for n, p in model.named_parameters() if n.endswith("bias") == bias] for bias in (False, True)]
    groups = [{"params": ends[0], "weight_decay": 0.1}, {"params": ends[1], "weight_decay": 0.0, "lr": 0.4}]
    optimizer = torch.optim.SGD(groups, lr=0.8)
    scale_by_layer(optimizer, model, decay)
    at = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(at) == len(list(model.parameters())) == sum(len(group["params"]) for group in optimizer.param_groups)
    for name, parameter in model.named_parameters():
        bias, depth = name.endswith("bias"), depth_by_name(name, *STACKS["bert"])
        assert at[id(parameter)]["lr"] == pytest.approx((0.4 if bias else 0.8) * decay**depth)
        assert at[id(parameter)]["weight_decay"] == (0.0 if bias else 0.1)
    assert optimizer.param_groups[0]["lr"] == 0.8, "what the Trainer logs is the rate of the head"


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "lstm"])
def test_the_last_layers_are_as_the_model_s_own_initialisation_makes_them(family, tmp_path):
    """Every parameter that is drawn is drawn anew; those below and the head stay."""
    model_of(family).save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(7.0)
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    torch.manual_seed(5)
    reinit_layers(loaded, 1)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    stack = layers_of(again, "test")
    for parameter in again.parameters():
        parameter._is_hf_initialized = False
    torch.manual_seed(5)
    parts = [stack[-1], *([again.bert.pooler] if family == "bert" else [])]
    for module in (module for part in parts for module in part.modules()):
        again._init_weights(module)
    inside = {id(p) for part in parts for p in part.parameters()}
    changed = {name for name, p in again.named_parameters() if id(p) in inside}
    for name, value in loaded.named_parameters():
        expected = dict(again.named_parameters())[name] if name in changed else before[name]
        assert torch.equal(value, expected), name
        assert float(value.detach().mean()) < 3 or name not in changed
    assert changed
    assert all(name.startswith(STACKS[family][0] + "1.") or "pooler" in name for name in changed)


def test_the_spread_is_that_of_the_configuration():
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    model = AutoModelForSequenceClassification.from_config(BertConfig(**sizes, vocab_size=50, initializer_range=0.1))
    nn.init.constant_(model.bert.encoder.layer[2].output.dense.weight, 3.0)
    nn.init.constant_(model.bert.encoder.layer[2].output.LayerNorm.weight, 3.0)
    reinit_layers(model, 2)
    dense = model.bert.encoder.layer[2].output.dense
    assert float(dense.weight.detach().std()) == pytest.approx(0.1, rel=0.1)
    assert float(dense.weight.detach().mean()) == pytest.approx(0.0, abs=0.01)
    assert torch.equal(model.bert.encoder.layer[2].output.LayerNorm.weight, torch.ones(32))


class Unknown(nn.Module):
    """A user's own model: neither a configuration nor a base model."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))


class Own(PreTrainedModel):
    """A user's own model that says what Transformers' models say."""

    config_class = BertConfig
    base_model_prefix = "below"

    def __init__(self, config):
        super().__init__(config)
        self.below = nn.ModuleDict({"first": nn.Linear(3, 3)})
        self.below.steps = nn.ModuleList(nn.Linear(3, 3) for _ in range(config.num_hidden_layers))
        self.below.config = config
        self.top = nn.Linear(3, 2)
        self.post_init()


def test_a_model_that_no_list_of_ours_knows():
    model = Own(BertConfig(num_hidden_layers=4))
    found = depths(model, "test")
    assert [found[id(layer.weight)] for layer in model.below.steps] == [4, 3, 2, 1]
    assert (found[id(model.below["first"].weight)], found[id(model.top.weight)]) == (5, 0)
    assert {id(p) for p in body_of(model, "test")} == {id(p) for p in model.below.parameters()}
    before = model.below.steps[2].weight.clone()
    reinit_layers(model, 1)
    assert torch.equal(model.below.steps[2].weight, before)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (tiny_model("albert"), "AlbertForSequenceClassification cannot be found: it has no list of 2 modules of one"),
        (tiny_model("t5"), "T5ForSequenceClassification are several stacks: encoder.block and decoder.block"),
        (
            tiny_model("textcnn"),
            "TextCNNForSequenceClassification cannot be found: it has no config.num_hidden_layers",
        ),
        (Unknown(), "Unknown cannot be found: it has no config.num_hidden_layers"),
    ],
)
def test_layers_that_cannot_be_found_are_refused_in_one_line(model, said):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for asked, ask in {
        "reinit_layers=1": lambda: reinit_layers(model, 1),
        "layer_decay=0.9": lambda: scale_by_layer(optimizer, model, 0.9),
    }.items():
        with pytest.raises(ValueError, match=f"{asked}: the layers of {said}") as error:
            ask()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", [0, 3, -1])
def test_more_layers_than_there_are(count):
    with pytest.raises(ValueError, match=f"reinit_layers={count} must be 1 to 2, the layers of BertForSequence"):
        reinit_layers(tiny_model("bert"), count)


@pytest.mark.parametrize("model", [tiny_model("textcnn"), Unknown(), tiny_model("bert").bert])
def test_a_head_that_cannot_be_found_is_refused_in_one_line(model):
    with pytest.raises(ValueError, match=r"probe_steps=3: the head of \w+ cannot be found: nothing above a base"):
        body_of(model, "probe_steps=3")
