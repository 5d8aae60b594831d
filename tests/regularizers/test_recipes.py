"""Every recipe against its equation, written by hand in plain torch: the named losses and every parameter's gradient.

The oracles run on the same tiny BERT with dropout on. They feed `inputs_embeds` (no hook of ours), seek slopes with
`torch.autograd.grad`, and draw from torch's generator in the order that the equation names things, so that masks and
noise are the same ones. An oracle returns the named terms of the loss; their sum is back-propagated.
"""

import copy
import math
import re
from pathlib import Path

import pytest
import torch
from tiny import assert_same_gradients, gradients, tiny_batch, tiny_model
from torch.nn import functional as F
from transformers import BertConfig, BertForTokenClassification

import hf_rat
from hf_rat import Regularization, parse
from hf_rat.regularizers import RECIPES, recipes

pytestmark = pytest.mark.filterwarnings("ignore:.*has no dropout")

SIZE = 4


def embed(model, batch, copies=1):
    return model.get_input_embeddings()(batch["input_ids"].repeat(copies, 1))


def run(model, batch, embeddings, copies=1):
    """(task loss, logits) with these word embeddings."""
    outputs = model(
        inputs_embeds=embeddings,
        attention_mask=batch["attention_mask"].repeat(copies, 1),
        labels=batch["labels"].repeat(copies, *[1] * (batch["labels"].dim() - 1)),
    )
    return outputs.loss, outputs.logits


def norms(x):
    return x.flatten(1).norm(dim=1).view(-1, 1, 1)


def slope(loss, x):
    return torch.autograd.grad(loss, x, retain_graph=True)[0]


def kl(p, q):
    """Mean over the examples of KL(softmax p || softmax q)."""
    # Double, since near p = q what is left of its gradient is a small difference.
    p, q = p.double(), q.double()
    return F.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="batchmean")


def bi_kl(p, q):
    return (kl(p, q) + kl(q, p)) / 2


def noise_like_freelb(batch, dim, size):
    mask = batch["attention_mask"].unsqueeze(-1)
    noise = torch.empty(*batch["input_ids"].shape, dim).uniform_(-1, 1) * mask
    return noise * size / (mask.sum(1, keepdim=True) * dim).sqrt()


class Replay:
    """The state of the generator before a pass, to draw its dropout masks again."""

    def __init__(self):
        self.start = torch.get_rng_state()

    def __enter__(self):
        self.after = torch.get_rng_state()
        torch.set_rng_state(self.start)

    def __exit__(self, *error):
        torch.set_rng_state(self.after)


# -- adversarial task losses -----------------------------------------------------------------------------------------


def plain(model, batch):
    return {"task": run(model, batch, embed(model, batch))[0]}


def fgm(model, batch, epsilon):
    x = embed(model, batch)
    task, _ = run(model, batch, x)
    g = slope(task, x)
    adversarial, _ = run(model, batch, embed(model, batch) + epsilon * g / norms(g))
    return {"task": task, "adversarial_task": adversarial}


def fgsm(model, batch, epsilon):
    x = embed(model, batch)
    task, _ = run(model, batch, x)
    adversarial, _ = run(model, batch, embed(model, batch) + epsilon * slope(task, x).sign())
    return {"task": task, "adversarial_task": adversarial}


def pgd(model, batch, epsilon, step, steps, start=0.0):
    masks = Replay()
    task, _ = run(model, batch, embed(model, batch))
    r = torch.zeros(1)
    if start:
        r = noise_like_freelb(batch, 16, start)
    for _ in range(steps):
        x = embed(model, batch).detach().add(r).requires_grad_()
        with masks:
            g = slope(run(model, batch, x)[0], x)
        r = r + step * g / norms(g)
        r = r * (epsilon / norms(r)).clamp(max=1)
    adversarial, _ = run(model, batch, embed(model, batch) + r)
    return {"task": task, "adversarial_task": adversarial}


