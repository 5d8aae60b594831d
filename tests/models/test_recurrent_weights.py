"""Weights that are made of others (weight normalisation, pruning): no dropout of a layer loses them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

from hf_rat.models.recurrent import GRU, LSTM, RNN

NAMES = ("weight_ih_l0", "weight_hh_l0")


def old(layer, name):
    weight_norm(layer, name)


def new(layer, name):
    parametrizations.weight_norm(layer, name)


def pruned(layer, name):
    prune.random_unstructured(layer, name, amount=0.3)


def layers(cell, make, **dropout):
    """Ours with weights made of others, and torch's own with the weights that come of it."""
    torch.manual_seed(0)
    plain = {LSTM: nn.LSTM, GRU: nn.GRU, RNN: nn.RNN}[cell](4, 3, batch_first=True)
    ours = cell(4, 3, batch_first=True, dropout=dropout)
    ours.load_state_dict(plain.state_dict())
    for name in NAMES:
        make(ours, name)
    with torch.no_grad():  # so that the weights are no longer those that torch's layer once saw
        for name, parameter in ours.named_parameters():
            if name.endswith(("_g", "original0", "_orig")):
                parameter.mul_(1.5)
    ours(torch.zeros(1, 1, 4))  # the older kind makes its weights before a forward
    plain.load_state_dict({name: getattr(ours, name).detach() for name in plain.state_dict()})
    return ours, plain


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("make", [old, new, pruned])
@pytest.mark.parametrize("cell", [LSTM, GRU, RNN])
def test_without_dropout_it_is_torchs_layer_on_the_made_weights(cell, make):
    ours, plain = layers(cell, make)
    x = torch.randn(2, 5, 4)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(x)[0], plain(x)[0])
    ours.train()(x)[0].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in ours.parameters())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("make", [old, new, pruned])
@pytest.mark.parametrize("cell", [LSTM, GRU, RNN])
@pytest.mark.parametrize("dropout", [{"dropconnect": 0.5}, {"variational": 0.5, "variational_per": "batch"}])
def test_dropout_of_weights_drops_entries_of_the_made_weight(cell, make, dropout):
    ours, plain = layers(cell, make, **dropout)
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(ours.eval()(x)[0], plain(x)[0])
    ours.train()
    torch.manual_seed(1)
    seen = ours(x)[0]
    masked = copy.deepcopy(plain)
    torch.manual_seed(1)
    with torch.no_grad():  # the mask is the first that is drawn
        if "dropconnect" in dropout:
            masked.weight_hh_l0.copy_(nn.functional.dropout(plain.weight_hh_l0, 0.5))
        else:
            masked.weight_hh_l0.mul_(nn.functional.dropout(torch.ones(1, 1, 3), 0.5)[0])
    torch.testing.assert_close(seen, masked(x)[0])
    assert not torch.allclose(seen, plain(x)[0])
    seen.square().sum().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())
