"""What models answer, and under attacks: against equations by hand, on a module that no list of ours can know."""

import copy

import numpy as np
import pytest
import torch
from bag import DIM, WORDS, Bag
from tiny import tiny_batch, tiny_model
from torch.nn import functional as F

from hf_rat.analysis.answers import answers_of
from hf_rat.analysis.attacks import ATTACKS, attacked
from hf_rat.passes.sites import EMBEDDINGS


def bags(sizes=(5, 3), real=False):
    generator = torch.Generator().manual_seed(1)
    found = []
    for size in sizes:
        mask = torch.ones(size, 7, dtype=torch.int64)
        mask[0, 4:] = 0
        ids = torch.randint(0, WORDS, (size, 7), generator=generator)
        labels = torch.randn(size, generator=generator) if real else torch.randint(0, 2, (size,), generator=generator)
        found.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return found


def by_hand(model, batch, move=None):
    """Losses (n,) of a bag of words whose vectors are moved, in float64."""
    x = model.words.weight.detach().double()[batch["input_ids"]] + (0 if move is None else move)
    mask = batch["attention_mask"].unsqueeze(-1).double()
    logits = (x * mask).sum(1) / mask.sum(
        1
    ) @ model.head.weight.detach().double().T + model.head.bias.detach().double()
    return F.cross_entropy(logits, batch["labels"], reduction="none"), logits


def fgm_by_hand(model, batch, radius):
    """The move by the gradient's formula: each token's is W^T (p - y) / tokens."""
    _, logits = by_hand(model, batch)
    wrong = logits.softmax(-1) - F.one_hot(batch["labels"], logits.shape[-1])
    mask = batch["attention_mask"].unsqueeze(-1).double()
    slope = (wrong @ model.head.weight.detach().double()).unsqueeze(1) * mask / mask.sum(1, keepdim=True)
    length = (model.words.weight.detach().double()[batch["input_ids"]] * mask).flatten(1).norm(dim=1)
    return (radius * length / slope.flatten(1).norm(dim=1)).view(-1, 1, 1) * slope


