"""Recurrent layers: torch's when nothing drops; each dropout as its paper's equation, written here for one example."""

import ast
import copy
import gc
import pickle
import weakref
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_rat.models import recurrent
from hf_rat.models.padding import Rows
from hf_rat.models.recurrence import Recurrence
from hf_rat.models.recurrent import GRU, LSTM, RNN
from hf_rat.models.recurrent_dropouts import Dropouts
from hf_rat.passes.dropout import DropoutRate

CELLS = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
DOUBLE = torch.float64
LENGTHS = [3, 5, 0, 1]  # not sorted, the longest shorter than the padded time, one example empty
BATCH, TIME, WIDTH, SIZE = 4, 6, 3, 5


def make(cell, **options):
    options = {"dtype": DOUBLE, "bidirectional": True} | options
    return CELLS[cell](WIDTH, SIZE, **options)


def make_input(layer, lengths=None, padding=float("nan")):
    x = torch.randn(BATCH, TIME, WIDTH, dtype=DOUBLE)
    for example, length in enumerate(lengths or []):
        x[example, length:] = padding
    places = layer.num_layers * (2 if layer.bidirectional else 1)
    states = [
        torch.randn(places, BATCH, SIZE, dtype=DOUBLE).requires_grad_() for _ in range(1 + (layer.mode == "LSTM"))
    ]
    return x.requires_grad_(), states


def hx(states):
    return tuple(states) if len(states) == 2 else states[0]


def flat(output, state):
    return [output, *(state if isinstance(state, tuple) else (state,))]


def gradients(results, inputs):
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(r.shape, generator=generator, dtype=DOUBLE).to(r.dtype) for r in results]
    return torch.autograd.grad(sum((r * w).sum() for r, w in zip(results, weights, strict=True)), inputs)


def assert_all_close(left, right, tolerance=1e-10):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- without dropout ---------------------------------------------------------------------------------------------


def torch_twin(layer):
    """torch's own layer with the weights of ours, through the state_dict."""
    options = {"nonlinearity": layer.nonlinearity} if layer.mode.startswith("RNN") else {}
    twin = getattr(nn, type(layer).__name__)(
        WIDTH, SIZE, layer.num_layers, bias=layer.bias, batch_first=True, bidirectional=layer.bidirectional, **options
    ).to(DOUBLE)
    twin.load_state_dict(layer.state_dict())
    return twin


@pytest.mark.parametrize("path", ["torch", "own", "loop"])
@pytest.mark.parametrize("lengths", [None, [3, 5, 2, 1]])
@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("LSTM", {"num_layers": 2}),
        ("LSTM", {"bidirectional": False, "bias": False}),
        ("GRU", {"num_layers": 2}),
        ("GRU", {"bidirectional": False, "bias": False}),
        ("RNN", {"num_layers": 2}),
        ("RNN", {"bidirectional": False, "nonlinearity": "relu", "bias": False}),
    ],
)
def test_equals_torch(cell, options, lengths, path):
    layer = make(cell, **options, double_backward=path == "loop")
    twin = torch_twin(layer)
    x, states = make_input(layer, lengths)
    # A mask of ones takes our own path.
    mask = torch.ones(states[0].shape, dtype=DOUBLE) if path != "torch" else None
    ours = flat(*layer(x, hx(states), lengths, recurrent_mask=mask))
    packed = x
    if lengths is not None:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), True, enforce_sorted=False)
    output, state = twin(packed, hx(states))
    if lengths is not None:
        output, _ = nn.utils.rnn.pad_packed_sequence(output, True, total_length=TIME)
    theirs = flat(output, state)
    assert_all_close(ours, theirs)
    assert_all_close(
        gradients(ours, [x, *states, *layer.parameters()]), gradients(theirs, [x, *states, *twin.parameters()])
    )


@pytest.mark.parametrize("cell", CELLS)
def test_default_state_time_first_and_float32(cell):
    layer = make(cell, dtype=torch.float32, batch_first=False)
    x = torch.randn(TIME, BATCH, WIDTH)
    theirs = flat(*getattr(nn, cell).forward(layer, x))
    assert_all_close(flat(*layer(x)), theirs, 0.0)
    ours = flat(*layer(x, recurrent_mask=torch.ones(BATCH, SIZE)))
    assert_all_close(ours, theirs, 1e-6)
    assert [r.shape for r in ours] == [r.shape for r in theirs]


@pytest.mark.parametrize("cell", CELLS)
def test_without_dropout_torch_runs(cell, monkeypatch):
    monkeypatch.setattr(recurrent._Recurrent, "_own", None)
    layer = make(cell, dropout={"variational": 0.3, "dropconnect": 0.3, "input": 0.2}).eval()
    layer(make_input(layer)[0])
    make(cell).train()(make_input(layer)[0])


