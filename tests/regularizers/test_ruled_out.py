"""A class whose logit is -inf: every recipe trains as if the class were not there."""

import pytest
import runs
import tiny
import torch
from test_models import TABLE
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_rat import Regularization
from hf_rat.regularizers import RECIPES

OPEN = [0, 2, 3]


class Classifier(nn.Module):
    """Four classes, of which one is ruled out, or three."""

    def __init__(self, without: bool, value: float) -> None:
        super().__init__()
        self.inside = tiny.tiny_model(dropout=0.1, labels=4)
        self.without, self.value = without, value

    def get_input_embeddings(self) -> nn.Module:
        return self.inside.get_input_embeddings()

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.inside(input_ids, attention_mask).logits
        if self.without:
            logits, labels = logits[:, OPEN], torch.tensor(OPEN).eq(labels[:, None]).int().argmax(1)
        else:
            logits = logits.masked_fill(torch.tensor([False, True, False, False]), self.value)
        return SequenceClassifierOutput(loss=F.cross_entropy(logits, labels), logits=logits)


def trained(name, without, value, arguments):
    model = Classifier(without, value).train()
    batch = {**tiny.tiny_batch(), "labels": torch.tensor([0, 2, 3, 2])}
    torch.manual_seed(1)
    # adversarial_dropout finds the output layer by its width, which is one less here.
    losses = Regularization(RECIPES[name](**arguments), model).backward(batch)
    return losses, tiny.gradients(model)


@pytest.mark.parametrize("value", [float("-inf"), torch.finfo(torch.float32).min])
@pytest.mark.parametrize("name", sorted(runs.SETTINGS.keys() - {"plain", "adversarial_dropout"}))
def test_every_recipe(name, value):
    """fraternal and expectation_linear compare the logits themselves."""
    losses, gradients = trained(name, False, value, TABLE[name].arguments)
    expected, slopes = trained(name, True, value, TABLE[name].arguments)
    assert losses.keys() == expected.keys() == TABLE[name].losses
    for part, found in losses.items():
        assert float(found) == pytest.approx(float(expected[part]), rel=1e-4, abs=1e-9), part
    tiny.assert_same_gradients(gradients, slopes, 1e-3)
