"""The weights as a site: what moves, what is moved once, what comes back, what is remembered, what is refused."""

import copy
import json
import math
import warnings
from types import MethodType, SimpleNamespace

import peft
import pytest
import runs
import tiny
import torch
from test_nonfinite import HalfPrecision
from tiny import assert_same_gradients, gradients, tiny_batch, tiny_model
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertForMaskedLM

from hf_rat import Regularization, parse, sam
from hf_rat.models import LSTM, RNNConfig, RNNForSequenceClassification
from hf_rat.passes.sites import WeightsSite, open_site
from hf_rat.regularizers.balls import L2
from hf_rat.regularizers.weight_balls import Ellipsoid, PerTensor, Spread

pytestmark = pytest.mark.filterwarnings("ignore:.*has no dropout")

MOVING = ["sam(epsilon=0.5)", "asam", "awp(epsilon=0.05)", "mixout(rate=0.5)", "momentum_sam", "fgm(site='weights')"]


def by_hand(model, batch, rho):
    """SAM without dropout: the weights overwritten, moved by the slope of what is trained. Gradients, and the loss."""
    trained = [w for w in model.parameters() if w.requires_grad]
    found = torch.autograd.grad(model(**batch).loss, trained, allow_unused=True)
    g = [torch.zeros_like(w) if x is None else x for w, x in zip(trained, found, strict=True)]
    norm = torch.stack([x.square().sum() for x in g]).sum().sqrt()
    with torch.no_grad():
        for w, x in zip(trained, g, strict=True):
            w.add_(rho * x / norm)
    loss = model(**batch).loss
    loss.backward()
    return gradients(model), float(loss.detach())


def assert_by_hand(build, batch, rho=0.5, tolerance=1e-4):
    ours, theirs = build(), build()
    expected, loss = by_hand(theirs, batch, rho)
    named = Regularization(sam(epsilon=rho), ours).backward(batch)
    assert float(named["adversarial_task"]) == pytest.approx(loss, rel=1e-5)
    assert_same_gradients(gradients(ours), expected, tolerance)
    return ours, theirs


def lora(dropout=0.0, **settings):
    torch.manual_seed(0)
    settings = {"init_lora_weights": False, **settings}
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], **settings)
    return peft.get_peft_model(tiny_model(dropout=dropout), config)


# -- what moves ------------------------------------------------------------------------------------------------------


def test_adapters_alone_move():
    ours, theirs = assert_by_hand(lora, tiny_batch())
    pairs = zip(ours.named_parameters(), theirs.parameters(), strict=True)
    moved = {name for (name, kept), written in pairs if not torch.equal(kept, written)}
    assert moved
    assert all("lora_" in name or "modules_to_save" in name for name in moved)


def test_tied_weights_move_once():
    def build():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = BertForMaskedLM(BertConfig(vocab_size=60, **sizes, **rates, initializer_range=0.3)).train()
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        return model

    batch = tiny_batch(kind="none")
    batch["labels"] = batch["input_ids"]
    assert_by_hand(build, batch)


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("*.query.weight", lambda name: name.endswith(".query.weight")),
        ("!*.bias", lambda name: not name.endswith(".bias")),
        ("classifier*", lambda name: name.startswith("classifier")),
    ],
)
def test_a_pattern_of_names_says_which(pattern, fits):
    model = tiny_model()
    site = open_site(f"weights:{pattern}", model)
    assert isinstance(site, WeightsSite)
    assert list(site.parameters) == [name for name, _ in model.named_parameters() if fits(name)]

    def build():
        one = tiny_model()
        for name, parameter in one.named_parameters():
            parameter.requires_grad_(fits(name))
        return one

    expected, _ = by_hand(build(), tiny_batch(), 0.5)
    ours = tiny_model()
    Regularization(parse(f"sam(epsilon=0.5, site='weights:{pattern}')"), ours).backward(tiny_batch())
    assert all(parameter.grad is not None for parameter in ours.parameters()), "all are trained, at the moved weights"
    assert_same_gradients({name: gradients(ours)[name] for name in expected}, expected)