# --- each dropout against its equation ---------------------------------------------------------------------------


def reference(layer, suffix, x, lengths, states, mask):
    """One direction of one layer, one example at a time. mask(name, example, step) is 1.0 where nothing is dropped.

    The step counts along the recursion. Returns the output (batch, time, hidden) and the last states.
    """
    w_ih, w_hh = getattr(layer, f"weight_ih{suffix}"), getattr(layer, f"weight_hh{suffix}")
    zero = torch.zeros(w_ih.size(0), dtype=DOUBLE)
    b_ih, b_hh = (getattr(layer, f"bias_{kind}{suffix}") if layer.bias else zero for kind in ("ih", "hh"))
    gates = w_ih.size(0) // SIZE
    outputs, last_h, last_c = [], [], []
    for example, length in enumerate(lengths):
        h = states[0][example]
        c = states[1][example] if len(states) == 2 else None
        rows = [torch.zeros(SIZE, dtype=DOUBLE)] * TIME
        u, b_h = w_hh * mask("dropconnect", example, 0), b_hh * mask("dropconnect_bias", example, 0)
        for step in range(length):
            time = length - 1 - step if suffix.endswith("reverse") else step
            m_x, m_h = mask("variational_x", example, time), mask("variational", example, step)
            pre_x, pre_h = [], []
            for k in range(gates):
                part = slice(k * SIZE, (k + 1) * SIZE)
                x_masked = (m_x if isinstance(m_x, float) else m_x[k % len(m_x)]) * x[example, time]
                h_masked = (m_h if isinstance(m_h, float) else m_h[k % len(m_h)]) * h
                pre_x.append(w_ih[part] @ x_masked + b_ih[part])
                h_masked = h_masked * mask("given", example, step)
                if layer.mode.startswith("RNN"):
                    h_masked = mask("recurrent", example, step) * h_masked
                if k == 2 and not layer.reset_after:  # of a GRU
                    h_masked = torch.sigmoid(pre_x[0] + pre_h[0]) * h_masked
                pre_h.append(u[part] @ h_masked + b_h[part])
            m_g, m_c = mask("recurrent", example, step), mask("rnndrop", example, step)
            if layer.mode == "LSTM":
                i, f, o = (torch.sigmoid(pre_x[k] + pre_h[k]) for k in (0, 1, 3))
                g = torch.tanh(pre_x[2] + pre_h[2])
                c_new = m_c * (f * c + i * (m_g * g))
                h_new = o * torch.tanh(c_new)
                d_c = 1 - mask("zoneout_cell", example, step)
                c = d_c * c + (1 - d_c) * c_new
            elif layer.mode == "GRU":
                r, z = (torch.sigmoid(pre_x[k] + pre_h[k]) for k in (0, 1))
                n = torch.tanh(pre_x[2] + (r if layer.reset_after else 1.0) * pre_h[2])
                h_new = m_c * ((1 - z) * (m_g * n) + z * h)
            else:
                h_new = {"RNN_TANH": torch.tanh, "RNN_RELU": torch.relu}[layer.mode](pre_x[0] + pre_h[0])
            d_h = 1 - mask("zoneout", example, step)
            h = d_h * h + (1 - d_h) * h_new
            rows[time] = h
        outputs.append(torch.stack(rows))
        last_h.append(h)
        last_c.append(c)
    last = [torch.stack(last_h)] + ([torch.stack(last_c)] if layer.mode == "LSTM" else [])
    return torch.stack(outputs), last


class Recorder:
    """Writes down every mask drawn and gives it back by kind, example and step, as the paper scales it."""

    ORDER = (
        *("dropconnect_bias", "variational_x", "dropconnect", "variational"),
        *("recurrent", "rnndrop", "zoneout_cell", "zoneout"),
    )
    INVERTED = ("dropconnect_bias", "variational_x", "dropconnect", "variational")

    def __init__(self, monkeypatch):
        self.drawn = []
        dropout = F.dropout

        def record(x, rate):
            dropped = dropout(x, rate)
            if rate:
                self.drawn.append((dropped != 0).to(x.dtype))
            return dropped

        bernoulli = torch.Tensor.bernoulli_

        def draw(mask, keep):
            self.drawn.append(bernoulli(mask, keep).clone())
            return mask

        monkeypatch.setattr(F, "dropout", record)
        monkeypatch.setattr(torch.Tensor, "bernoulli_", draw)

    def of(self, dropouts, direction, lengths, given=None):
        on = [name for name in self.ORDER if getattr(dropouts, name)]
        assert len(self.drawn) in (0, len(on), 2 * len(on))
        masks = dict(zip(on, self.drawn[direction * len(on) :], strict=False))
        longest_first = sorted(range(len(lengths)), key=lambda example: -lengths[example])
        rows = [(step, example) for step in range(TIME) for example in longest_first if step < lengths[example]]

        def mask(name, example, step):
            if name == "given":
                return 1.0 if given is None else given[example]
            if name not in masks:
                return 1.0
            rate = dropouts.dropconnect if name == "dropconnect_bias" else getattr(dropouts, name)
            drawn, scale = masks[name], 1 / (1 - rate) if name in self.INVERTED else 1.0
            if name.startswith("dropconnect"):
                shared = dropouts.dropconnect_per == "batch"
                return scale * (drawn if shared else drawn[longest_first.index(example)])
            where = "variational" if name == "variational_x" else name
            stepwise = where in dropouts.per_step or name.startswith("zoneout")
            if stepwise:
                drawn = drawn[0] if drawn.size(0) == 1 and name != "variational_x" else drawn
                assert drawn.size(0) == len(rows)
                example = rows.index((step, example))
            elif name.startswith("variational") and dropouts.variational_per == "batch":
                return scale * drawn.squeeze(1)
            drawn = drawn[example]
            if name.startswith("variational") and drawn.dim() == 1:
                drawn = drawn.unsqueeze(0)  # the same for all gates
            return scale * drawn

        return mask


