"""Adversarial dropout on the input of a linear layer that is named: a last hidden state below further layers."""

import pytest
import torch
from tiny import VOCABULARY, assert_same_gradients, gradients, tiny_batch, tiny_model
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_rat import Regularization, adversarial_dropout, parse
from hf_rat.models.configuration_rnn import RNNConfig
from hf_rat.models.modeling_rnn import RNNForSequenceClassification

quiet = pytest.mark.filterwarnings("ignore:.*has no dropout")
UNITS, FLIPS = 10, 3


class Own(nn.Module):
    """A user's own model: the mean of the words, two layers, of which the lower one is called `below.0`."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, UNITS)
        self.below = nn.Sequential(nn.Linear(UNITS, 4), nn.Tanh())
        self.above = nn.Linear(4, 3)

    def get_input_embeddings(self):
        return self.words

    def read(self, input_ids, attention_mask):
        return self.words(input_ids).mean(1)

    def answer(self, read):
        return self.above(self.below(read))

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.answer(self.read(input_ids, attention_mask))
        return SequenceClassifierOutput(loss=F.cross_entropy(logits, labels), logits=logits)


class OwnForSequenceClassification(RNNForSequenceClassification):
    """The companion model with a ReLU layer, in two halves for the oracle."""

    def __init__(self):
        sizes = {"vocab_size": VOCABULARY, "hidden_size": UNITS, "embedding_size": 6, "classifier_hidden_size": 5}
        super().__init__(RNNConfig(**sizes, num_labels=3, classifier_dropout=0.0, initializer_range=1.0))

    def read(self, input_ids, attention_mask):
        return self._pool(self.rnn(input_ids, attention_mask).last_hidden_state, attention_mask.bool())

    def answer(self, read):
        return self.classifier(self.hidden(read).relu())


def kl(p, q):
    return F.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="batchmean")


def by_hand(model, batch, start):
    """The losses: flips of the largest positive gain, of the slope at the start mask, which has one unit off."""
    read = model.read(batch["input_ids"], batch["attention_mask"])
    clean = model.answer(read)

    def masked(mask):
        return model.answer(read * mask * UNITS / mask.detach().sum(-1, keepdim=True))

    start = start.clone().requires_grad_()
    (influence,) = torch.autograd.grad(kl(clean.detach(), masked(start)), start, retain_graph=True)
    worst = torch.ones_like(start)
    for row, gains in enumerate(-influence):
        for unit in gains.argsort(descending=True)[:FLIPS].tolist():
            if gains[unit] > 0:
                worst[row, unit] = 0
    assert (worst == 0).any()
    return {"task": F.cross_entropy(clean, batch["labels"]), "smoothness": 2 * kl(clean, masked(worst))}


@quiet
@pytest.mark.parametrize(("make", "site"), [(Own, "below.0"), (OwnForSequenceClassification, "hidden")])
def test_losses_and_gradients_are_those_of_the_equations(make, site):
    torch.manual_seed(0)
    model, batch = make().double(), tiny_batch(6)
    regularization = Regularization(parse(f"adversarial_dropout(rate=0.3, alpha=2, site='{site}')"), model)
    regularization.losses(batch)  # looks at the model
    torch.manual_seed(5)
    losses = regularization.losses(batch)
    sum(losses.values()).backward()
    regularization.close()
    got = gradients(model)
    model.zero_grad()
    torch.manual_seed(5)
    start = torch.ones(6, UNITS, dtype=torch.float64)
    start.scatter_(1, torch.randn(6, UNITS).topk(1).indices, 0.0)
    expected = by_hand(model, batch, start)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name].double(), value, rtol=1e-5, atol=1e-7)
    sum(expected.values()).backward()
    assert_same_gradients(got, gradients(model))


@quiet
def test_the_output_layer_by_its_name_is_the_site_logits():
    seen = []
    for site in ("logits", "classifier"):
        model = tiny_model()
        torch.manual_seed(1)
        Regularization(adversarial_dropout(rate=0.3, site=site), model).backward(tiny_batch())
        seen.append(gradients(model))
    assert_same_gradients(*seen)


@pytest.mark.parametrize("site", ["hiden", "rnn"])
def test_a_name_that_no_linear_layer_has_is_refused(site):
    with pytest.raises(
        ValueError,
        match=f"site='{site}'.*has no nn.Linear of this name.*expected logits, recurrent, .*hidden",
    ):
        Regularization(adversarial_dropout(site=site), OwnForSequenceClassification())


@pytest.mark.parametrize("site", ["embeddings", "weights", "weights:*"])
def test_what_is_no_mask_is_refused(site):
    with pytest.raises(ValueError, match=r"site must be logits, recurrent or the name of a linear layer"):
        adversarial_dropout(site=site)