def pgd_of_the_snippet(model, batch, epsilon, step, steps):
    """The common snippet: attacks on the embedding table, one norm over all of it, edited in place and put back."""
    table = model.get_input_embeddings().weight
    kept = table.data
    task, _ = run(model, batch, embed(model, batch))
    task.backward()
    clean = gradients(model)
    for _ in range(steps):
        # Each attack starts from the gradient of the one before; the first from the clean one.
        table.data = table.data + step * table.grad / torch.linalg.norm(table.grad)
        moved = table.data - kept
        if torch.linalg.norm(moved) > epsilon:
            table.data = kept + epsilon * moved / torch.linalg.norm(moved)
        model.zero_grad()
        adversarial, _ = run(model, batch, embed(model, batch))
        adversarial.backward()
    table.data = kept
    for name, parameter in model.named_parameters():
        parameter.grad += clean[name]
    return {"task": task.detach(), "adversarial_task": adversarial.detach()}


def freelb(model, batch, epsilon, step, steps, start):
    r = noise_like_freelb(batch, 16, start) if start else torch.zeros(1)
    masks = Replay()
    losses = []
    for _ in range(steps):
        x = embed(model, batch) + r
        with masks:
            losses.append(run(model, batch, x)[0])
        g = slope(losses[-1], x)
        r = r + step * g / norms(g)
        r = r * (epsilon / norms(r)).clamp(max=1)
    return {"adversarial_task": sum(losses) / steps}


def neftune(model, batch, epsilon):
    noise = noise_like_freelb(batch, 16, epsilon)
    return {"noisy_task": run(model, batch, embed(model, batch) + noise)[0]}


# -- dropout passes --------------------------------------------------------------------------------------------------

PAIRS = {
    "ce": lambda p, q: -(p.softmax(-1) * q.log_softmax(-1)).sum(-1).mean(),
    "mae": lambda p, q: F.l1_loss(p.softmax(-1), q.softmax(-1)),
    "mse": lambda p, q: F.mse_loss(p.softmax(-1), q.softmax(-1)),
    "kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "js": lambda p, q: (kl(p, m := ((p.softmax(-1) + q.softmax(-1)) / 2).log()) + kl(q, m)) / 2,
    "bi_kl": bi_kl,
    "logit_mse": F.mse_loss,
}


def agreement(logits, divergence):
    """Mean over the pairs i < j."""
    pairs = [(p, q) for i, p in enumerate(logits) for q in logits[i + 1 :]]
    return sum(divergence(p, q) for p, q in pairs) / len(pairs)


def rdrop(model, batch, alpha, passes=2, divergence=bi_kl):
    task, logits = run(model, batch, embed(model, batch, passes), passes)
    return {"task": task, "consistency": alpha * agreement(logits.chunk(passes), divergence)}


def rat(model, batch, epsilons, alpha, divergence=bi_kl):
    x = embed(model, batch)
    task, _ = run(model, batch, x)
    g = slope(task, x)
    moves = torch.cat([epsilon * g / norms(g) for epsilon in epsilons])
    passes = len(epsilons)
    adversarial, logits = run(model, batch, embed(model, batch, passes) + moves, passes)
    return {
        "task": task,
        "adversarial_task": adversarial,
        "adversarial_consistency": alpha * agreement(logits.chunk(passes), divergence),
    }


def rat_with_rates(model, batch, epsilon, alpha, rates):
    x = embed(model, batch)
    task, _ = run(model, batch, x)
    g = slope(task, x)
    losses, logits = [], []
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    usual = [module.p for module in dropouts]
    for rate in rates:
        for module in dropouts:
            module.p = rate
        loss, z = run(model, batch, embed(model, batch) + epsilon * g / norms(g))
        losses.append(loss)
        logits.append(z)
    for module, p in zip(dropouts, usual, strict=True):
        module.p = p
    return {
        "task": task,
        "adversarial_task": sum(losses) / len(losses),
        "adversarial_consistency": alpha * agreement(logits, bi_kl),
    }