KINDS = {
    "variational": {"variational": 0.3},
    "variational_x": {"variational": 0.3, "variational_x": 0.4},
    "variational per gate": {"variational": 0.3, "variational_x": 0.4, "per_gate": True},
    "variational per step": {"variational": 0.3, "variational_x": 0.4, "per_step": ["variational"]},
    "variational per gate and step": {
        "variational": 0.3,
        "variational_x": 0.4,
        "per_gate": True,
        "per_step": ["variational"],
    },
    "variational per batch": {"variational": 0.3, "variational_x": 0.4, "variational_per": "batch"},
    "variational per batch and gate": {
        "variational": 0.3,
        "variational_x": 0.4,
        "variational_per": "batch",
        "per_gate": True,
        "recurrent": 0.0,
        "dropconnect": 0.3,
    },
    "recurrent": {"recurrent": 0.4},
    "recurrent per step": {"recurrent": 0.4, "per_step": ["recurrent"]},
    "rnndrop": {"rnndrop": 0.4},
    "rnndrop per step": {"rnndrop": 0.4, "per_step": ["rnndrop"]},
    "zoneout": {"zoneout": 0.3},
    "zoneout of the cell": {"zoneout": 0.2, "zoneout_cell": 0.5},
    "dropconnect": {"dropconnect": 0.4},
    "dropconnect per example": {"dropconnect": 0.4, "dropconnect_per": "example"},
    "dropconnect with biases": {"dropconnect": 0.4, "dropconnect_bias": True, "zoneout": 0.2},  # zoneout: our own path
    "dropconnect with biases per example": {
        "dropconnect": 0.4,
        "dropconnect_bias": True,
        "dropconnect_per": "example",
    },
    "recurrent per step with variational": {"variational": 0.3, "recurrent": 0.4, "per_step": ["recurrent"]},
    "recurrent with variational per step": {"variational": 0.3, "recurrent": 0.4, "per_step": ["variational"]},
    "variational + recurrent + dropconnect": {"variational": 0.3, "recurrent": 0.2, "dropconnect": 0.4},
    "all": {"variational": 0.2, "recurrent": 0.2, "rnndrop": 0.2, "zoneout": 0.2, "zoneout_cell": 0.4},
    "all per step": {
        "variational": 0.2,
        "recurrent": 0.2,
        "rnndrop": 0.2,
        "zoneout": 0.2,
        "per_step": ["variational", "recurrent", "rnndrop"],
        "dropconnect": 0.3,
    },
}
UNDEFINED = {"LSTM": [], "GRU": ["zoneout_cell"], "RNN": ["rnndrop", "zoneout_cell"]}
CASES = [(cell, kind) for cell in CELLS for kind, on in KINDS.items() if not set(UNDEFINED[cell]) & set(on)] + [
    ("GRU", "all but the cell"),
    ("RNN", "all of an RNN"),
]
KINDS["all but the cell"] = {key: rate for key, rate in KINDS["all"].items() if key != "zoneout_cell"}
KINDS["all of an RNN"] = {
    "variational": 0.3,
    "variational_x": 0.2,
    "recurrent": 0.2,
    "zoneout": 0.3,
    "dropconnect": 0.3,
    "dropconnect_bias": True,
}


def test_every_dropout_has_an_equation_here():
    forward = {"input", "hidden", "output", "layers"}
    assert {field.name for field in fields(Dropouts)} - forward == {name for on in KINDS.values() for name in on}