class OwnCheckpoint(nn.Module):
    """A user's model, which runs its own layers again in the backward, and has a recurrent layer of torch's."""

    def __init__(self, again=True, kept=False):
        super().__init__()
        torch.manual_seed(0)
        self.again = again
        self.words = nn.Embedding(tiny.VOCABULARY, 8)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.inner = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
        self.output = nn.Linear(8, 3)
        self.kept = [self.output.weight] if kept else None

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, attention_mask=None, labels=None):
        x = self.norm(self.recurrent(self.words(input_ids))[0])
        x = x + (checkpoint(self.inner, x, use_reentrant=False) if self.again else self.inner(x))
        weight = self.output.weight if self.kept is None else self.kept[0]
        logits = F.linear(x.mean(1), weight, self.output.bias)
        return SimpleNamespace(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


def test_what_a_model_runs_again_by_itself_runs_at_the_moved_weights():
    assert_by_hand(OwnCheckpoint, tiny_batch())
    # With lean memory all but one pass run again from their beginning.
    seen = []
    for again, memory in ((False, "fast"), (True, "fast"), (True, "lean")):
        model = OwnCheckpoint(again)
        regularization = Regularization(parse("rat(epsilon=0.5, alpha=0, site='weights')"), model, memory=memory)
        seen.append((regularization.backward(tiny_batch()), gradients(model)))
    for named, found in seen[1:]:
        assert float(named["adversarial_task"]) == pytest.approx(float(seen[0][0]["adversarial_task"]), rel=1e-5)
        assert_same_gradients(found, seen[0][1])


def test_a_weight_that_is_read_elsewhere_is_named():
    with pytest.raises(
        ValueError, match=r"reads output\.weight from elsewhere than the module that holds it"
    ) as error:
        Regularization(sam(), OwnCheckpoint(kept=True)).backward(tiny_batch())
    assert "\n" not in str(error.value)
    Regularization(sam(site="weights:!output.weight"), OwnCheckpoint(kept=True)).backward(tiny_batch())


@pytest.mark.parametrize("dropouts", [{}, {"dropconnect": 0.3}, {"variational": 0.3}, {"zoneout": 0.3}], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recurrent_companions(cell, dropouts):
    torch.manual_seed(0)
    sizes = {"vocab_size": tiny.VOCABULARY, "embedding_size": 8, "hidden_size": 8, "num_labels": 3}
    config = RNNConfig(**sizes, pad_token_id=tiny.PAD, cell=cell, recurrent_dropouts=dropouts, classifier_dropout=0.0)
    ours = RNNForSequenceClassification(config).train()
    theirs = copy.deepcopy(ours)
    batch = tiny_batch()
    torch.manual_seed(5)
    named = Regularization(sam(epsilon=0.5), ours).backward(batch)
    weights = list(theirs.parameters())
    torch.manual_seed(5)
    g = torch.autograd.grad(theirs(**batch).loss, weights)
    norm = torch.stack([x.square().sum() for x in g]).sum().sqrt()
    with torch.no_grad():
        for w, x in zip(weights, g, strict=True):
            w.add_(0.5 * x / norm)
    torch.manual_seed(5)
    loss = theirs(**batch).loss
    loss.backward()
    assert float(named["adversarial_task"]) == pytest.approx(loss.item(), rel=1e-5)
    assert_same_gradients(gradients(ours), gradients(theirs))


def test_a_recurrent_layer_whose_weights_are_dropped_out_is_moved_too():
    """Without lengths torch's own kernel runs, on weights that are put in the place of the layer's."""
    torch.manual_seed(0)
    layer = LSTM(4, 4, dropout={"dropconnect": 0.3}).train()
    site = open_site("weights", layer)
    x, move = torch.randn(5, 2, 4), torch.randn(1, sum(site.sizes))
    moved = copy.deepcopy(layer)
    with torch.no_grad():
        for weight, e in zip(moved.parameters(), site.split(move), strict=True):
            weight.add_(e)
    torch.manual_seed(1)
    _, seen = site.moving(lambda inputs: (None, layer(x)[0]), move)({})
    torch.manual_seed(1)
    torch.testing.assert_close(seen, moved(x)[0])
    layer.eval()
    torch.testing.assert_close(layer(x)[0], copy.deepcopy(layer)(x)[0])


# -- what comes back -------------------------------------------------------------------------------------------------


class Breaks(nn.Module):
    """Raises, or puts out NaN, in pass `number` of those that have a graph."""

    def __init__(self, model, number, error):
        super().__init__()
        self.passes = 0
        self.number, self.error = number, error
        model.classifier.register_forward_hook(self.hook)

    def hook(self, module, args, output):
        self.passes += torch.is_grad_enabled()
        if self.passes != self.number or not torch.is_grad_enabled():
            return output
        if self.error is None:
            return output * math.nan
        raise self.error


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("error", [None, RuntimeError("broken"), KeyboardInterrupt()], ids=["NaN", "error", "Ctrl-C"])
@pytest.mark.parametrize("expression", MOVING)
def test_the_weights_are_what_they_were_whatever_happens(expression, error, number):
    model = tiny_model(dropout=0.1)
    before = {name: (value, value.detach().clone()) for name, value in model.named_parameters()}
    regularization = Regularization(parse(expression), model)
    Breaks(model, number, error)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is not finite
            regularization.backward(tiny_batch())
    except (RuntimeError, KeyboardInterrupt) as raised:
        assert raised is error  # noqa: PT017
    for name, parameter in model.named_parameters():
        was, value = before[name]
        assert parameter is was
        assert torch.equal(parameter, value)
        assert parameter.grad is None or parameter.grad.isfinite().all()


def test_gradients_that_are_there_already_are_no_part_of_the_slope():
    """Of another micro-batch, of another term: they are added to, and do not turn the move."""
    model, batch = tiny_model(), tiny_batch()
    Regularization(sam(epsilon=0.5), model).backward(batch)
    alone = gradients(model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    Regularization(sam(epsilon=0.5), model).backward(batch)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient - 3.0, alone[name], rtol=1e-3, atol=1e-5)


def test_casts_under_autocast_are_those_of_the_moved_weights():
    """One autocast around everything keeps the casts of the weights of the pass before; a cast of each would not."""
    seen = []
    for cached in (True, False):
        model = tiny_model()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            named = Regularization(parse("fgm(epsilon=2.0, site='weights')"), model).backward(tiny_batch())
        seen.append((named, gradients(model)))
    assert float(seen[0][0]["adversarial_task"]) == float(seen[1][0]["adversarial_task"])
    assert float(seen[0][0]["adversarial_task"]) > 1.1 * float(seen[0][0]["task"])
    assert_same_gradients(seen[0][1], seen[1][1], 1e-2)


def test_a_move_that_half_precision_rounds_away_is_told():
    with pytest.warns(UserWarning, match="is lost in the half precision of the weights"):
        Regularization(sam(epsilon=1e-4), tiny_model().to(torch.bfloat16)).backward(tiny_batch())


def test_statistics_of_the_batch_are_those_at_the_weights_themselves():
    class Normalized(OwnCheckpoint):
        def __init__(self):
            super().__init__(again=False)
            self.inner = nn.Sequential(nn.Linear(8, 8), nn.Flatten(0, 1), nn.BatchNorm1d(8), nn.Unflatten(0, (4, 7)))

    states = []
    for expression in ("plain", "sam(epsilon=1.0)", "awp(epsilon=0.5)", "sam(epsilon=1.0, over='step')"):
        model = Normalized().train()
        regularization = Regularization(parse(expression), model)
        regularization.begin_step([tiny_batch()])
        regularization.backward(tiny_batch())
        states.append(dict(model.named_buffers()))
    for state in states[1:]:
        for name, buffer in states[0].items():
            torch.testing.assert_close(state[name], buffer)


# -- laws ------------------------------------------------------------------------------------------------------------


def test_a_small_step_raises_the_loss_by_its_length_times_the_slope():
    """L(w + e) - L(w) = epsilon ||dL/dw|| to first order, and nothing of length epsilon does better."""
    model, batch = tiny_model().double(), tiny_batch()
    slopes = torch.autograd.grad(model(**batch).loss, list(model.parameters()))
    norm = torch.stack([x.square().sum() for x in slopes]).sum().sqrt().item()
    clean = model(**batch).loss.item()
    rise = Regularization(sam(epsilon=1e-5), model).backward(batch)["adversarial_task"].item() - clean
    assert rise == pytest.approx(1e-5 * norm, rel=1e-3)
    noise = Regularization(parse("neftune(epsilon=1e-5, site='weights')"), model).backward(batch)["noisy_task"].item()
    assert noise - clean < rise


def weights_and_slope():
    model = tiny_model()
    site = open_site("weights", model)
    torch.manual_seed(0)
    return site, site.geometry({}), torch.randn(1, sum(site.sizes))


def test_each_tensor_has_a_ball_of_its_own():
    site, geometry, slope = weights_and_slope()
    for piece in PerTensor(0.3).farthest(slope, geometry).view(-1).split(list(site.sizes)):
        assert piece.norm().item() == pytest.approx(0.3, rel=1e-5)
    moved = PerTensor(0.3, "relative").farthest(slope, geometry).view(-1).split(list(site.sizes))
    for piece, weight in zip(moved, site.parameters.values(), strict=True):
        assert piece.norm().item() == pytest.approx(0.3 * weight.detach().norm().item(), rel=1e-4, abs=1e-12)


def test_a_relative_length_is_a_share_of_that_of_the_weights():
    _, geometry, slope = weights_and_slope()
    moved = L2(0.3, unit="relative").farthest(slope, geometry)
    assert moved.norm().item() == pytest.approx(0.3 * geometry.values().norm().item(), rel=1e-5)


def test_no_point_of_the_ellipsoid_is_farther():
    _, geometry, slope = weights_and_slope()
    ball = Ellipsoid(0.3, 0.05)
    axes = geometry.values().abs() + 0.05
    found = ball.farthest(slope, geometry)
    assert (found / axes).norm().item() == pytest.approx(0.3, rel=1e-5)
    for _ in range(20):
        other = torch.randn_like(slope)
        other = axes * 0.3 * other / other.norm()
        assert (other * slope).sum() < (found * slope).sum()


@pytest.mark.parametrize("ball", [PerTensor(0.3), PerTensor(0.3, "relative"), Ellipsoid(0.3)], ids=repr)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_scale_of_a_slope_means_nothing_and_one_that_is_not_finite_moves_nothing(ball, scale):
    _, geometry, slope = weights_and_slope()
    torch.testing.assert_close(ball.farthest(scale * slope, geometry), ball.farthest(slope, geometry))
    assert not ball.farthest(torch.zeros_like(slope), geometry).any()
    slope[0, 5] = math.nan
    assert not ball.farthest(slope, geometry).any()


def test_noise_at_the_start_is_as_wide_as_its_tensor():
    site, geometry, _ = weights_and_slope()
    torch.manual_seed(0)
    noise = torch.cat([Spread(0.4).noise(0.4, geometry) for _ in range(200)]).split(list(site.sizes), dim=1)
    for piece, weight in zip(noise, site.parameters.values(), strict=True):
        width = 0.4 * weight.detach().std().item()
        assert piece.abs().max().item() <= width / 2 + 1e-7
        assert piece.std().item() == pytest.approx(width / math.sqrt(12), rel=0.05, abs=1e-9)


def test_mixout_is_the_weight_on_average_and_lets_the_slope_through_where_it_is_not_the_centre():
    model = nn.Linear(50, 40, bias=False)
    site = open_site("mixed weights", model)
    weight = model.weight.detach().clone()
    site.centre = site.values() + 1.0  # far from the weights
    rate, mean, passed = 0.3, torch.zeros_like(weight), torch.zeros_like(weight)
    for _ in range(400):
        chosen = (torch.rand(1, weight.numel()) < rate).float()
        run = site.moving(lambda inputs: (None, model.weight + 0.0), (chosen - rate) / (1 - rate))
        _, mixed = run({})
        (slope,) = torch.autograd.grad(mixed.sum(), model.weight)
        mean, passed = mean + mixed.detach() / 400, passed + slope / 400
        assert torch.equal(slope > 0, chosen.view_as(slope) == 0)
    torch.testing.assert_close(mean, weight, rtol=0, atol=0.2)
    assert (mean - weight).mean().abs() < 0.01
    assert passed.mean().item() == pytest.approx(1.0, abs=0.01)


def test_a_sum_adds_the_loss_at_the_moved_weights():
    batch = tiny_batch()
    found = []
    for expression in ("fgm(epsilon=0.5)", "sam(epsilon=0.5)", "fgm(epsilon=0.5) + sam(epsilon=0.5)", "plain + sam"):
        model = tiny_model()
        named = Regularization(parse(expression), model).backward(batch)
        found.append((sum(value.item() for value in named.values()), gradients(model)))
    assert found[2][0] == pytest.approx(found[0][0] + found[1][0], rel=1e-5)
    both = {name: found[0][1][name] + found[1][1][name] for name in found[0][1]}
    assert_same_gradients(found[2][1], both)


# -- over a whole step -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expression", ["sam(epsilon=0.5, over='step')", "awp(epsilon=0.05, over='step')"])
def test_micro_batches_of_a_step_are_one_batch_in_a_loop_of_ones_own(expression):
    whole = tiny_batch(8)
    parts = [{name: value[start : start + 2] for name, value in whole.items()} for start in range(0, 8, 2)]
    seen = []
    for batches in ([whole], parts):
        model = tiny_model()
        regularization = Regularization(parse(expression), model, length_buckets="off")
        regularization.begin_step(batches, step=0)
        losses = [regularization.backward(batch, step=0, accumulation=len(batches)) for batch in batches]
        seen.append((sum(float(x["adversarial_task"]) for x in losses) / len(batches), gradients(model)))
    assert seen[1][0] == pytest.approx(seen[0][0], rel=1e-5)
    assert_same_gradients(seen[1][1], seen[0][1])
    step = parse(expression)
    microbatch = parse(expression.replace("step", "microbatch"))
    alone = [Regularization(one, tiny_model()) for one in (step, microbatch)]
    alone[0].begin_step([whole])
    assert float(alone[0].backward(whole)["adversarial_task"]) == pytest.approx(
        float(alone[1].backward(whole)["adversarial_task"]), rel=1e-5
    )
    assert alone[0].cost() == alone[1].cost()


def test_a_loop_that_does_not_show_its_step_is_told():
    regularization = Regularization(sam(over="step"), tiny_model())
    with pytest.raises(ValueError, match=r"Regularization.begin_step\(batches, step=step\)") as error:
        regularization.backward(tiny_batch())
    assert "\n" not in str(error.value)
    regularization.begin_step([tiny_batch()])
    regularization.backward(tiny_batch())
    with pytest.raises(ValueError, match="begin_step"):
        regularization.backward(tiny_batch())


# -- what is remembered ----------------------------------------------------------------------------------------------


def steps(expression, model, count=4, lr=0.1, optimizer=torch.optim.SGD, after=lambda step: None, **settings):
    made = optimizer(model.parameters(), lr=lr)
    regularization = Regularization(parse(expression), model, optimizer=made, **settings)
    seen = []
    for step in range(count):
        named = regularization.backward(tiny_batch(seed=step), step=step)
        seen.append({name: value.item() for name, value in named.items()})
        made.step()
        made.zero_grad()
        regularization.after_step()
        after(step)
    return seen, regularization


def flat(tensors):
    return torch.cat([x.detach().flatten() for x in tensors])


@pytest.mark.parametrize("source", ["own", "optimizer"])
def test_momentum_over_several_steps(source):
    """The paper's algorithm by hand; SGD's buffer is beta v + g, which has the same direction as a mean."""
    ours, theirs = tiny_model(), tiny_model()
    sgd = {"optimizer": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.8)} if source == "optimizer" else {}
    seen, _ = steps(f"momentum_sam(epsilon=0.5, beta=0.8, momentum={source!r})", ours, **sgd)
    weights = list(theirs.parameters())
    made = torch.optim.SGD(weights, lr=0.1, momentum=0.8 if source == "optimizer" else 0.0)
    v = [torch.zeros_like(w) for w in weights]
    for step, losses in enumerate(seen):
        norm = flat(v).norm()
        moves = [-0.5 * x / norm.clamp(min=1e-30) for x in v]
        with torch.no_grad():
            for w, move in zip(weights, moves, strict=True):
                w.add_(move)
        loss = theirs(**tiny_batch(seed=step)).loss
        loss.backward()
        v = [0.8 * x + w.grad for x, w in zip(v, weights, strict=True)]
        with torch.no_grad():
            for w, move in zip(weights, moves, strict=True):
                w.sub_(move)
        made.step()
        made.zero_grad()
        assert losses["adversarial_task"] == pytest.approx(loss.item(), rel=1e-3)
    torch.testing.assert_close(flat(ours.parameters()), flat(weights), rtol=1e-3, atol=1e-4)


def test_a_loss_scale_is_divided_out_of_a_momentum():
    found = []
    for accelerator in (None, HalfPrecision(2.0**10)):
        model = tiny_model()
        if accelerator is not None:
            model.forward = MethodType(torch.autocast("cpu", torch.float16)(type(model).forward), model)
        regularization = Regularization(parse("momentum_sam"), model, accelerator=accelerator)
        regularization.backward(tiny_batch())
        regularization.after_step()
        found.append(regularization._sites.open("weights").direction)
    assert found[1].norm() == pytest.approx(found[0].norm().item(), rel=1e-2)
    assert F.cosine_similarity(*found).item() > 0.999


def test_the_momentum_of_adam_is_its_first_moment():
    kept = {}
    model = tiny_model()

    def look(step):
        kept[step] = flat(made[0].state[p]["exp_avg"] for p in model.parameters())

    made = []

    def adam(parameters, lr):
        made.append(torch.optim.Adam(parameters, lr=lr))
        return made[0]

    _, regularization = steps("momentum_sam(momentum='optimizer')", model, 3, 1e-3, adam, look)
    assert torch.equal(regularization._sites.open("weights").direction.view(-1), kept[1])


def test_an_optimizer_without_momentum_and_none_at_all_are_told():
    with pytest.raises(ValueError, match="Rprop keeps none of exp_avg, momentum_buffer") as error:
        steps("momentum_sam(momentum='optimizer')", tiny_model(), optimizer=torch.optim.Rprop)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="optimizer=optimizer"):
        Regularization(parse("momentum_sam(momentum='optimizer')"), tiny_model()).backward(tiny_batch())
    with pytest.raises(ValueError, match="two momenta of the same weights"):
        Regularization(parse("momentum_sam + momentum_sam(beta=0.5)"), tiny_model())