def rat_of_the_authors(model, batch, epsilon, weight, passes=2):
    """Their training loop: table edited in place, divergence summed over the batch, one backward of everything."""
    table = model.get_input_embeddings().weight
    task, _ = run(model, batch, embed(model, batch))
    task.backward(retain_graph=True)
    g = table.grad
    model.zero_grad()
    kept = table.data
    table.data = kept + epsilon * g / torch.linalg.norm(g)
    adversarial, logits = run(model, batch, embed(model, batch, passes), passes)
    p, q = logits.chunk(2)
    both = [F.kl_div(a.log_softmax(-1), b.softmax(-1), reduction="sum") for a, b in ((p, q), (q, p))]
    table.data = kept
    return {
        "task": task,
        "adversarial_task": adversarial,
        "adversarial_consistency": weight * sum(both) / 2,
    }


def fraternal(model, batch, kappa):
    task, logits = run(model, batch, embed(model, batch, 2), 2)
    first, second = logits.chunk(2)
    return {"task": task, "consistency": kappa * (first - second).square().mean()}


def pi_model(model, batch, alpha):
    task, first = run(model, batch, embed(model, batch))
    _, second = run(model, batch, embed(model, batch))
    return {"task": task, "smoothness": alpha * F.mse_loss(first.softmax(-1), second.softmax(-1))}


def expectation_linear(model, batch, alpha):
    task, dropped = run(model, batch, embed(model, batch))
    model.eval()
    _, whole = run(model, batch, embed(model, batch))
    model.train()
    return {"task": task, "smoothness": alpha * (dropped - whole).square().mean()}


# -- the prediction must not change ----------------------------------------------------------------------------------


def vat(model, batch, epsilon, alpha, start, steps=1):
    masks = Replay()
    task, clean = run(model, batch, embed(model, batch))
    d = torch.randn(*batch["input_ids"].shape, 16) * batch["attention_mask"].unsqueeze(-1)
    for _ in range(steps):
        x = (embed(model, batch) + start * d / norms(d)).detach().requires_grad_()
        with masks:
            d = slope(kl(clean.detach(), run(model, batch, x)[1]), x)
    _, moved = run(model, batch, embed(model, batch) + epsilon * d / norms(d))
    return {"task": task, "smoothness": alpha * kl(clean.detach(), moved)}


def r3f(model, batch, epsilon, alpha):
    task, clean = run(model, batch, embed(model, batch))
    noise = torch.empty(*batch["input_ids"].shape, 16).uniform_(-1, 1) * epsilon
    _, moved = run(model, batch, embed(model, batch) + noise * batch["attention_mask"].unsqueeze(-1))
    return {"task": task, "smoothness": alpha * bi_kl(clean, moved)}


def smart(model, batch, average, epsilon, step, steps, start, alpha, mu):
    masks = Replay()
    task, clean = run(model, batch, embed(model, batch))
    r = torch.randn(*batch["input_ids"].shape, 16) * start * batch["attention_mask"].unsqueeze(-1)
    for _ in range(steps):
        x = (embed(model, batch) + r).detach().requires_grad_()
        with masks:
            g = slope(bi_kl(clean.detach(), run(model, batch, x)[1]), x)
        r = (r + step * g / g.abs().amax((1, 2), keepdim=True)).clamp(-epsilon, epsilon)
    _, moved = run(model, batch, embed(model, batch) + r)
    with torch.no_grad():
        _, before = run(average, batch, embed(average, batch))
    return {"task": task, "smoothness": alpha * bi_kl(clean, moved), "proximal": alpha * mu * bi_kl(before, clean)}


def mean_teacher(model, batch, average, alpha, divergence="mse"):
    task, student = run(model, batch, embed(model, batch))
    with torch.no_grad():
        _, teacher = run(average, batch, embed(average, batch))
    p, q = teacher.softmax(-1), student.softmax(-1)
    apart = {"mse": (p - q).square().mean(), "kl": (p * (p.log() - q.log())).sum(-1).mean()}
    return {"task": task, "proximal": alpha * apart[divergence]}