def against_reference(layer, lengths, monkeypatch, given=None):
    recorder = Recorder(monkeypatch)
    x, states = make_input(layer, lengths)
    ours = flat(*layer(x, hx(states), lengths, recurrent_mask=given))
    assert not layer.training or recorder.drawn
    lengths = lengths or [TIME] * BATCH
    outputs, last = [], []
    for direction, suffix in enumerate(["_l0", "_l0_reverse"]):
        mask = recorder.of(layer.dropouts, direction, lengths, given) if layer.training else expectation(layer, given)
        output, final = reference(layer, suffix, x, lengths, [state[direction] for state in states], mask)
        outputs.append(output)
        last.append(final)
    theirs = [torch.cat(outputs, -1), *(torch.stack(parts) for parts in zip(*last, strict=True))]
    assert_all_close(ours, theirs)
    inputs = [x, *states, *layer.parameters(), *([given] if given is not None else [])]
    d_ours, d_theirs = gradients(ours, inputs), gradients(theirs, inputs)
    assert_all_close(d_ours, d_theirs)
    assert all(torch.isfinite(d).all() for d in d_ours)


def expectation(layer, given):
    """Evaluation: what was unscaled in training is multiplied by its mean, what was inverted is whole."""

    def mask(name, example, step):
        if name == "given":
            return 1.0 if given is None else given[example]
        if name in ("recurrent", "rnndrop", "zoneout", "zoneout_cell"):
            return 1.0 - getattr(layer.dropouts, name)
        return 1.0

    return mask


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
@pytest.mark.parametrize(("cell", "kind"), CASES)
def test_training_follows_the_paper(cell, kind, lengths, monkeypatch):
    against_reference(make(cell, dropout=KINDS[kind]), lengths, monkeypatch)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
@pytest.mark.parametrize("kind", [kind for cell, kind in CASES if cell == "GRU"])
def test_the_reset_gate_before_the_product(kind, lengths, monkeypatch):
    """g = tanh(W x + U (r * h)), equation 11 of Semeniuta et al. 2016."""
    layer = make("GRU", dropout=KINDS[kind], reset_after=False)
    against_reference(layer, lengths, monkeypatch)
    assert "reset_after=False" in repr(layer)


def test_the_reset_gate_before_the_product_without_dropout(monkeypatch):
    for lengths in (None, LENGTHS):
        layer = make("GRU", reset_after=False)
        x, states = make_input(layer, lengths)
        parts = [
            reference(layer, suffix, x, lengths or [TIME] * BATCH, [states[0][place]], lambda *_: 1.0)
            for place, suffix in enumerate(["_l0", "_l0_reverse"])
        ]
        theirs = [torch.cat([output for output, _ in parts], -1), torch.stack([last for _, (last,) in parts])]
        ours = flat(*layer(x, hx(states), lengths))
        assert_all_close(ours, theirs)
        inputs = [x, *states, *layer.parameters()]
        assert_all_close(gradients(ours, inputs), gradients(theirs, inputs))
        if lengths is None:
            assert not torch.allclose(ours[0], torch_twin(layer)(x, hx(states))[0])


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
@pytest.mark.parametrize("kind", ["recurrent", "recurrent per step", "all of an RNN"])
def test_relu_cells(kind, lengths, monkeypatch):
    against_reference(make("RNN", dropout=KINDS[kind], nonlinearity="relu"), lengths, monkeypatch)


@pytest.mark.parametrize(("cell", "kind"), [case for case in CASES if "all" in case[1]])
def test_the_loop_with_second_derivatives_follows_the_paper(cell, kind, monkeypatch):
    against_reference(make(cell, dropout=KINDS[kind], double_backward=True), LENGTHS, monkeypatch)


@pytest.mark.parametrize(("cell", "kind"), [case for case in CASES if "all" in case[1] or case[1] == "variational"])
def test_evaluation_takes_the_mean(cell, kind, monkeypatch):
    layer = make(cell, dropout=KINDS[kind]).eval()
    against_reference(layer, LENGTHS, monkeypatch)
    layer.double_backward = True
    against_reference(layer, LENGTHS, monkeypatch)


