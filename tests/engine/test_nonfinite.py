"""Values that are not finite never reach the weights, and fp16 does not make any (two processes: test_invariance)."""

import contextlib
from types import SimpleNamespace

import keyed
import pytest
import runs
import tiny
import torch
from accelerate.utils import DynamoBackend
from torch import nn
from torch.nn import functional as F
from transformers import TrainerCallback
from two_processes import BadPass

from hf_rat import Regularization, fgm, parse
from hf_rat.passes.sites import EMBEDDINGS

# -- what is not finite -----------------------------------------------------------------------------------------------


def test_a_bad_adversarial_pass_is_left_out():
    with keyed.noise():
        one = runs.trainer("rat", keyed.KeyedTrainer, count=4)
        BadPass(one.model, 2)
        one.train()
        (log,) = runs.ran(one).logs
        reference = runs.run("plain", keyed.KeyedTrainer, count=4)
    assert set(log) == {"loss", "loss_task", "grad_norm", "nonfinite_steps"}
    assert log["nonfinite_steps"] == 1
    assert log["loss"] == reference.logs[0]["loss"]
    for name, weight in reference.weights.items():
        torch.testing.assert_close(runs.ran(one).weights[name], weight, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch"])
@pytest.mark.parametrize("expression", ["plain", "rat"])
def test_a_bad_gradient_skips_the_step(expression, optimizer):
    """Step 2 of 3 has a NaN gradient: the run is that of a skipped update, and weight decay does not act either."""
    weights = []

    class Remember(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            weights.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))

    settings = {"optim": optimizer, "weight_decay": 0.1, "max_grad_norm": 1.0}
    one = runs.trainer(expression, count=12, options={"callbacks": [Remember()]}, **settings)
    BadPass(one.model, 2 if expression == "plain" else 3, gradient=True)
    one.train()
    first, second, third = weights
    assert torch.equal(first, second)
    assert not torch.equal(second, third)
    assert third.isfinite().all()
    assert [log["nonfinite_steps"] for log in runs.ran(one).logs[1:]] == [1, 1]


# -- fp16: the scaler's arithmetic ------------------------------------------------------------------------------------


class HalfPrecision:
    """The part of an fp16 Accelerator that a regularization uses, on the CPU. `scale` 1 is no loss scaling at all."""

    num_processes = 1
    gradient_accumulation_steps = 1
    distributed_type = "DistributedType.NO"
    state = SimpleNamespace(dynamo_plugin=SimpleNamespace(backend=DynamoBackend.NO))

    def __init__(self, scale):
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

    def backward(self, loss):
        self.scaler.scale(loss).backward()

    def no_sync(self, model):
        return contextlib.nullcontext()


class FaintLoss(nn.Module):
    """A classifier whose loss is so small that its slopes underflow fp16 unless the loss is scaled."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(tiny.VOCABULARY, 16)
        self.output = nn.Linear(16, 3)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask, labels):
        logits = self.output(torch.tanh(self.embedding(input_ids)).mean(1))
        return {"loss": 1e-7 * F.cross_entropy(logits.float(), labels), "logits": logits}


def moves_of(regularization, batch):
    """The perturbations under which the passes of a step ran, zeros left out."""
    site, moves = regularization._sites.open(EMBEDDINGS), []

    def note(module, args, output):
        if site.move is not None:
            moves.append((site.move - output if site._replaces else site.move).detach())

    site.module.register_forward_hook(note, prepend=True)
    regularization.backward(batch)
    return [move for move in moves if move.any()]


@pytest.mark.parametrize("single_backward", [False, True], ids=["riding slopes", "slopes of their own"])
@pytest.mark.parametrize(
    "expression", ["fgm(epsilon=0.5)", "rat(epsilon=0.5)", "pgd(epsilon=0.5, step=0.5)", "freelb(start=0)"]
)
def test_slopes_survive_fp16(expression, single_backward):
    def moves(model, accelerator=None):
        how = {"accelerator": accelerator, "single_backward": single_backward}
        return moves_of(Regularization(parse(expression), model, **how), tiny.tiny_batch())

    with pytest.warns(match="no dropout") if "rat" in expression else contextlib.nullcontext():
        exact = moves(FaintLoss())
        half = FaintLoss().half()
        scaled = moves(half, HalfPrecision(2.0**24))
        lost = moves(FaintLoss().half(), HalfPrecision(1.0))
    assert not lost, "the loss is not faint enough for this test"
    assert len(scaled) == len(exact) > 0
    for mine, reference in zip(scaled, exact, strict=True):
        assert mine.dtype == torch.float32
        assert F.cosine_similarity(mine.flatten(1), reference.flatten(1)).min() > 0.999
        torch.testing.assert_close(mine.flatten(1).norm(dim=1), reference.flatten(1).norm(dim=1), rtol=1e-5, atol=0)
    assert half.output.weight.grad.float().abs().max() > 2.0**10 * 1e-7, "the gradients carry the scaler's factor"


def test_norms_are_taken_in_fp32():
    """Slopes of 3e4 are finite in fp16; their squares are not."""
    half, batch = FaintLoss().half(), tiny.tiny_batch()
    moves = moves_of(Regularization(fgm(epsilon=0.5), half, accelerator=HalfPrecision(2.0**36)), batch)
    assert half.embedding.weight.grad.abs().max() > 256
    for move in moves:
        torch.testing.assert_close(move.flatten(1).norm(dim=1), torch.full((4,), 0.5))
