"""The top of a model: against whole passes, written here, whose dropout masks below the cut are replayed."""

import copy
import json
import re
from dataclasses import dataclass, field

import launches
import pytest
import torch
from tiny import assert_same_gradients, gradients, tiny_batch, tiny_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, DebertaConfig, T5Config

from hf_rat import Regularization, fgm, parse
from hf_rat.engine.probes import PassProbe
from hf_rat.passes.cut import Cut

# Family -> the layers of its stack, and which run of which of them begins the top half.
CUTS = {
    "bert": ("bert.encoder.layer", 2, 0),
    "roberta": ("roberta.encoder.layer", 2, 0),
    "distilbert": ("distilbert.transformer.layer", 2, 0),
    "albert": ("albert.encoder.albert_layer_groups", 0, 2),
    "deberta": ("deberta.encoder.layer", 2, 0),
    "deberta_v2": ("deberta.encoder.layer", 2, 0),
    "modernbert": ("model.layers", 2, 0),
    "gpt2": ("transformer.h", 2, 0),
    "llama": ("model.layers", 2, 0),
    "t5": ("transformer.encoder.block", 2, 0),
}
EXPRESSIONS = (
    ("fgm(epsilon=0.2, top=1/2)", False),
    ("rdrop(alpha=2.0, top=1/2)", True),
    ("rat(epsilon=0.2, top=1/2)", False),
    ("rat(epsilon=0.2, top=1/2)", True),
)
"""With whether the dropout passes run one by one, and not as one batch of two copies."""
SPECIAL = {"vocab_size": 60, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 3}
RATE = 0.1


def model_of(family: str) -> nn.Module:
    """Four layers, in double precision."""
    torch.manual_seed(0)
    if family == "t5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 4, "num_heads": 2, "num_labels": 3}
        config = T5Config(**sizes, **SPECIAL, decoder_start_token_id=0, dropout_rate=RATE, classifier_dropout=RATE)
        model = AutoModelForTokenClassification.from_config(config, attn_implementation="eager")
    elif family == "deberta":
        sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
        rates = {"hidden_dropout_prob": RATE, "attention_probs_dropout_prob": RATE, "initializer_range": 0.3}
        relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 16}
        config = DebertaConfig(**sizes, **rates, **relative, **SPECIAL, max_position_embeddings=24, num_labels=3)
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        config = copy.deepcopy(tiny_model(family, dropout=RATE).config)
        config.num_hidden_layers = 4
        if family == "modernbert":
            config.layer_types = ["full_attention", "sliding_attention"] * 2
            config.local_attention = 16  # eager attention is NaN where all that a window has is padding
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    return model.double().train()


def batch_of(family: str) -> dict[str, Tensor]:
    batch = tiny_batch()
    if family == "t5":
        batch["labels"] = (batch["input_ids"] % 3).where(batch["attention_mask"].bool(), -100)
    return batch


