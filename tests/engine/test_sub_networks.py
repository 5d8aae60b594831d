"""Sub-networks of a classifier, and what is studied with them."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from hf_rat.engine.denormals import without_denormals
from hf_rat.engine.mask_terms import three_terms
from hf_rat.engine.sub_networks import SubNetworks, in_batches
from hf_rat.experiments.mask_pictures import picture_of_accuracies, picture_of_mean_masks
from hf_rat.experiments.mask_study import FILE, Settings, Study, spread
from hf_rat.models import RNNConfig, RNNForSequenceClassification

UNITS, CLASSES = 8, 3


class Cell(nn.Module):
    """A recurrent layer of a user's own, which takes a mask on its state."""

    hidden_size = UNITS

    def __init__(self):
        super().__init__()
        self.into, self.again = nn.Linear(2, UNITS), nn.Linear(UNITS, UNITS, bias=False)

    def forward(self, x, recurrent_mask=None):
        h = x.new_zeros(len(x), UNITS)
        for step in x.unbind(1):
            h = torch.tanh(self.into(step) + self.again(h if recurrent_mask is None else h * recurrent_mask))
        return h


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = Cell(), nn.Linear(UNITS, CLASSES)

    def forward(self, signal):
        return {"logits": self.head(self.cell(signal))}


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    inputs = {"signal": torch.randn(40, 6, 2)}
    labels = model(**inputs)["logits"].argmax(-1)
    labels[:8] = (labels[:8] + 1) % CLASSES
    network = SubNetworks(model, in_batches(inputs, labels, 16))
    yield network, model, inputs["signal"]
    network.close()


def test_a_sub_network_is_the_model_with_units_off_and_the_others_scaled(network):
    network, model, signal = network
    assert network.units == UNITS
    move = torch.zeros(UNITS)
    move[[1, 4, 5]] = -1.0
    scaled = (1 + move) * UNITS / (UNITS - 3)
    by_hand = model.head(model.cell(signal, scaled.expand(40, UNITS)))
    torch.testing.assert_close(network.logits(move), by_hand)
    each = -torch.eye(UNITS).repeat(5, 1)
    by_hand = model.head(model.cell(signal, (1 + each) * UNITS / (UNITS - 1)))
    torch.testing.assert_close(network.logits(each), by_hand)
    torch.testing.assert_close(network.logits(), model(signal)["logits"])
    assert network.accuracy(network.logits()) == 32 / 40
    network.close()
    with pytest.raises(RuntimeError, match="the mask never reached"):
        network.logits(move)


def test_the_worst_moves_are_worse_than_chance_and_in_the_ball(network):
    """Of all masks with two units off, found by trying them: the search is by slopes, so it finds a bad one only."""
    network, _, _ = network
    torch.manual_seed(1)
    moves = network.worst_moves(2 / UNITS, steps=2, divergence="logit_mse")
    assert set(moves.unique().tolist()) <= {-1.0, 0.0}
    off = -moves.sum(1)
    assert off.max() == 2
    whole = network.logits()
    found = (network.logits(moves) - whole).square().mean(1)
    pairs = [sum(-torch.eye(UNITS)[list(pair)]) for pair in itertools.combinations(range(UNITS), 2)]
    all_of_them = torch.stack([(network.logits(move) - whole).square().mean(1) for move in pairs])
    assert (found > all_of_them.mean(0)).double().mean() > 0.6
    assert found.mean() > 1.3 * all_of_them.mean()
    assert (found <= all_of_them.max(0).values.maximum(found.new_tensor(0)) + 1e-5)[off == 2].all()


def test_the_three_terms_are_those_of_the_paper(network):
    network, _, _ = network
    torch.manual_seed(0)
    moves = [network.random_move(0.3) for _ in range(20)]
    whole, answers = network.logits(), [network.logits(move) for move in moves]
    largest = max(int((move < 0).sum()) for move in moves)
    found = three_terms(network, whole, answers, largest, rate=2 / UNITS, steps=2)
    z, c = np.stack([answer.numpy() for answer in answers]).astype(float), whole.numpy().astype(float)
    el = np.mean([((one - c) ** 2).mean() for one in z])
    fd = np.mean([((z[n] - z[n + 1]) ** 2).mean() for n in range(0, 20, 2)])
    np.testing.assert_allclose([found["el"], found["fd"]], [el, fd], rtol=1e-6)
    assert fd / 4 <= el
    assert found["quarter_fd_at_most_el"] is True
    assert found["units_off"] == {"add": 2, "add_largest_sampled": largest}
    moves = network.worst_moves(2 / UNITS, steps=2, divergence="logit_mse")
    assert 0.3 * found["add"] < float((network.logits(moves) - whole).square().mean()) < 3 * found["add"]
    assert found["el_at_most_add"] == {name: el <= found[name] for name in ("add", "add_largest_sampled")}