def test_l2_sp_over_several_steps():
    ours, theirs = tiny_model(), tiny_model()
    seen, _ = steps("l2_sp(alpha=0.5)", ours)
    began = flat(theirs.parameters())
    made = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for step, losses in enumerate(seen):
        distance = 0.25 * (torch.cat([w.flatten() for w in theirs.parameters()]) - began).square().sum()
        (theirs(**tiny_batch(seed=step)).loss + distance).backward()
        made.step()
        made.zero_grad()
        assert losses["distance"] == pytest.approx(distance.item(), rel=1e-4, abs=1e-9)
    torch.testing.assert_close(flat(ours.parameters()), flat(theirs.parameters()), rtol=1e-4, atol=1e-5)


def test_the_anchor_of_adapters_is_the_model_without_them_and_no_copy():
    model, batch = lora(dropout=0.1), tiny_batch()
    frozen = next(name for name, p in model.named_parameters() if "lora_A" in name)
    dict(model.named_parameters())[frozen].requires_grad_(False)  # PEFT would train it again
    regularization = Regularization(parse("anchor(alpha=2)"), model)
    assert regularization.weights.anchor.copy is None
    assert regularization.state_dict()["weights"]["centres"] == {}
    trained = [p.requires_grad for p in model.parameters()]
    torch.manual_seed(3)
    named = regularization.backward(batch)
    assert [p.requires_grad for p in model.parameters()] == trained
    assert model.training
    torch.manual_seed(3)
    here = model(**batch).logits.log_softmax(-1)
    with torch.no_grad(), model.disable_adapter():
        was = model.eval()(**batch).logits.log_softmax(-1)
    expected = 2 * F.kl_div(here, was, log_target=True, reduction="batchmean")
    assert expected > 0.01
    assert float(named["anchor"]) == pytest.approx(expected.item(), rel=1e-4)


