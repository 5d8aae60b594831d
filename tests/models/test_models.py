"""One table, recipe x model: every recipe does on every model what its name promises."""

from typing import NamedTuple

import pytest
import runs
import torch
from tiny import FAMILIES, gradients, tiny_batch, tiny_model

from hf_rat import Regularization
from hf_rat.passes.sites import LOGITS_INPUT, LogitsInputSite
from hf_rat.regularizers import RECIPES

pytestmark = pytest.mark.filterwarnings("ignore:.*has no dropout")


class Row(NamedTuple):
    """What a recipe promises, with the arguments it is tried with.

    Args:
        arguments: of the call; sizes that a tiny model feels.
        losses: the names it returns.
        moves: what at least one of its passes is moved by: "embeddings", "mask" or None.
        climbs: the named loss that is worse than the clean task loss without dropout, or None.
    """

    arguments: dict
    losses: set
    moves: str | None = None
    climbs: str | None = None


ADVERSARIAL = {"task", "adversarial_task"}
SMOOTH = {"task", "smoothness"}
TABLE = {
    "plain": Row({}, {"task"}),
    "fgm": Row({"epsilon": 0.05}, ADVERSARIAL, "embeddings", "adversarial_task"),
    "fgsm": Row({"epsilon": 0.01}, ADVERSARIAL, "embeddings", "adversarial_task"),
    "pgd": Row({"epsilon": 0.05, "step": 0.03}, ADVERSARIAL, "embeddings", "adversarial_task"),
    "freelb": Row(
        {"epsilon": 0.05, "step": 0.03, "start": 0.0}, {"adversarial_task"}, "embeddings", "adversarial_task"
    ),
    "neftune": Row({}, {"noisy_task"}, "embeddings"),
    "rdrop": Row({}, {"task", "consistency"}),
    "rat": Row({"epsilon": 0.05}, ADVERSARIAL | {"adversarial_consistency"}, "embeddings", "adversarial_task"),
    "fraternal": Row({}, {"task", "consistency"}),
    "pi_model": Row({}, SMOOTH),
    "expectation_linear": Row({}, SMOOTH),
    "vat": Row({"epsilon": 0.05}, SMOOTH, "embeddings"),
    "smart": Row({"epsilon": 0.01}, SMOOTH | {"proximal"}, "embeddings"),
    "r3f": Row({"epsilon": 0.01}, SMOOTH, "embeddings"),
    "adversarial_dropout": Row({"rate": 0.2}, SMOOTH, "mask"),
}
BY_HAND = tuple(TABLE)
for _name in runs.SETTINGS.keys() - TABLE.keys():  # a new one: the losses that it has on a BERT, and it moves its site
    _one = RECIPES[_name]()
    _losses = set(Regularization(_one, tiny_model(dropout=0.1)).backward(tiny_batch()))
    _site = {"embeddings": "embeddings", "logits": "mask"}.get(dict(_one.arguments).get("site"))
    TABLE[_name] = Row({}, _losses, _site)


def test_the_table_names_recipes():
    assert set(BY_HAND) <= RECIPES.keys()