@pytest.mark.parametrize("kind", ["variational", "variational per step", "variational per gate", "zoneout"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_given_mask_and_its_gradient(cell, kind, monkeypatch):
    given = torch.randn(BATCH, SIZE, dtype=DOUBLE).requires_grad_()
    layer = make(cell, dropout=KINDS[kind])
    against_reference(layer, LENGTHS, monkeypatch, given)
    against_reference(layer.eval(), LENGTHS, monkeypatch, given)
    assert (
        gradients([layer(make_input(layer)[0], lengths=LENGTHS, recurrent_mask=given)[0]], [given])[0][2].eq(0).all()
    )


def test_a_given_mask_acts_in_the_last_layer_or_where_it_is_given():
    layer = make("LSTM", num_layers=2)
    x, _ = make_input(layer)
    given, ones = torch.rand(BATCH, SIZE, dtype=DOUBLE), torch.ones(BATCH, SIZE, dtype=DOUBLE)
    last = layer(x, recurrent_mask=given)[0]
    torch.testing.assert_close(last, layer(x, recurrent_mask=torch.stack([ones, ones, given, given]))[0])
    assert not torch.allclose(last, layer(x, recurrent_mask=torch.stack([given, ones, given, given]))[0])


@pytest.mark.parametrize("mode", ["LSTM", "GRU", "RNN_TANH", "RNN_RELU"])
@pytest.mark.parametrize("stepwise", [False, True])
def test_gradcheck(mode, stepwise):
    gates = GATES[mode[:4].strip("_")] if not mode.startswith("RNN") else 1
    lengths = torch.tensor([2, 3, 0])
    rows = Rows(3, 3, lengths, torch.device("cpu"))
    count = rows.count

    def rand(*shape):
        return torch.randn(*shape, dtype=DOUBLE).requires_grad_()

    shape = (1, count, 2) if stepwise else (3, 2)
    masks = [torch.rand(shape, dtype=DOUBLE) for _ in range(5)]
    masks[0].requires_grad_()
    lstm, gru = mode == "LSTM", mode == "GRU"
    masks[1:4] = [m if lstm or (gru and k < 2) else None for k, m in enumerate(masks[1:4])]
    x, w, h0 = rand(count, gates * 2), rand(gates * 2, 2), rand(3, 2)
    b, c0 = rand(gates * 2) if gru else None, rand(3, 2) if lstm else None

    def run(x, w, b, h0, c0, *masks):
        hs, cs = Recurrence.apply(mode, rows, x.clone(), w, b, h0, c0, *masks)  # it uses x up
        return (hs, cs) if lstm else hs

    assert torch.autograd.gradcheck(run, (x, w, b, h0, c0, *masks))


def test_masks_have_their_rate_and_are_drawn_for_each_forward(monkeypatch):
    recorder = Recorder(monkeypatch)
    layer = LSTM(8, 64, dropout={"variational": 0.25, "zoneout": 0.1, "dropconnect": 0.6})
    x = torch.randn(32, 20, 8)
    first, second = layer(x)[0], layer(x)[0]
    assert not torch.equal(first, second)
    for drawn, rate in zip(recorder.drawn[:3], [0.6, 0.25, 0.1], strict=True):
        assert set(drawn.unique().tolist()) == {0.0, 1.0}
        assert drawn.mean().item() == pytest.approx(1 - rate, abs=0.03)


def test_a_forced_rate_reaches_every_mask():
    rates = {"variational": 0.3, "variational_x": 0.2, "recurrent": 0.3, "rnndrop": 0.2, "zoneout": 0.3}
    rates |= {"dropconnect": 0.5, "dropconnect_bias": True, "input": 0.2, "hidden": 0.2, "output": 0.1, "layers": 0.1}
    layer = make("LSTM", num_layers=2, dropout=rates | {"per_step": ["output", "hidden"]})
    x, _ = make_input(layer)
    with DropoutRate(0.0):
        first, second = layer(x)[0], layer(x)[0]
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, layer.eval()(x)[0])  # not a layer without dropout: three of these scale at test


@pytest.mark.parametrize("cell", CELLS)
def test_locked_and_stacked_dropout(cell, monkeypatch):
    layer = make(cell, num_layers=2, dropout={"input": 0.3, "hidden": 0.4, "output": 0.5})
    x, _ = make_input(layer, LENGTHS)
    recorder = Recorder(monkeypatch)
    ours = layer(x, lengths=LENGTHS)[0]
    m_in, m_hidden, m_out = recorder.drawn
    first, top = make(cell), CELLS[cell](2 * SIZE, SIZE, bidirectional=True, dtype=DOUBLE)
    first.load_state_dict({k: v for k, v in layer.state_dict().items() if "_l0" in k})
    top.load_state_dict({k.replace("_l1", "_l0"): v for k, v in layer.state_dict().items() if "_l1" in k})
    assert m_in.shape == (BATCH, WIDTH)
    assert m_hidden.shape == m_out.shape == (BATCH, 2 * SIZE)
    between = first(x * (m_in / 0.7)[:, None], lengths=LENGTHS)[0] * (m_hidden / 0.6)[:, None]
    torch.testing.assert_close(ours, top(between, lengths=LENGTHS)[0] * (m_out / 0.5)[:, None])


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
@pytest.mark.parametrize("cell", CELLS)
def test_forward_dropout_of_each_step(cell, lengths, monkeypatch):
    """Zaremba et al. 2014: D(h_t) on what is not recurrent, another D at each step; here by two layers of torch."""
    rates = {"input": 0.3, "hidden": 0.4, "output": 0.5, "per_step": ["input", "hidden", "output"]}
    layer = make(cell, num_layers=2, dropout=rates, bidirectional=False)
    x, states = make_input(layer, lengths, padding=0.0)
    recorder = Recorder(monkeypatch)
    ours = flat(*layer(x, hx(states), lengths))
    m_in, m_hidden, m_out = recorder.drawn
    assert m_in.shape == (BATCH, TIME, WIDTH)
    assert m_out.shape == (BATCH, TIME, SIZE)
    assert m_in.std(1).max() > 0
    full = lengths or [TIME] * BATCH
    longest_first = sorted(range(BATCH), key=lambda example: -full[example])
    place = {}  # the rows of m_hidden go by step, in each step the longest examples first
    for step in range(TIME):
        for example in longest_first:
            if step < full[example]:
                place[example, step] = len(place)
    assert m_hidden.shape == (len(place), SIZE)
    twin = torch_twin(layer)
    layers = []
    for depth in range(2):
        one = type(twin)(SIZE if depth else WIDTH, SIZE, batch_first=True).to(DOUBLE)
        names = {name.replace(f"_l{depth}", "_l0"): p for name, p in layer.named_parameters() if f"_l{depth}" in name}
        layers.append((one, names))
    outputs, lasts = [], []
    for example, length in enumerate(full):
        rows, last = (
            torch.zeros(TIME, SIZE, dtype=DOUBLE),
            [[state[depth, example] for state in states] for depth in (0, 1)],
        )
        if length:
            seen = (x[example] * m_in[example] / 0.7)[:length]
            for depth, (one, names) in enumerate(layers):
                if depth:
                    seen = seen * torch.stack([m_hidden[place[example, step]] for step in range(length)]) / 0.6
                start = hx([state[depth : depth + 1, example] for state in states])
                seen, end = torch.func.functional_call(one, names, (seen, start))
                last[depth] = [part[0] for part in (end if isinstance(end, tuple) else (end,))]
            rows = F.pad(seen * m_out[example, :length] / 0.5, (0, 0, 0, TIME - length))
        outputs.append(rows)
        lasts.append([torch.stack(parts) for parts in zip(*last, strict=True)])
    theirs = [torch.stack(outputs), *(torch.stack(parts, 1) for parts in zip(*lasts, strict=True))]
    assert_all_close(ours, theirs)
    inputs = [x, *states, *layer.parameters()]
    assert_all_close(gradients(ours, inputs), gradients(theirs, inputs))
    layer.eval()
    plain = CELLS[cell](WIDTH, SIZE, 2, dtype=DOUBLE)
    plain.load_state_dict(layer.state_dict())
    assert_all_close(flat(*layer(x, hx(states), lengths)), flat(*plain(x, hx(states), lengths)))


def test_one_rate_is_torchs_dropout_between_layers():
    layer = LSTM(WIDTH, SIZE, 2, dropout=0.5)
    assert layer.dropouts == Dropouts(layers=0.5)
    x = torch.randn(BATCH, TIME, WIDTH)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], nn.LSTM.forward(layer, x)[0])