@pytest.mark.parametrize("seed", range(20))
def test_a_quarter_of_fd_is_at_most_el_for_any_network(seed):
    """A law of squared distances: |a - b|^2 <= 2 |a - c|^2 + 2 |b - c|^2, also where a and b lie around another c."""
    torch.manual_seed(seed)
    model = Net()
    network = SubNetworks(model, in_batches({"signal": 3 * torch.randn(10, 5, 2)}, torch.zeros(10, dtype=torch.long)))
    answers = [network.logits(network.random_move(0.5)) for _ in range(4)]
    found = three_terms(network, network.logits(), answers, UNITS - 1, rate=0.25, steps=2)
    network.close()
    assert found["quarter_fd_at_most_el"]
    assert found["fd"] > 0


def test_denormals_are_zero_inside_and_what_they_were_outside():
    small = torch.tensor([1e-38])
    with without_denormals():
        assert float(small * 1e-3) == 0.0
        with without_denormals():
            pass
        assert float(small * 1e-3) == 0.0
    assert float(small * 1e-3) > 0.0


def interrupted(study, network, at):
    """Study until so many sub-networks were answered, as Ctrl-C would."""
    answered, logits = itertools.count(), network.logits

    def count(move=None):
        if next(answered) == at:
            raise KeyboardInterrupt
        return logits(move)

    network.logits = count
    try:
        study.study_network(network)
    except KeyboardInterrupt:
        return True
    finally:
        del network.logits
    return False


@pytest.mark.parametrize("at", [3, 50, 70])
def test_an_interrupted_study_goes_on_and_finds_the_same(network, tmp_path, at):
    network, model, signal = network
    signal, labels = signal[:28], network.labels[:28]
    network.close()
    network = SubNetworks(model, in_batches({"signal": signal}, labels))
    settings = Settings("net", 28, masks=28, draws=26, rate=0.25, steps=1)
    whole = Study(settings, tmp_path / "whole")
    whole.study_network(network)
    part = Study(settings, tmp_path / "part")
    assert interrupted(part, network, at)
    again = Study(settings, tmp_path / "part")
    again.study_network(network)
    for study in (whole, again):
        study.add_mean_mask("at the end", lambda: SubNetworks(model, in_batches({"signal": signal}, labels)))
    a, b = (json.loads((tmp_path / name / FILE).read_text()) for name in ("whole", "part"))
    assert a == b
    assert [len(a[name]) for name in ("random", "adversarial", "own")] == [28, 28, 26]
    assert len(a["mean_masks"]["at the end"]) == UNITS
    assert 0 < min(a["mean_masks"]["at the end"]) < 1
    assert Study(settings, tmp_path / "part").found == a
    assert not interrupted(again, network, 1)
    np.testing.assert_allclose(spread(a)["own"], (np.mean(a["own"]), np.std(a["own"])))
    for picture in (picture_of_accuracies(a), picture_of_mean_masks(a["mean_masks"])):
        assert picture.startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="is of another study"):
        Study(Settings("net", 29), tmp_path / "part")


def test_our_own_layer_is_masked_in_its_recursion():
    torch.manual_seed(0)
    config = RNNConfig(vocab_size=1, embedding_size=1, hidden_size=4, num_labels=2, classifier_dropout=0.0)
    model = RNNForSequenceClassification(config)
    x = torch.rand(6, 5, 1)
    network = SubNetworks(model, in_batches({"inputs_embeds": x}, torch.zeros(6, dtype=torch.long)))
    move = torch.tensor([0.0, -1.0, 0.0, 0.0])
    found = network.logits(move)
    layer = model.rnn.layers[0]
    h = c = torch.zeros(6, 4)
    for step in x.unbind(1):
        masked = h * torch.tensor([1.0, 0.0, 1.0, 1.0]) * 4 / 3
        gates = step @ layer.weight_ih_l0.T + layer.bias_ih_l0 + masked @ layer.weight_hh_l0.T + layer.bias_hh_l0
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    torch.testing.assert_close(found, model.classifier(h))
    network.close()