def test_the_anchor_is_a_copy_where_more_than_adapters_is_trained():
    model = lora()
    next(p for name, p in model.named_parameters() if "LayerNorm" in name).requires_grad_(True)
    assert Regularization(parse("anchor"), model).weights.anchor.copy is not None


def test_noise_is_added_once_and_not_to_a_run_that_goes_on():
    model = tiny_model()
    before = flat(model.parameters())
    regularization = Regularization(parse("noisy_tune"), model)
    assert torch.equal(flat(model.parameters()), before)
    regularization.backward(tiny_batch(), step=0)
    noisy = flat(model.parameters())
    assert not torch.equal(noisy, before)
    regularization.backward(tiny_batch(), step=0)
    regularization.backward(tiny_batch(), step=1)
    assert torch.equal(flat(model.parameters()), noisy)
    for step, state in ((3, {}), (0, regularization.state_dict())):
        resumed = Regularization(parse("noisy_tune"), model)
        resumed.load_state_dict(state)
        resumed.backward(tiny_batch(), step=step)
        assert torch.equal(flat(model.parameters()), noisy)


@pytest.mark.parametrize("expression", ["l2_sp", "mixout", "anchor"])
def test_weights_that_are_resumed_are_never_taken_for_the_centre(expression, tmp_path):
    model = tiny_model()
    began = copy.deepcopy(model)
    _, first = steps(expression, model, 2)
    state = json.loads(json.dumps(first.state_dict()))
    first.weights.save(tmp_path)
    with pytest.raises(ValueError, match="those here are others") as error:
        Regularization(parse(expression), model).load_state_dict(state)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="of a run that kept none"):
        Regularization(parse(expression), model).load_state_dict(Regularization(parse("sam"), model).state_dict())
    loaded = Regularization(parse(expression), model)
    loaded.weights.load(tmp_path)
    loaded.load_state_dict(state)
    opened = Regularization(parse(expression), began)  # on the model as it was, before the weights are loaded
    began.load_state_dict(model.state_dict())
    opened.load_state_dict(state)
    for model_there, resumed in ((model, loaded), (began, opened)):
        torch.manual_seed(2)
        named = resumed.backward(tiny_batch(), step=2)
        model_there.zero_grad()
        torch.manual_seed(2)
        assert named == first.backward(tiny_batch(), step=2)