def state_of(model):
    return {
        "weights": {name: x.clone() for name, x in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "random": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
    }


def assert_untouched(model, before):
    after = state_of(model)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_answers_are_those_by_hand():
    model, batches = Bag(), bags()
    (found,) = answers_of(model, batches)
    losses, logits = zip(*(by_hand(model, batch) for batch in batches), strict=True)
    np.testing.assert_allclose(found.losses, torch.cat(losses), rtol=1e-5)
    labels = torch.cat([batch["labels"] for batch in batches])
    assert (found.right == (torch.cat(logits).argmax(-1) == labels).numpy()).all()


def hinge(logits, labels):
    """A user's loss, which no list of ours has."""
    own = logits.gather(1, labels[:, None])
    return (1 + logits - own).clamp(min=0).sum(1).mean() - 1


def test_a_loss_of_the_users_is_each_examples_own():
    model, batches = Bag(3, hinge), bags()
    (found,) = answers_of(model, batches)
    wanted = [
        hinge(by_hand(model, batch)[1][[row]], batch["labels"][[row]])
        for batch in batches
        for row in range(len(batch["labels"]))
    ]
    np.testing.assert_allclose(found.losses, torch.stack(wanted), rtol=1e-5)
    small, large = attacked(model, batches, "fgm", [1e-4, 0.5])
    assert (small.losses >= found.losses - 1e-6).all()  # the loss is convex in the word vectors
    assert large.losses.mean() > found.losses.mean()


@pytest.mark.parametrize("radius", [1e-3, 0.3, 2.0])
def test_fgm_is_the_formula(radius):
    model, batches = Bag(), bags()
    (found,) = attacked(model, batches, "fgm", [radius])
    moved = [by_hand(model, batch, fgm_by_hand(model, batch, radius))[0] for batch in batches]
    np.testing.assert_allclose(found.losses, torch.cat(moved), rtol=1e-4)


def test_an_attack_on_a_linear_model_never_lowers_the_loss():
    """It is convex in the word vectors, so no step along its slope can."""
    model, batches = Bag(), bags((8, 8))
    (clean,) = answers_of(model, batches)
    for attack in ("fgm", "pgd"):
        found = attacked(model, batches, attack, [1e-4, 1e-2, 0.1, 1.0])
        assert all((one.losses >= clean.losses - 1e-6).all() for one in found)
        means = [clean.losses.mean(), *(one.losses.mean() for one in found)]
        assert means == sorted(means)
    # With two classes the slope has one direction everywhere: the steps of PGD end where FGM's one does.
    pgd, fgm = (attacked(model, batches, attack, [0.2])[0].losses for attack in ("pgd", "fgm"))
    np.testing.assert_allclose(pgd, fgm, rtol=1e-4)


@pytest.mark.parametrize("attack", ["fgm", "pgd"])
def test_attacks_stay_in_the_ball_and_off_the_padding(attack):
    seen = []
    model, batches = Bag(3, seen=seen), bags((4,))
    radii = [0.01, 0.1, 0.7]
    attacked(model, batches, attack, radii, steps=7 if attack == "pgd" else None)
    (batch,) = batches
    own = model.words.weight.detach()[batch["input_ids"]]
    mask = batch["attention_mask"].unsqueeze(-1)
    length = (own * mask).flatten(1).norm(dim=1)
    ends = seen[-len(radii) :]  # the model is asked at the ends when all of them are found
    for radius, end in zip(radii, ends, strict=True):
        move = end - own
        assert (move * (1 - mask)).abs().max() == 0
        shares = move.flatten(1).norm(dim=1) / length
        assert (shares <= radius * (1 + 1e-4)).all()
        assert (shares > 0.9 * radius).all()


def test_random_masks_have_so_many_units_off_and_nest():
    read = []
    model, batches = Bag(), bags((6,))
    model.head.register_forward_hook(lambda module, args, output: read.append(args[0].detach().clone()))
    attacked(model, batches, "random_masks", [0.2, 0.5, 0.9], seed=4)
    off = [x == 0 for x in read[-3:]]
    assert [mask.sum(1).unique().tolist() for mask in off] == [[1], [3], [5]]  # floor(rate * 6)
    assert (off[0] <= off[1]).all()
    assert (off[1] <= off[2]).all()
    own = (by_hand_pooled(model, batches[0]) * 6 / 3)[~off[1]]
    torch.testing.assert_close(read[-2][~off[1]], own)
    again = attacked(model, batches, "random_masks", [0.5], seed=4)[0].losses
    assert (again == attacked(model, batches, "random_masks", [0.5], seed=4)[0].losses).all()
    assert (again != attacked(model, batches, "random_masks", [0.5], seed=5)[0].losses).any()


def by_hand_pooled(model, batch):
    mask = batch["attention_mask"].unsqueeze(-1).float()
    return (model.words.weight.detach()[batch["input_ids"]] * mask).sum(1) / mask.sum(1)


def test_adversarial_masks_are_among_the_worst():
    """Of one unit, all masks can be tried."""
    model, (batch,) = Bag(), bags((12,))
    (found,) = attacked(model, [batch], "adversarial_masks", [0.17])
    pooled, tried = by_hand_pooled(model, batch), []
    for unit in [None, *range(DIM)]:
        mask = torch.ones(DIM) if unit is None else (torch.arange(DIM) != unit) * DIM / (DIM - 1)
        tried.append(F.cross_entropy(model.head(pooled * mask), batch["labels"], reduction="none").detach())
    tried = torch.stack(tried).numpy()
    assert np.isclose(found.losses, tried, rtol=1e-4).any(0).all()
    assert (np.isclose(found.losses, tried.max(0), rtol=1e-4)).mean() > 0.7
    assert found.losses.mean() > tried.mean() + 0.5 * (tried.max(0).mean() - tried.mean())


def test_a_regression_has_no_accuracy():
    model, batches = Bag(1, F.mse_loss), bags(real=True)
    (found,) = answers_of(model, batches)
    assert found.right is None
    wanted = []
    for batch in batches:
        x = by_hand_pooled(model, batch).double()
        values = (x @ model.head.weight.detach().double().T + model.head.bias.detach().double()).squeeze(-1)
        wanted.append((values - batch["labels"]).square())
    np.testing.assert_allclose(found.losses, torch.cat(wanted), rtol=1e-4, atol=1e-7)
    (small,) = attacked(model, batches, "fgm", [1e-3])
    assert (small.losses >= found.losses - 1e-7).all()
    assert small.losses.mean() > found.losses.mean()


@pytest.mark.parametrize("family", ["bert", "gpt2", "textcnn", "han"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_the_model_stays_as_it_was(family, attack):
    model, batches = tiny_model(family, dropout=0.2), [tiny_batch(4), tiny_batch(3, seed=1)]
    model.eval()
    next(model.children()).train()  # a mixture of modes
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    before = state_of(model)
    (clean,), (found,) = answers_of(model, batches), attacked(model, batches, attack, [0.4])
    assert_untouched(model, before)
    assert clean.losses.shape == found.losses.shape == (7,)
    loss = F.cross_entropy(copy.deepcopy(model).eval()(**batches[0]).logits, batches[0]["labels"])
    assert clean.losses[:4].mean() == pytest.approx(float(loss.detach()), rel=1e-5)
    if attack != "random_masks":
        assert found.losses.mean() > clean.losses.mean()


def test_the_model_stays_as_it_was_after_an_exception():
    model, batches = tiny_model(dropout=0.2), [tiny_batch()]
    before = state_of(model)

    def find(batch, index):
        torch.rand(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answers_of(model, batches, find, EMBEDDINGS)
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: attacked(Bag(), bags(), "hotflip", [0.1]), "'hotflip' is not known; there are fgm"),
        (lambda: attacked(Bag(), bags(), "pgd", [0.0]), "pgd of size 0.0: a radius above 0"),
        (lambda: attacked(Bag(), bags(), "random_masks", [1.0]), r"a rate in \(0, 1\)"),
        (
            lambda: attacked(Bag(), bags(), "pgd", [0.1], steps=0),
            "steps=0 of pgd: pgd and adversarial_masks take at least 1",
        ),
        (lambda: attacked(Bag(), bags(), "fgm", [0.1], steps=3), "steps=3 of fgm"),
        (lambda: answers_of(Bag(), []), "batches=\\[\\]"),
        (lambda: answers_of(Bag(), [{k: v for k, v in bags()[0].items() if k != "labels"}]), "labels are needed"),
        (
            lambda: answers_of(tiny_model(problem_type="multi_label_classification"), [tiny_batch(kind="multi")]),
            "multi_label",
        ),
    ],
)
def test_what_cannot_be(make, said):
    with pytest.raises(ValueError, match=said):
        make()