class Watcher:
    """What really reached the layers: how far each pass's embeddings and logits' inputs were moved."""

    def __init__(self, regularization, model, batch):
        self.moves = {"embeddings": [], "mask": []}
        owner = model.get_encoder() if model.config.is_encoder_decoder else model
        self.first = True
        model.register_forward_pre_hook(self._begin)
        owner.get_input_embeddings().register_forward_hook(self._embeddings)
        site = regularization._sites.open(LOGITS_INPUT)
        site.geometry(batch)
        assert isinstance(site, LogitsInputSite)
        self.unmasked = None
        site.module.register_forward_pre_hook(self._before, prepend=True)
        site.module.register_forward_pre_hook(self._after)

    def _begin(self, module, args):
        self.first = True

    def _embeddings(self, module, args, output):
        if self.first:  # T5's decoder runs the same module
            ids = args[0]
            self.moves["embeddings"].append((output - module.weight[ids]).detach())
        self.first = False

    def _before(self, module, args):
        self.unmasked = args[0].detach()

    def _after(self, module, args):
        self.moves["mask"].append(args[0].detach() - self.unmasked)

    def moved(self, what):
        return [bool(move.any()) for move in self.moves[what]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_recipe_on_every_model(name, family):
    row = TABLE[name]
    regularizer = RECIPES[name](**row.arguments)
    batch = tiny_batch()
    for dropout in (0.1, 0.0):
        model = tiny_model(family, dropout)
        regularization = Regularization(regularizer, model)
        watcher = Watcher(regularization, model, batch)
        losses = regularization.backward(batch)
        found = gradients(model)

        assert losses.keys() == row.losses
        assert all(torch.isfinite(value) for value in losses.values())
        assert all(torch.isfinite(gradient).all() for gradient in found.values())
        for module in (model.get_input_embeddings(), regularization._sites.open(LOGITS_INPUT).module):
            assert module.weight.grad is not None
            assert module.weight.grad.any(), "no gradient flows"
        for what in ("embeddings", "mask"):
            assert any(watcher.moved(what)) == (row.moves == what), what
        if dropout == 0 and row.climbs:
            clean = float(tiny_model(family, dropout)(**batch).loss.detach())
            assert float(losses[row.climbs]) > clean
        if dropout > 0:
            for part in row.losses & {"consistency", "smoothness", "adversarial_consistency"}:
                assert losses[part] > 0, part
        elif name in ("vat", "smart", "r3f", "adversarial_dropout"):
            assert losses["smoothness"] > 0


@pytest.mark.parametrize("scope", ["example", "table"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_step_raises_the_loss_by_its_length_times_the_slope(family, scope):
    """To first order L(x + r) - L(x) = epsilon ||dL/dx||, the norm as the scope takes it (double precision)."""
    model, batch = tiny_model(family).double(), tiny_batch()
    epsilon = 1e-3
    regularization = Regularization(RECIPES["fgm"](epsilon=epsilon, scope=scope), model)
    losses = regularization.backward(batch)
    regularization.close()
    for parameter in model.parameters():
        parameter.grad = None

    # The slope by hand, with a hook of the test's own.
    owner = model.get_encoder() if model.config.is_encoder_decoder else model
    outputs = []
    hook = owner.get_input_embeddings().register_forward_hook(lambda module, args, output: outputs.append(output))
    loss = model(**batch).loss
    hook.remove()
    (slope,) = torch.autograd.grad(loss, outputs[:1])
    if family == "xlnet":
        slope = slope.transpose(0, 1)
    if scope == "table":
        rows = slope.new_zeros(60, slope.shape[-1])
        rows.index_add_(0, batch["input_ids"].flatten(), slope.flatten(0, 1))
        if owner.get_input_embeddings().padding_idx is not None:
            rows[owner.get_input_embeddings().padding_idx] = 0
        expected = rows.norm()
    else:
        expected = slope.flatten(1).norm(dim=1).sum()
    assert float(losses["task"]) == pytest.approx(loss.item())
    raised = float(losses["adversarial_task"] - losses["task"])
    assert raised == pytest.approx(epsilon * float(expected), rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family):
    """Longer padding gives the same losses: no perturbation is spent on it."""
    short, long = tiny_batch(), tiny_batch()
    for name in ("input_ids", "attention_mask"):
        pad = torch.zeros(4, 3, dtype=torch.long)
        # XLNet pads on the left: its summary is the last position.
        long[name] = torch.cat([pad, long[name]] if family == "xlnet" else [long[name], pad], 1)
    for expression in ("fgm", "rat", "pgd"):
        found = [
            Regularization(RECIPES[expression](epsilon=0.05), tiny_model(family)).backward(batch)
            for batch in (short, long)
        ]
        for part, value in found[0].items():
            assert float(found[1][part]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), (expression, part)