# --- padding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_padding_reaches_nothing(cell):
    rates = {"variational": 0.2, "variational_x": 0.2, "zoneout": 0.2, "input": 0.1, "output": 0.1, "dropconnect": 0.1}
    layer = make(cell, num_layers=2, dropout=rates | {"recurrent": 0.2, "dropconnect_bias": True})
    x, _ = make_input(layer, LENGTHS, padding=0.0)
    wider = torch.full((BATCH, TIME + 3, WIDTH), float("inf"), dtype=DOUBLE)
    wider[:, :TIME] = torch.where(torch.arange(TIME)[:, None] < torch.tensor(LENGTHS)[:, None, None], x, torch.inf)
    results = []
    for batch in (x, wider.detach().requires_grad_()):
        torch.manual_seed(3)
        found = flat(*layer(batch, lengths=torch.tensor(LENGTHS)))
        d_x, *d = torch.autograd.grad(sum(f.square().sum() for f in found), [batch, *layer.parameters()])
        assert all(d_x[example, length:].eq(0).all() for example, length in enumerate(LENGTHS))
        assert all(found[0][example, length:].eq(0).all() for example, length in enumerate(LENGTHS))
        results.append([found[0][:, :TIME], *found[1:], d_x[:, :TIME], *d])
    assert_all_close(*results)


@pytest.mark.parametrize("rates", [{}, {"zoneout": 0.3, "variational": 0.2}])
def test_only_empty_examples(rates):
    layer = make("LSTM", dropout=rates)
    x, states = make_input(layer, [0] * BATCH)
    output, state = layer(x, hx(states), [0] * BATCH)
    assert output.eq(0).all()
    assert_all_close(list(state), states)
    sum(s.sum() for s in state).backward()
    assert states[0].grad.eq(1).all()