@dataclass
class Masks:
    """Dropout whose masks are those of a seed below the cut, for each pass alike, and of another one above.

    Below, all copies of a batch in one forward have one mask.
    """

    layer: nn.Module
    run: int
    size: int
    above: list[int] = field(default_factory=list)
    passes: int = 0
    runs: int = 0
    is_below: bool = True
    move: Tensor | None = None
    crossed: Tensor | None = None

    def begin(self) -> None:
        torch.manual_seed(7)
        self.runs, self.is_below = 0, True

    def hook(self, module, args, kwargs):
        self.runs += 1
        if self.runs != self.run + 1:
            return None
        self.passes += 1
        self.is_below = False
        torch.manual_seed(100 + self.passes)
        name = None if args else next(iter(kwargs))
        hidden = args[0] if args else kwargs[name]
        self.crossed = hidden.detach()
        moved = hidden if self.move is None else hidden + self.move
        return ((moved, *args[1:]), kwargs) if args else (args, {**kwargs, name: moved})

    def dropout(self, x, p=0.5, training=True, inplace=False):
        if not training or p == 0:
            return x
        shape = x.shape
        copies = x.shape[0] // self.size if self.is_below and x.shape[0] % self.size == 0 else 1
        shape = (x.shape[0] // copies, *x.shape[1:])
        mask = (torch.rand(shape) >= p).to(x.dtype) / (1 - p)
        return x * mask.repeat(copies, *[1] * (x.dim() - 1))


def by_hand(expression: str, family: str, model: nn.Module, batch: dict[str, Tensor], one_by_one: bool, patch) -> None:
    """Leave the gradients of the loss in the model, by whole passes."""
    stack, index, run = CUTS[family]
    layer = model.get_submodule(f"{stack}.{index}")
    masks = Masks(layer, run, len(batch["input_ids"]))
    patch.setattr(torch.nn.functional, "dropout", masks.dropout)
    handle = layer.register_forward_pre_hook(masks.hook, with_kwargs=True)

    def forward(move=None, copies=1):
        masks.begin()
        masks.move = move
        outputs = model(**{name: torch.cat([x] * copies) for name, x in batch.items()})
        return outputs.loss, outputs.logits

    def passes(move=None):
        if one_by_one:
            both = [forward(move), forward(move)]
            return (both[0][0] + both[1][0]) / 2, both[0][1], both[1][1]
        loss, logits = forward(None if move is None else torch.cat([move, move]), 2)
        return loss, *logits.chunk(2)

    def agree(p, q):
        log_p, log_q = log_softmax(p, -1), log_softmax(q, -1)
        each = (((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)) / 2
        if family == "t5":
            each = each[batch["labels"] != -100]
        return each.mean()

    if expression.startswith("rdrop"):
        loss, p, q = passes()
        (loss + 2.0 * agree(p, q)).backward()
    else:
        shape = [*batch["input_ids"].shape, 16]
        move = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        clean, _ = forward(move)
        clean.backward()
        length = (masks.crossed * batch["attention_mask"][..., None]).flatten(1).norm(dim=1)
        slope = move.grad
        radius = 0.2 * length / slope.flatten(1).norm(dim=1)
        move = slope * radius[:, None, None]
        if expression.startswith("fgm"):
            forward(move)[0].backward()
        else:
            loss, p, q = passes(move)
            (loss + 0.5 * agree(p, q)).backward()
    handle.remove()


def by_us(expression: str, family: str, model: nn.Module, batch: dict[str, Tensor], one_by_one: bool, patch) -> None:
    """The same, by what is tested, whose layers below and each of whose passes begin at the same seeds."""
    stack, index, run = CUTS[family]
    masks = Masks(model.get_submodule(f"{stack}.{index}"), run, len(batch["input_ids"]))
    below, above = Cut.below, Cut.above

    def run_below(cut, run, inputs):
        masks.begin()
        return below(cut, run, inputs)

    def pass_above(cut, *args, **kwargs):
        if model.training:  # in evaluation it is a look
            masks.passes += 1
            torch.manual_seed(100 + masks.passes)
            masks.is_below = False
        return above(cut, *args, **kwargs)

    patch.setattr(Cut, "below", run_below)
    patch.setattr(Cut, "above", pass_above)
    patch.setattr(torch.nn.functional, "dropout", masks.dropout)
    patch.setattr(PassProbe, "why_one_by_one", lambda self, inputs: "asked" if one_by_one else None)
    Regularization(expression, model, length_buckets="off").backward(batch)


@pytest.mark.parametrize(("expression", "one_by_one"), EXPRESSIONS)
@pytest.mark.parametrize("family", CUTS)
def test_a_pass_from_the_cut_is_a_whole_pass_under_the_same_masks_below(family, expression, one_by_one):
    model, batch = model_of(family), batch_of(family)
    other = copy.deepcopy(model)
    with pytest.MonkeyPatch.context() as patch:
        by_hand(expression, family, other, batch, one_by_one, patch)
    with pytest.MonkeyPatch.context() as patch:
        by_us(expression, family, model, batch, one_by_one, patch)
    assert_same_gradients(gradients(model), gradients(other), tolerance=1e-6)


# -- other models: against whole passes perturbed at the output of the module below -----------------------------------


class Own(nn.Module):
    """A model that no list knows: no config, layers that hand a second tensor on, a connection around all of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(60, 8)
        self.position = nn.Parameter(torch.randn(7, 8))
        self.start = nn.Tanh()
        self.blocks = nn.ModuleList([OwnLayer(), OwnLayer(), OwnLayer()])
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask, labels):
        x = first = self.start(self.table(input_ids) + self.position)
        gate = None
        for block in self.blocks:
            x, gate = block(x, gate)
        logits = self.head(torch.cat([x, first], -1).mean(1))
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class OwnLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.gate = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x, gate=None):
        gate = torch.sigmoid(self.gate(x)) if gate is None else gate
        return x + gate * torch.tanh(self.linear(x)), gate


@pytest.mark.parametrize(
    ("model", "top", "below"),
    [
        (Own, "blocks.1", "blocks.0"),
        (Own, "blocks.0", "start"),
        (lambda: tiny_model("xlnet"), "transformer.layer.1", None),
        (lambda: tiny_model("bart"), "model.encoder.layers.1", "model.encoder.layers.0"),
        (lambda: tiny_model("t5"), "transformer.decoder.block.1", "transformer.decoder.block.0"),
        (lambda: tiny_model("electra"), 0.5, "electra.encoder.layer.0"),
    ],
)
def test_a_pass_from_the_cut_is_one_perturbed_at_the_module_below(model, top, below):
    ours, theirs, batch = model(), model(), tiny_batch()
    if below is None:
        with pytest.raises(ValueError, match="is not batch-first"):
            Regularization(fgm(top=top), ours).backward(batch)
        return
    losses = Regularization(fgm(epsilon=0.1, top=top), ours).backward(batch)
    whole = Regularization(fgm(epsilon=0.1, unit="relative", site=below), theirs).backward(batch)
    torch.testing.assert_close(losses["adversarial_task"], whole["adversarial_task"])
    assert_same_gradients(gradients(ours), gradients(theirs), tolerance=1e-4)


def test_the_layers_below_run_once():
    model, batch, ran = tiny_model("bert", dropout=0.1, num_labels=3), tiny_batch(), []
    regularization = Regularization("rat(top=1/2)", model)
    regularization.backward(batch)  # the first batch is looked at
    for name in ("embeddings", "encoder.layer.0", "encoder.layer.1", "pooler"):
        model.bert.get_submodule(name).register_forward_hook(lambda m, x, y, name=name: ran.append(name))
    weight = model.bert.embeddings.word_embeddings
    weight.register_forward_hook(lambda *_: ran.append("words"))
    linear = model.bert.encoder.layer[0].intermediate.dense
    linear.register_forward_hook(lambda *_: ran.append("linear"))
    regularization.backward(batch)
    assert ran.count("words") == ran.count("linear") == 1, "inside of what is below"
    assert ran.count("pooler") == 2, "the clean pass, and two as one batch"


def test_without_labels_too():
    model, batch, more = tiny_model("bert", dropout=0.1), tiny_batch(), tiny_batch(6, kind="none", seed=1)
    losses = Regularization("rdrop(top=1/2)", model).backward(batch, unlabeled=more)
    assert losses["unlabeled_consistency"] > 0


def test_two_processes(tmp_path):
    launches.fork(launches.HERE / "top_processes.py", tmp_path / "apart.json", processes=2)
    apart = json.loads((tmp_path / "apart.json").read_text(encoding="utf-8"))
    assert len(apart) == 6
    assert max(apart.values()) < 2e-6


# -- what is refused -------------------------------------------------------------------------------------------------


class PassesBy(Own):
    """Its last layer reads what the first one left behind, in evaluation too."""

    def forward(self, input_ids, attention_mask, labels):
        seen = []
        handle = self.blocks[0].linear.register_forward_hook(lambda m, x, y: seen.append(y))
        outputs = super().forward(input_ids, attention_mask, labels)
        handle.remove()
        if seen:
            outputs["logits"] = outputs["logits"] + seen[0].mean(dim=(1, 2))[:, None]
        return outputs


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("model", "expression", "message"),
    [
        (tiny_model, "fgm(top='bert.encoder.layer.7')", "no layer of this name; the nearest is bert.encoder.layer."),
        (lambda: tiny_model("textcnn"), "fgm(top=1/2)", "the layers of TextCNNForSequenceClassification cannot be"),
        (lambda: tiny_model("bart"), "fgm(top=1/2)", "are several stacks: encoder.layers and decoder.layers"),
        (lambda: tiny_model("albert"), "fgm(top='albert.encoder.albert_layer_groups.0')", "share their weights"),
        (Bare, "fgm(top='linear')", "top='linear': Bare has no stack of layers"),
        (Bare, "fgm(top=1/2)", "top=0.5: the layers of Bare cannot be found"),
        (tiny_model, "fgm(top=1/2) + fgm(top='bert.encoder.layer.1')", "cuts the model at several places"),
        (tiny_model, "fgm(top=1/2) + rdrop", "give both the same top or neither"),
        (tiny_model, "rdrop(top=1/2) + fgm", "give both the same top or neither"),
        (tiny_model, "rdrop(top=1/2) + vat", "give both the same top or neither"),
        (lambda: torch.compile(tiny_model()), "fgm(top=1/2)", "top=0.5 runs a part of the model, and a compiled one"),
    ],
)
def test_what_cannot_be_cut_is_told_in_one_line(model, expression, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        Regularization(expression, model())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("fgm(top=1/3, site='bert.pooler')", "fgm(site='bert.pooler', top=1/3): with top the perturbation enters"),
        ("rat(top=1/3, scope='table')", "rat(scope='table', top=1/3): table is about the table of words"),
        ("fgm(top=1/3, unit='embedding')", "fgm(unit='embedding', top=1/3): embedding is about the table of words"),
    ],
)
def test_what_is_about_another_place_is_told_in_one_line(expression, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(expression)


def test_what_passes_the_cut_unseen_is_found_on_the_first_batch():
    with pytest.raises(ValueError, match="PassesBy puts out other logits"):
        Regularization("fgm(top='blocks.2')", PassesBy()).backward(tiny_batch())


def test_a_model_is_as_it_was_after_an_error():
    model, batch = tiny_model("bert", dropout=0.1), tiny_batch()
    regularization = Regularization("fgm(top=1/2)", model)
    regularization.backward(batch)
    model.classifier.register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        regularization.backward(batch)
    assert not any("forward" in vars(module) for module in model.modules())