def adversarial_dropout(model, batch, rate, alpha, start_mask="one_drop"):
    """The influence map by autograd on an explicit mask in front of the classifier, then the flips that gain most."""
    units = model.classifier.in_features

    def masked_run(mask):
        features = model.bert(batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
        on = mask.detach().sum(-1, keepdim=True)
        return model.classifier(model.dropout(features) * mask * units / on)

    masks = Replay()
    task, clean = run(model, batch, embed(model, batch))
    flips = math.floor(rate * units)
    off = {"one_drop": 1, "random": flips, "base": 0}[start_mask]
    mask = torch.ones(SIZE, units)
    if off:
        for row, order in enumerate(torch.randn(SIZE, units).argsort(-1, descending=True)):
            mask[row, order[:off]] = 0
    mask.requires_grad_()
    if off:
        with masks:
            seen = masked_run(mask)
    else:
        seen = masked_run(mask)
    influence = slope(kl(clean.detach(), seen), mask)
    worst = torch.ones(SIZE, units)
    for row in range(SIZE):
        gains = sorted(((-float(influence[row, unit]), unit) for unit in range(units)), reverse=True)
        for gain, unit in gains[:flips]:
            if gain > 0:
                worst[row, unit] = 0
    assert (worst == 0).any()
    return {"task": task, "smoothness": alpha * kl(clean, masked_run(worst))}


# -- at other weights ------------------------------------------------------------------------------------------------


def written(model, batch, moves):
    """The task loss with the weights overwritten by what they are and a move, and put back after its own backward."""
    weights = list(model.parameters())
    kept = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for w, move in zip(weights, moves, strict=True):
            w.add_(move)
    loss, _ = run(model, batch, embed(model, batch))
    loss.backward()
    with torch.no_grad():
        for w, value in zip(weights, kept, strict=True):
            w.copy_(value)
    return loss.detach()


def weight_slopes(model, batch, masks, move=0.0):
    """Of the task loss, through the model's own embeddings; 0 where a weight has none (the pooler's of no use)."""
    with masks:
        loss, _ = run(model, batch, embed(model, batch) + move)
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(model.parameters(), found, strict=True)]


def length(tensors):
    return torch.stack([x.square().sum() for x in tensors]).sum().sqrt()


def sam(model, batch, rho, per_tensor=False):
    masks = Replay()
    g = weight_slopes(model, batch, masks)
    lengths = [length([x]).clamp(min=1e-30) if per_tensor else length(g) for x in g]
    with masks:
        return {"adversarial_task": written(model, batch, [rho * x / n for x, n in zip(g, lengths, strict=True)])}


def asam(model, batch, rho, eta=0.01):
    masks = Replay()
    g = weight_slopes(model, batch, masks)
    t = [w.detach().abs() + eta for w in model.parameters()]
    norm = length([a * b for a, b in zip(t, g, strict=True)])
    with masks:
        moves = [rho * a * a * b / norm for a, b in zip(t, g, strict=True)]
        return {"adversarial_task": written(model, batch, moves)}


def awp(model, batch, gamma):
    masks = Replay()
    g = weight_slopes(model, batch, masks)
    pairs = list(zip(model.parameters(), g, strict=True))
    with masks:
        moves = [gamma * w.detach().norm() * x / x.norm().clamp(min=1e-30) for w, x in pairs]
        return {"adversarial_task": written(model, batch, moves)}


def awp_at_perturbed_inputs(model, batch, gamma, epsilon):
    """Without dropout: each of the three passes has masks of its own, but for the last two."""
    x = embed(model, batch).detach().requires_grad_()
    h = slope(run(model, batch, x)[0], x)
    r = epsilon * h / norms(h)
    g = weight_slopes(model, batch, Replay(), r)
    moves = [
        gamma * w.detach().norm() * s / s.norm().clamp(min=1e-30) for w, s in zip(model.parameters(), g, strict=True)
    ]
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for w, move in zip(moved.parameters(), moves, strict=True):
            w.add_(move)
    loss, _ = run(moved, batch, embed(moved, batch) + r)
    loss.backward()
    for w, there in zip(model.parameters(), moved.parameters(), strict=True):
        w.grad = there.grad
    return {"adversarial_adversarial_task": loss.detach()}


def momentum_sam(model, batch):
    """At the first step there is no momentum yet; tests/regularizers/test_weights.py has several steps."""
    return {"adversarial_task": run(model, batch, embed(model, batch))[0]}