# --- a module like any other -------------------------------------------------------------------------------------

EVERYTHING = {"variational": 0.2, "recurrent": 0.1, "zoneout": 0.1, "dropconnect": 0.3, "input": 0.1}


@pytest.mark.parametrize("rates", [{}, {"dropconnect": 0.5}, EVERYTHING], ids=["none", "dropconnect", "many"])
def test_deepcopy_pickle_and_state_dict_after_a_step(rates):
    layer = make("LSTM", dropout=rates)
    x, _ = make_input(layer)
    names = set(dict(layer.named_parameters()))
    for _ in range(2):
        layer(x)[0].sum().backward()
        assert set(dict(layer.named_parameters())) == set(layer.state_dict()) == names
        copy.deepcopy(layer)
    layer.eval()
    expected = layer(x)[0]
    assert torch.equal(layer.train().eval()(x)[0], expected)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(x)[0], expected)
        assert copied.dropouts == layer.dropouts
    fresh = make("LSTM", dropout=rates).eval()
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x)[0], expected)
    assert layer.to(torch.float32)(x.float())[0].dtype is torch.float32
    with torch.no_grad():
        layer.weight_hh_l0.zero_()  # seen by the layer: nothing keeps an old copy
        assert not torch.equal(layer(x.float())[0].double(), expected)


@pytest.mark.parametrize("bias", [False, True])
def test_dropconnect_runs_in_torchs_layer_with_its_gradient(bias, monkeypatch):
    monkeypatch.setattr(recurrent._Recurrent, "_own", None)
    make("GRU", dropout={"variational": 0.5, "variational_x": 0.5, "variational_per": "batch"})(
        torch.ones(1, 1, 3).double()
    )
    layer = make("LSTM", dropout={"dropconnect": 0.5, "dropconnect_bias": bias}, num_layers=2)
    recorder = Recorder(monkeypatch)
    x, _ = make_input(layer)
    output = layer(x)[0]
    twin = torch_twin(layer)
    starts = ("weight_hh", "bias_hh") if bias else "weight_hh"
    hidden = [name for name in dict(twin.named_parameters()) if name.startswith(starts)]
    assert len(recorder.drawn) == len(hidden) == (8 if bias else 4)
    with torch.no_grad():
        for name, mask in zip(hidden, recorder.drawn, strict=True):
            getattr(twin, name).mul_(2 * mask)
    expected = twin(x)[0]
    torch.testing.assert_close(output, expected)
    ours = dict(zip(dict(layer.named_parameters()), gradients([output], list(layer.parameters())), strict=True))
    theirs = dict(zip(dict(twin.named_parameters()), gradients([expected], list(twin.parameters())), strict=True))
    for name, mask in zip(hidden, recorder.drawn, strict=True):
        theirs[name] = theirs[name] * 2 * mask
    assert_all_close(list(ours.values()), list(theirs.values()))


def test_dropped_weights_are_freed(monkeypatch):
    layer = make("LSTM", dropout={"dropconnect": 0.5})
    seen, drop = [], layer._dropped

    def dropped(name, *args):
        weights = drop(name, *args)
        if name.startswith("weight_hh"):
            seen.append(weakref.ref(weights))
        return weights

    monkeypatch.setattr(layer, "_dropped", dropped)
    layer(make_input(layer)[0])
    gc.collect()
    assert [weights() for weights in seen] == [None, None]