def trainer(expression, folder, **settings):
    saving = {"save_strategy": "steps", "save_steps": 3, "output_dir": str(folder), "max_steps": 6}
    adam = {"optim": "adamw_torch", "learning_rate": 1e-2, "lr_scheduler_type": "linear"}
    torch.manual_seed(1)
    return runs.trainer(expression, **{"count": 20, "gradient_accumulation_steps": 2, **adam, **saving, **settings})


RESUMED = [
    "sam(epsilon=0.3, over='step')",
    "momentum_sam(epsilon=0.3)",
    "momentum_sam(epsilon=0.3, momentum='optimizer')",
    "mixout(rate=0.5)",
    "l2_sp(alpha=1) + anchor + noisy_tune",
]


@pytest.mark.parametrize("expression", RESUMED)
def test_a_run_that_is_resumed_is_the_run_that_was_not_cut(expression, tmp_path):
    straight = trainer(expression, tmp_path)
    straight.train()
    resumed = trainer(expression, tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    runs.assert_same_weights(runs.ran(resumed).weights, runs.ran(straight).weights)
    assert runs.ran(resumed).logs == runs.ran(straight).logs


@pytest.mark.parametrize("expression", ["mixout", "l2_sp", "anchor", "momentum_sam"])
def test_a_checkpoint_without_the_centre_is_named(expression, tmp_path):
    trainer("sam", tmp_path, max_steps=3).train()
    with pytest.raises(ValueError, match=r"\.safetensors is missing") as error:
        trainer(expression, tmp_path).train(resume_from_checkpoint=True)
    assert "\n" not in str(error.value)


# -- what is refused -------------------------------------------------------------------------------------------------


def frozen():
    return tiny_model().requires_grad_(False)


@pytest.mark.parametrize("name", runs.AT_WEIGHTS)
def test_where_nothing_is_trained_nothing_can_be_moved(name):
    if name == "anchor":
        return  # it compares predictions, and moves nothing
    with pytest.raises(ValueError, match="is trained, so nothing can be moved") as error:
        Regularization(parse(name), frozen())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        (
            "sam(site='weights:*.kwery.*')",
            "no weight that is trained in BertForSequenceClassification has such a name",
        ),
        ("rat(site='weights', epsilons=(0.1, 0.2))", "all passes at a point have the same weights; give one"),
        ("awp(inputs=0.1, over='step')", "a step's slope is taken at inputs as they are"),
        ("sam(site='embeddings')", "sam is about weights; site must be 'weights'"),
        ("l2_sp(site='bert')", "l2_sp is about weights"),
        ("fgm(site='weights', scope='table')", 'scope="table" needs the ids of a look-up'),
        ("fgm(site='weights', unit='embedding')", 'unit="embedding" needs word embeddings'),
    ],
)
def test_what_cannot_be_is_one_line(expression, said):
    with pytest.raises(ValueError, match=r"\w+") as error:
        Regularization(parse(expression), tiny_model()).backward(tiny_batch())
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_sparse_gradients_are_refused():
    model = tiny_model()
    model.get_input_embeddings().sparse = True
    with pytest.raises(ValueError, match="sparse=False"):
        Regularization(sam(), model)