def mixout(model, batch, rate):
    """Of what training begins with: the centre is another model's, which the test sets."""
    weights = list(model.parameters())
    drawn = torch.empty(1, sum(w.numel() for w in weights)).uniform_(-1, 1).add(1).div(2).flatten()
    mixed = {}
    for name, w in model.named_parameters():
        chosen, drawn = (drawn[: w.numel()] < rate).float().view_as(w), drawn[w.numel() :]
        mixed[name] = ((1 - chosen) * w + chosen * w.detach() - rate * w.detach()) / (1 - rate)
    names = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": batch["labels"]}
    return {"noisy_task": torch.func.functional_call(model, mixed, (), names).loss}


def l2_sp(model, batch, alpha):
    """At the first step the weights are the centre; tests/regularizers/test_weights.py has several steps."""
    task, _ = run(model, batch, embed(model, batch))
    return {"task": task, "distance": alpha * sum((w - w.detach()).square().sum() for w in model.parameters()) / 2}


def anchor(model, batch, alpha):
    task, logits = run(model, batch, embed(model, batch))
    with torch.no_grad():
        _, was = run(copy.deepcopy(model).eval(), batch, embed(model, batch))
    return {"task": task, "anchor": alpha * kl(was, logits)}


def noisy_tune(model, batch, amount):
    """One draw for all weights, in the order of `parameters()`."""
    weights = list(model.parameters())
    drawn = torch.empty(1, sum(w.numel() for w in weights)).uniform_(-1, 1).flatten()
    with torch.no_grad():
        for w in weights:
            noise, drawn = drawn[: w.numel()].view_as(w) / 2, drawn[w.numel() :]
            w.add_(noise * amount * w.std())
    return {"task": run(model, batch, embed(model, batch))[0]}


# -- the comparison --------------------------------------------------------------------------------------------------


def compare(expression, oracle, batch=None, dropout=0.1, tolerance=1e-4, **config):
    batch = tiny_batch(SIZE) if batch is None else batch
    ours, theirs = tiny_model(dropout=dropout, **config), tiny_model(dropout=dropout, **config)
    torch.manual_seed(11)
    losses = Regularization(parse(expression), ours).backward(batch)
    torch.manual_seed(11)
    expected = oracle(theirs, batch)
    if any(value.requires_grad for value in expected.values()):  # else the oracle made its own backwards
        sum(expected.values()).backward()
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(value.item(), rel=1e-4, abs=1e-7), name
    assert_same_gradients(gradients(ours), gradients(theirs), tolerance)