@pytest.mark.parametrize("more", [{}, {"dropconnect": 0.2, "dropconnect_bias": True, "dropconnect_per": "example"}])
@pytest.mark.parametrize("cell", [*CELLS, "GRU before"])
def test_autocast(cell, more):
    option = {"reset_after": False} if cell == "GRU before" else {}
    layer = make(cell[:4].strip(), dtype=torch.float32, dropout={"variational": 0.2, "zoneout": 0.1, **more}, **option)
    x = torch.randn(BATCH, TIME, WIDTH)
    torch.manual_seed(1)
    exact = layer(x, lengths=LENGTHS)[0]
    d_exact = torch.autograd.grad(exact.square().sum(), list(layer.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(1)
        low = layer(x, lengths=LENGTHS)[0]
        d_low = torch.autograd.grad(low.float().square().sum(), list(layer.parameters()))
    assert low.dtype is torch.bfloat16
    assert_all_close([low.float(), *d_low], [exact, *d_exact], 5e-2)


@pytest.mark.parametrize("cell", CELLS)
def test_half_precision_weights(cell):
    layer = make(cell, dtype=torch.bfloat16, dropout={"variational": 0.2, "zoneout": 0.1})
    output = layer(torch.randn(BATCH, TIME, WIDTH, dtype=torch.bfloat16))[0]
    output.float().sum().backward()
    assert output.dtype is layer.weight_hh_l0.grad.dtype is torch.bfloat16


@pytest.mark.parametrize("rates", [{}, {"variational": 0.2}, {"recurrent": 0.2, "zoneout": 0.1}])
def test_gradient_through_evaluation(rates):
    layer = make("LSTM", dropout=rates).eval()
    x, _ = make_input(layer)
    layer(x)[0].sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("cell", CELLS)
def test_second_derivatives_raise_or_take_the_loop(cell):
    layer = make(cell, dropout={"variational": 0.2})
    x, _ = make_input(layer)
    (d_x,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        d_x.sum().backward()
    layer.double_backward = True

    def run(x):
        torch.manual_seed(0)
        return layer(x, lengths=[2, 1])[0]

    assert torch.autograd.gradgradcheck(run, torch.randn(2, 2, WIDTH, dtype=DOUBLE).requires_grad_())


def test_frozen_weights_and_a_gradient_for_the_mask_alone():
    layer = make("LSTM").requires_grad_(False)
    x, _ = make_input(layer)
    mask = torch.ones(BATCH, SIZE, dtype=DOUBLE, requires_grad=True)
    (d_mask,) = torch.autograd.grad(layer(x.detach(), recurrent_mask=mask)[0].square().sum(), mask)
    assert d_mask.abs().sum() > 0


def test_compiles_around_the_recursion():
    layer = make("LSTM", dropout={"variational": 0.2})
    x, _ = make_input(layer)
    compiled = torch.compile(lambda x: layer(2 * x)[0] + 1, backend="eager")
    torch.manual_seed(0)
    expected = layer(2 * x)[0] + 1
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(x), expected)


def test_the_layers_and_their_siblings_stand_on_torch_alone():
    found, files = set(), [Path(recurrent.__file__)]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.ImportFrom) and file.with_name(f"{node.module}.py") not in files:
                files.append(file.with_name(f"{node.module}.py"))
    siblings = ["padding.py", "recurrence.py", "recurrence_in_autograd.py", "recurrent_dropouts.py"]
    assert [file.name for file in files[1:]] == siblings
    assert found == {"__future__", "collections", "dataclasses", "typing", "torch"}


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "dropout", "message"),
    [
        ("LSTM", {"variational": 1.0}, r"variational=1.0 is not a rate in \[0, 1\)"),
        ("LSTM", -0.1, "layers=-0.1 is not a rate"),
        ("LSTM", {"zoneout": "much"}, "zoneout='much' is not a rate"),
        ("LSTM", {"gal": 0.1}, "gal is unknown; it may be variational, "),
        ("LSTM", {"per_step": ["zoneout"]}, "per_step=.'zoneout'. is unknown"),
        ("LSTM", {"dropconnect_per": "gate"}, "neither 'batch' nor 'example'"),
        ("GRU", {"zoneout_cell": 0.1}, "zoneout_cell is not defined for GRU"),
        ("RNN", {"zoneout_cell": 0.1, "rnndrop": 0.1}, "zoneout_cell, rnndrop is not defined for RNN_TANH"),
        ("LSTM", {"dropconnect_bias": True}, "dropconnect_bias=True has no rate without dropconnect"),
    ],
)
def test_bad_dropouts(cell, dropout, message):
    with pytest.raises(ValueError, match=message):
        make(cell, dropout=dropout)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input": torch.zeros(2, 3)}, ValueError, r"input has shape \(2, 3\), expected \(batch, time, 3\)"),
        ({"input": torch.zeros(2, 0, 3)}, ValueError, "not empty"),
        ({"lengths": [1, 2]}, ValueError, r"lengths has shape \(2,\), expected \(4,\)"),
        ({"lengths": [1, 2, 3, 7]}, ValueError, "lengths go from 1 to 7, expected 0..6"),
        ({"hx": torch.zeros(2, 4, 5)}, TypeError, r"hx of LSTM is a pair \(h, c\)"),
        ({"hx": (torch.zeros(1, 4, 5),) * 2}, ValueError, r"hx has shape \(1, 4, 5\), expected \(2, 4, 5\)"),
        ({"recurrent_mask": torch.ones(5)}, ValueError, r"recurrent_mask has shape \(5,\), expected \(4, 5\)"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        make("LSTM", dtype=torch.float32)(**({"input": torch.zeros(BATCH, TIME, WIDTH)} | arguments))


def test_projections_and_packed_sequences_are_refused():
    with pytest.raises(ValueError, match="proj_size=2 is not supported"):
        LSTM(WIDTH, SIZE, proj_size=2)
    packed = nn.utils.rnn.pack_sequence([torch.zeros(2, WIDTH)])
    with pytest.raises(TypeError, match="pass the padded tensor and lengths="):
        LSTM(WIDTH, SIZE)(packed)
