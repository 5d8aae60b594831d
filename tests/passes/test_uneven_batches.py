"""A batch whose first tensor is not as long as it has examples: each example still has a mask, or a move, of its own.

The model gets class weights with each batch. They are all alike, so that the loss is the one without them.
"""

import pytest
import torch
from tiny import assert_same_gradients, gradients, tiny_batch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_rat import Regularization, parse
from hf_rat.models import LSTM

CLASSES, EXAMPLES = 4, 8


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(60, 8)
        self.rnn = LSTM(8, 8, batch_first=True)
        self.hidden, self.output = nn.Linear(8, 12), nn.Linear(12, CLASSES)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(3)  # so that what a mask changes is felt

    def forward(self, input_ids, labels, class_weights=None):
        states, _ = self.rnn(self.embedding(input_ids))
        logits = self.output(torch.tanh(self.hidden(states.mean(1))))
        return SequenceClassifierOutput(loss=F.cross_entropy(logits, labels, weight=class_weights), logits=logits)


def seen(expression, batch):
    model = Weighted().train()
    torch.manual_seed(1)
    named = Regularization(parse(expression), model).backward(batch)
    return {name: value.item() for name, value in named.items()}, gradients(model)


@pytest.mark.parametrize("weights", ["as many as half of the examples", "one more than there are examples"])
@pytest.mark.parametrize(
    "expression",
    [
        "adversarial_dropout(rate=0.3)",
        "adversarial_dropout(rate=0.3, site='recurrent')",
        "fgm(epsilon=0.5, site='hidden')",
        "vat(epsilon=0.5, start=0.5, site='hidden')",
    ],
)
def test_what_comes_first_is_not_taken_for_the_examples(expression, weights, monkeypatch):
    count = EXAMPLES // 2 if weights.startswith("as many") else EXAMPLES + 1
    monkeypatch.setattr(f"{__name__}.CLASSES", count)
    batch = {name: x for name, x in tiny_batch(EXAMPLES, labels=count).items() if name != "attention_mask"}
    losses, slopes = seen(expression, {"class_weights": torch.full((count,), 2.0), **batch})
    expected, theirs = seen(expression, batch)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert all(value > 1e-4 for value in losses.values())
    assert_same_gradients(slopes, theirs)