CASES = [
    ("plain", plain),
    ("ema(0.9)", plain),
    ("swa", plain),
    ("fgm(epsilon=0.5)", lambda m, b: fgm(m, b, 0.5)),
    ("fgsm(epsilon=0.05)", lambda m, b: fgsm(m, b, 0.05)),
    ("pgd(epsilon=0.5, step=0.2, steps=3)", lambda m, b: pgd(m, b, 0.5, 0.2, 3)),
    ("pgd(epsilon=0.3, step=0.2, steps=2, start=0.2)", lambda m, b: pgd(m, b, 0.3, 0.2, 2, 0.2)),
    ("freelb(epsilon=0.3, step=0.2, steps=3, start=0.2)", lambda m, b: freelb(m, b, 0.3, 0.2, 3, 0.2)),
    ("freelb(epsilon=0.3, step=0.2, steps=2, start=0)", lambda m, b: freelb(m, b, 0.3, 0.2, 2, 0)),
    ("neftune(epsilon=5)", lambda m, b: neftune(m, b, 5)),
    ("rdrop(alpha=3)", lambda m, b: rdrop(m, b, 3)),
    ("rdrop(alpha=3, passes=4)", lambda m, b: rdrop(m, b, 3, 4)),
    ("rat(epsilon=0.5, alpha=3)", lambda m, b: rat(m, b, (0.5, 0.5), 3)),
    ("rat(epsilon=0.5, alpha=3, passes=3)", lambda m, b: rat(m, b, (0.5,) * 3, 3)),
    ("rat(epsilons=(0.1, 0.9), alpha=3)", lambda m, b: rat(m, b, (0.1, 0.9), 3)),
    (
        "rat(epsilon=0.5, alpha=3, dropouts=(0.1, 0.4))",
        lambda m, b: rat_with_rates(m, b, 0.5, 3, (0.1, 0.4)),
    ),
    # The authors weigh a divergence summed over the batch by 0.5; a mean over it takes 0.5 times the batch size.
    (
        f"rat(epsilon=1.0, alpha={0.5 * SIZE}, scope='table')",
        lambda m, b: rat_of_the_authors(m, b, 1.0, 0.5),
    ),
    ("fraternal(alpha=2)", lambda m, b: fraternal(m, b, 2)),
    ("pi_model(alpha=9)", lambda m, b: pi_model(m, b, 9)),
    ("expectation_linear(alpha=2)", lambda m, b: expectation_linear(m, b, 2)),
    ("vat(epsilon=0.5, alpha=2, start=0.1)", lambda m, b: vat(m, b, 0.5, 2, 0.1)),
    ("vat(epsilon=0.5, alpha=2, start=0.1, steps=3)", lambda m, b: vat(m, b, 0.5, 2, 0.1, 3)),
    ("r3f(epsilon=0.1, alpha=2)", lambda m, b: r3f(m, b, 0.1, 2)),
    ("adversarial_dropout(rate=0.2, alpha=2)", lambda m, b: adversarial_dropout(m, b, 0.2, 2)),
    (
        "adversarial_dropout(rate=0.4, alpha=2, start_mask='random')",
        lambda m, b: adversarial_dropout(m, b, 0.4, 2, "random"),
    ),
    (
        "adversarial_dropout(rate=0.2, alpha=2, start_mask='base')",
        lambda m, b: adversarial_dropout(m, b, 0.2, 2, "base"),
    ),
    (
        "smart(epsilon=0.05, step=0.03, steps=2, start=0.02, alpha=2, mu=0.7)",
        lambda m, b: smart(m, b, copy.deepcopy(m).eval(), 0.05, 0.03, 2, 0.02, 2, 0.7),
    ),
    ("sam(epsilon=0.5)", lambda m, b: sam(m, b, 0.5)),
    ("sam(epsilon=0.1, norm='tensor')", lambda m, b: sam(m, b, 0.1, per_tensor=True)),
    ("asam(epsilon=0.5)", lambda m, b: asam(m, b, 0.5)),
    ("asam(epsilon=0.3, eta=0.1)", lambda m, b: asam(m, b, 0.3, 0.1)),
    ("awp(epsilon=0.05)", lambda m, b: awp(m, b, 0.05)),
    ("momentum_sam(epsilon=0.5)", momentum_sam),
    ("mixout(rate=0.7)", lambda m, b: mixout(m, b, 0.7)),
    ("l2_sp(alpha=2)", lambda m, b: l2_sp(m, b, 2)),
    ("anchor(alpha=2)", lambda m, b: anchor(m, b, 2)),
    ("noisy_tune(epsilon=0.5)", lambda m, b: noisy_tune(m, b, 0.5)),
    ("mean_teacher(alpha=9)", lambda m, b: mean_teacher(m, b, copy.deepcopy(m).eval(), 9)),
    (
        "mean_teacher(alpha=3, divergence='kl')",
        lambda m, b: mean_teacher(m, b, copy.deepcopy(m).eval(), 3, "kl"),
    ),
]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_an_oracle_a_row_and_is_exported(name):
    here = Path(__file__).relative_to(ROOT)
    written = {expression.partition("(")[0] for expression, _ in CASES}
    # A name for an expression has the oracles of those that it names.
    for own in set(re.findall(r"(\w+)\(", repr(RECIPES[name]()))):
        assert own in written, f"{own} has no oracle: write its equation by hand in {here} and add it to CASES"
    assert name in recipes.__all__, f"{name} is not in __all__ of hf_rat/regularizers/recipes.py"
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.search(r"^\| method \|.*\n(?:\|.*\n)+", page, re.MULTILINE)
    assert table, "README.md has no table that begins with | method |"
    assert re.search(rf"^\| \[?`{name}`", table[0], re.MULTILINE), f"{name} has no row in README.md's table"


def test_all_names_recipes():
    assert sorted(RECIPES) == recipes.__all__
    assert set(recipes.__all__) <= set(hf_rat.__all__)


@pytest.mark.parametrize(("expression", "oracle"), CASES, ids=[expression for expression, _ in CASES])
def test_loss_and_every_gradient_agree_with_the_equation(expression, oracle):
    compare(expression, oracle)


def test_awp_at_perturbed_inputs_agrees_with_the_equation():
    compare("awp(epsilon=0.05, inputs=0.5)", lambda m, b: awp_at_perturbed_inputs(m, b, 0.05, 0.5), dropout=0.0)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_snippets_pgd_is_pgd_in_the_scope_of_the_table(steps):
    """Without dropout: the snippet draws new masks for each attack, we replay the clean ones."""
    compare(
        f"pgd(epsilon=1.0, step=0.6, steps={steps}, scope='table')",
        lambda m, b: pgd_of_the_snippet(m, b, 1.0, 0.6, steps),
        dropout=0.0,
    )


def test_an_epsilon_per_pass_in_the_scope_of_the_table():
    """The table is moved by 0.5 in the first pass and by 2 in the second: two runs of the authors' scheme, no KL."""
    batch = tiny_batch(SIZE)
    losses = [
        Regularization(parse(f"rat(alpha=0, scope='table', {epsilons})"), tiny_model()).backward(batch)
        for epsilons in ("epsilons=(0.5, 2.0)", "epsilon=0.5", "epsilon=2.0")
    ]
    both, small, large = (float(found["adversarial_task"]) for found in losses)
    assert both == pytest.approx((small + large) / 2, rel=1e-5)
    assert small < large


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_rate_per_pass_reaches_attention(attention):
    compare(
        "rat(epsilon=0.5, alpha=3, passes=3, dropouts=(0.0, 0.2, 0.5))",
        lambda m, b: rat_with_rates(m, b, 0.5, 3, (0.0, 0.2, 0.5)),
        _attn_implementation=attention,
    )


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("recipe", ["rdrop", "rat"])
def test_every_consistency_loss(recipe, name):
    def oracle(model, batch):
        if recipe == "rdrop":
            return rdrop(model, batch, 2, divergence=PAIRS[name])
        return rat(model, batch, (1.0, 1.0), 2, PAIRS[name])

    size = "epsilon=1.0, " if recipe == "rat" else ""
    compare(f"{recipe}({size}alpha=2, divergence={name!r})", oracle, dropout=0.3)


def test_on_a_regression_the_passes_are_compared_by_squared_difference():
    batch = tiny_batch(SIZE, kind="regression")
    compare("rdrop(alpha=2)", lambda m, b: rdrop(m, b, 2, divergence=F.mse_loss), batch, labels=1)
    compare("rat(epsilon=0.5, alpha=2)", lambda m, b: rat(m, b, (0.5, 0.5), 2, F.mse_loss), batch, labels=1)


def test_with_several_labels_each_is_a_bernoulli():
    def bernoulli_bi_kl(z, w):
        p, q = torch.distributions.Bernoulli(logits=z), torch.distributions.Bernoulli(logits=w)
        both = torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)
        return both.mean() / 2

    batch = tiny_batch(SIZE, kind="multi")
    compare("rdrop(alpha=2)", lambda m, b: rdrop(m, b, 2, divergence=bernoulli_bi_kl), batch)
    compare("rat(epsilon=0.5, alpha=2)", lambda m, b: rat(m, b, (0.5, 0.5), 2, bernoulli_bi_kl), batch)


def test_token_labels_are_compared_where_they_count():
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=24, initializer_range=0.3, num_labels=3,
    )  # fmt: skip
    batch = tiny_batch(SIZE, kind="none")
    batch["labels"] = torch.where(batch["attention_mask"] == 1, batch["input_ids"] % 3, -100)
    batch["labels"][:, 0] = -100
    ours = BertForTokenClassification(config).train()
    theirs = copy.deepcopy(ours)
    torch.manual_seed(11)
    losses = Regularization(parse("rdrop(alpha=2)"), ours).backward(batch)
    torch.manual_seed(11)
    task, logits = run(theirs, batch, embed(theirs, batch, 2), 2)
    first, second = (z[batch["labels"] != -100] for z in logits.chunk(2))
    consistency = 2 * bi_kl(first, second)
    (task + consistency).backward()
    assert float(losses["task"]) == pytest.approx(task.item(), rel=1e-5)
    assert float(losses["consistency"]) == pytest.approx(consistency.item(), rel=1e-4)
    assert_same_gradients(gradients(ours), gradients(theirs))


def test_the_authors_weight_converts_by_the_batch_size_whatever_it_is():
    for size in (2, 6):
        compare(
            f"rat(epsilon=0.7, alpha={0.5 * size}, scope='table')",
            lambda m, b: rat_of_the_authors(m, b, 0.7, 0.5),
            tiny_batch(size),
        )


SMART = {"epsilon": 0.05, "step": 0.03, "steps": 2, "start": 0.02, "alpha": 2.0, "mu": 0.7}
AVERAGED = {"smart": (smart, SMART), "mean_teacher": (mean_teacher, {"alpha": 9.0})}


@pytest.mark.parametrize("name", AVERAGED)
def test_the_model_stays_near_its_average_over_several_steps(name):
    batches, (oracle, settings) = [tiny_batch(SIZE, seed=seed) for seed in range(3)], AVERAGED[name]
    ours, theirs = tiny_model(dropout=0.1), tiny_model(dropout=0.1)
    arguments = ", ".join(f"{name}={value}" for name, value in settings.items())
    regularization = Regularization(parse(f"{name}({arguments}, beta=0.8)"), ours)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (ours, theirs)]
    average = copy.deepcopy(theirs).eval()
    for step, batch in enumerate(batches):
        torch.manual_seed(step)
        losses = regularization.backward(batch, step=step)
        torch.manual_seed(step)
        expected = oracle(theirs, batch, average, **settings)
        sum(expected.values()).backward()
        assert losses.keys() == expected.keys()
        for name, value in expected.items():
            assert float(losses[name]) == pytest.approx(value.item(), rel=1e-3, abs=1e-6), name
        assert (float(losses["proximal"]) > 1e-4) or step == 0
        assert_same_gradients(gradients(ours), gradients(theirs), 1e-3)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        regularization.after_step()
        with torch.no_grad():
            for old, new in zip(average.parameters(), theirs.parameters(), strict=True):
                old.copy_(0.8 * old + 0.2 * new)


def test_smart_without_its_weight_on_the_average_asks_no_average():
    regularization = Regularization(parse("smart(mu=0)"), tiny_model(dropout=0.1))
    assert regularization.teacher is None
    assert regularization.backward(tiny_batch()).keys() == {"task", "smoothness"}


def test_the_direction_of_vat_is_that_of_the_fisher_matrix_times_the_start():
    """For a small start d, the gradient of KL(p(x) || p(x + d)) is J'(diag p - p p')J d, J the logits' Jacobian."""
    model, batch = tiny_model(dropout=0.0).double(), tiny_batch(SIZE)
    regularization = Regularization(parse("vat(epsilon=0.3, start=0.001)"), model)
    moves = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: moves.append((output - module.weight[args[0]]).detach())
    )
    regularization.backward(batch)
    hook.remove()
    regularization.close()
    clean, start, found = moves[-3:]  # the model is looked at before
    assert not clean.any()
    torch.testing.assert_close(norms(start).flatten(), torch.full((SIZE,), 0.001).double(), rtol=1e-3, atol=0)

    x = embed(model, batch).detach().requires_grad_()
    p = (z := run(model, batch, x)[1]).softmax(-1).detach()
    jacobian = torch.stack([slope(z[:, c].sum(), x) for c in range(z.shape[1])], 1).flatten(2)  # (batch, class, x)
    fisher = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    direction = torch.einsum("bcx,bcd,bdy,by->bx", jacobian, fisher, jacobian, start.flatten(1))
    cosine = F.cosine_similarity(found.flatten(1), direction)
    assert (cosine > 0.99).all(), cosine
    torch.testing.assert_close(norms(found).flatten(), torch.full((SIZE,), 0.3).double(), rtol=1e-5, atol=0)
