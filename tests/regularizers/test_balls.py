"""Balls: the farthest point is inside and beats random ones, projection is idempotent, bad slopes move nothing."""

import math

import pytest
import torch
from scipy.stats import kstest
from tiny import tiny_batch
from torch import nn

from hf_rat.passes.sites.geometry import Geometry
from hf_rat.regularizers.balls import L2, Hamming, Linf

DIM = 5
NORM = 3.0  # of the embeddings: what unit="embedding" multiplies by


def a_place(size=4, length=7, padding_idx=0):
    batch = tiny_batch(size, length)
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    ids[:, 1] = ids[0, 1]  # one more token that repeats, within and across examples
    ids[0, 2] = ids[0, 1]
    return Geometry((size, length, DIM), ids.device, mask, ids, padding_idx, NORM)


def a_slope(geometry, seed=1):
    """A slope as a model gives one: nothing on padding."""
    return geometry.masked(torch.randn(geometry.shape, generator=torch.Generator().manual_seed(seed)))


def size_of(ball, move, geometry):
    """How far out a move is, one number per norm that the ball takes."""
    if isinstance(ball, Linf):
        return move.abs().flatten(1).amax(1)
    if ball.scope == "example":
        return move.flatten(1).norm(dim=1)
    rows = {}
    for i, t in geometry.mask.nonzero().tolist():
        row = rows.setdefault(int(geometry.ids[i, t]), move[i, t])
        assert torch.equal(row, move[i, t]), "two occurrences of a token moved apart"
    return torch.stack(list(rows.values())).norm().view(1)


EMBEDDING_BALLS = [
    L2(0.7),
    L2(0.7, scope="table"),
    L2(0.2, unit="embedding"),
    L2(0.2, scope="table", unit="embedding"),
    Linf(0.1),
    Linf(0.1, unit="embedding"),
]


def radius_of(ball):
    """The radius in absolute terms, from the documentation of the units."""
    if ball.unit == "absolute":
        return ball.radius
    return ball.radius * NORM / (math.sqrt(DIM) if isinstance(ball, Linf) else 1)


@pytest.mark.parametrize("ball", EMBEDDING_BALLS, ids=repr)
def test_the_farthest_point_is_on_the_ball_and_beats_1000_random_points(ball):
    geometry = a_place()
    slope = a_slope(geometry)
    best = ball.farthest(slope, geometry)
    torch.testing.assert_close(
        size_of(ball, best, geometry), torch.full_like(size_of(ball, best, geometry), radius_of(ball))
    )
    per_example = getattr(ball, "scope", "example") == "example"

    def worth(move):
        return (slope * move).flatten(1).sum(1) if per_example else (slope * move).sum().view(1)

    for _ in range(1000):
        x = torch.randn(geometry.shape)
        if not per_example:
            x = torch.randn(60, DIM)[geometry.ids] * (geometry.ids != 0).unsqueeze(-1)
        move = x * (radius_of(ball) / size_of(ball, x, geometry)).view(-1, *([1, 1] if per_example else []))
        assert (worth(best) >= worth(move) - 1e-6).all()


@pytest.mark.parametrize("ball", EMBEDDING_BALLS, ids=repr)
def test_a_step_uphill_has_length_one_in_the_balls_norm(ball):
    geometry = a_place()
    sizes = size_of(ball, ball.uphill(a_slope(geometry), geometry), geometry)
    torch.testing.assert_close(sizes, torch.ones_like(sizes))


@pytest.mark.parametrize("ball", EMBEDDING_BALLS, ids=repr)
@pytest.mark.parametrize("length", [0.01, 100.0])
def test_projection_lands_inside_moves_nothing_inside_and_is_idempotent(ball, length):
    geometry = a_place()
    far = length * ball.uphill(a_slope(geometry), geometry)
    inside = ball.project(far, geometry)
    assert (size_of(ball, inside, geometry) <= radius_of(ball) * (1 + 1e-5)).all()
    torch.testing.assert_close(ball.project(inside, geometry), inside)
    if length < radius_of(ball):
        torch.testing.assert_close(inside, far)
    else:
        assert (size_of(ball, inside, geometry) > 0.99 * radius_of(ball)).all()


@pytest.mark.parametrize("ball", EMBEDDING_BALLS[:1] + EMBEDDING_BALLS[4:5], ids=repr)
def test_the_projection_is_the_nearest_point_of_the_ball(ball):
    geometry = a_place()
    x = torch.randn(geometry.shape)
    nearest = (x - ball.project(x, geometry)).flatten(1).norm(dim=1)
    for _ in range(200):
        other = ball.project(torch.randn(geometry.shape), geometry)
        assert ((x - other).flatten(1).norm(dim=1) >= nearest - 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ball", EMBEDDING_BALLS, ids=repr)
def test_moves_are_fp32_whatever_the_slope(ball, dtype):
    geometry = a_place()
    assert ball.farthest(a_slope(geometry).to(dtype), geometry).dtype == torch.float32


@pytest.mark.parametrize("factor", [1e-30, 1e-37, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("ball", EMBEDDING_BALLS, ids=repr)
def test_the_length_of_the_slope_does_not_matter_however_small_or_large(ball, factor):
    geometry = a_place()
    slope = a_slope(geometry)
    torch.testing.assert_close(ball.farthest(slope * factor, geometry), ball.farthest(slope, geometry))
    torch.testing.assert_close(ball.uphill(slope * factor, geometry), ball.uphill(slope, geometry))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 0.0])
@pytest.mark.parametrize("ball", EMBEDDING_BALLS, ids=repr)
def test_a_zero_or_non_finite_slope_moves_nothing_and_never_makes_a_nan(ball, bad):
    geometry = a_place()
    slope = a_slope(geometry)
    if bad == 0.0:
        slope[1] = 0.0
    else:
        slope[1, 1, 2] = bad
    for move in (ball.farthest(slope, geometry), ball.uphill(slope, geometry)):
        assert torch.isfinite(move).all()
        if getattr(ball, "scope", "example") == "table":
            assert bad == 0.0 or not move.any()  # one norm over the batch: nobody moves
        else:
            assert not move[1].any()  # an example moves as a whole or not at all
            assert move[0].any()
            assert move[2].any()
    nothing = ball.farthest(torch.zeros(geometry.shape), geometry)
    assert not nothing.any()
    assert not ball.project(nothing, geometry).any()


def test_several_radii_give_one_move_per_pass():
    geometry = a_place()
    slope = a_slope(geometry)
    moves = L2((0.5, 2.0, 0.0)).farthest(slope, geometry)
    assert moves.shape == (3, *geometry.shape)
    for move, radius in zip(moves, (0.5, 2.0, 0.0), strict=True):
        torch.testing.assert_close(move, L2(radius).farthest(slope, geometry))


# -- the embedding table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_idx", [0, None])
def test_table_scope_is_the_gradient_of_a_real_embedding_table(padding_idx):
    """Fast gradient method on an nn.Embedding, as everyone writes it: E.grad / ||E.grad||_F, looked up again."""
    geometry = a_place(padding_idx=padding_idx)
    table = nn.Embedding(60, DIM, padding_idx=padding_idx)
    looked_up = table(geometry.ids)
    weights = torch.randn(geometry.shape)
    (looked_up * weights).tanh().sum().backward()
    expected = (0.7 * table.weight.grad / table.weight.grad.norm())[geometry.ids]
    if padding_idx is not None:
        assert not expected[~geometry.mask].any()

    leaf = looked_up.detach().requires_grad_()
    (slope,) = torch.autograd.grad((leaf * weights).tanh().sum(), leaf)
    torch.testing.assert_close(L2(0.7, scope="table").farthest(slope, geometry), expected)


def test_table_scope_projects_the_whole_table_at_once():
    geometry = a_place()
    table = torch.randn(60, DIM)
    table[0] = 0
    used = torch.unique(geometry.ids[geometry.mask])
    expected = table * (0.5 / table[used].norm())
    torch.testing.assert_close(L2(0.5, scope="table").project(table[geometry.ids], geometry), expected[geometry.ids])


def test_table_scope_without_token_ids_is_refused():
    geometry = Geometry((2, 3, DIM), torch.device("cpu"))
    with pytest.raises(ValueError, match='scope="table" needs the ids of a look-up'):
        L2(1.0, scope="table").farthest(torch.ones(geometry.shape), geometry)


# -- noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize("ball", EMBEDDING_BALLS, ids=repr)
def test_noise_never_touches_padding_and_is_on_every_token(ball, kind):
    geometry = a_place()
    noise = ball.noise(0.3, geometry, kind)
    assert noise.dtype == torch.float32
    assert not noise[~geometry.mask].any()
    assert (noise[geometry.mask].abs().amax(-1) > 0).all()


def test_the_start_of_freelb_is_uniform_and_scaled_by_the_unpadded_entries():
    """U(-1, 1) * size / sqrt(tokens * dim) for each example, tokens without padding."""
    geometry = a_place()
    draws = torch.stack([L2(1.0).noise(0.6, geometry) for _ in range(300)])
    for row, mask in enumerate(geometry.mask):
        bound = 0.6 / math.sqrt(int(mask.sum()) * DIM)
        entries = draws[:, row, mask].flatten() / bound
        assert entries.abs().max() <= 1 + 1e-6
        assert kstest(entries.numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3


def test_the_expected_length_of_uniform_noise_is_its_size_over_the_root_of_three():
    geometry = a_place(size=4, length=20)
    lengths = torch.stack([L2(1.0).noise(0.6, geometry).flatten(1).norm(dim=1) for _ in range(100)])
    torch.testing.assert_close(lengths.mean(0), torch.full((4,), 0.6 / math.sqrt(3)), rtol=0.03, atol=0)


def test_noise_on_the_table_moves_all_occurrences_alike_and_counts_the_rows_in_use():
    geometry = a_place()
    draws = [L2(1.0, scope="table").noise(0.6, geometry) for _ in range(300)]
    rows = len(torch.unique(geometry.ids[geometry.mask]))
    bound = 0.6 / math.sqrt(rows * DIM)
    sizes = torch.stack([size_of(L2(1.0, scope="table"), draw, geometry) for draw in draws])
    assert 0.98 * bound < max(float(draw.abs().max()) for draw in draws) <= bound * (1 + 1e-6)
    assert float(sizes.square().mean().sqrt()) == pytest.approx(0.6 / math.sqrt(3), rel=0.03)


def test_noise_in_a_box_is_uniform_up_to_its_size():
    geometry = a_place()
    entries = torch.stack([Linf(9.0).noise(1e-5, geometry)[geometry.mask] for _ in range(50)]).flatten() / 1e-5
    assert kstest(entries.numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3


def test_normal_noise_in_a_box_has_its_size_as_standard_deviation():
    geometry = a_place()
    entries = torch.stack([Linf(9.0).noise(0.1, geometry, "normal")[geometry.mask] for _ in range(50)]).flatten() / 0.1
    assert kstest(entries.numpy(), "norm").pvalue > 1e-3


def test_a_random_direction_has_length_one_and_spares_padding():
    geometry = a_place()
    direction = L2(5.0).random_direction(geometry)
    torch.testing.assert_close(direction.flatten(1).norm(dim=1), torch.ones(4))
    assert not direction[~geometry.mask].any()


@pytest.mark.parametrize("ball", EMBEDDING_BALLS[:1] + EMBEDDING_BALLS[4:5], ids=repr)
def test_an_example_of_padding_alone_gets_no_noise_and_no_nan(ball):
    geometry = a_place()
    geometry.mask[2] = False
    for move in (ball.noise(0.5, geometry), ball.noise(0.5, geometry, "normal")):
        assert torch.isfinite(move).all()
        assert not move[2].any()
    if isinstance(ball, L2):
        assert torch.isfinite(ball.random_direction(geometry)).all()


def test_units_of_embeddings_scale_noise_and_steps_like_the_radius():
    geometry = a_place()
    for ball, factor in (
        (L2(1.0, unit="embedding"), NORM),
        (L2(1.0, scope="table", unit="embedding"), NORM),
        (Linf(1.0, unit="embedding"), NORM / math.sqrt(DIM)),
    ):
        assert ball.length(2.0, geometry) == pytest.approx(2.0 * factor)
        absolute = type(ball)(1.0, **({"scope": ball.scope} if isinstance(ball, L2) else {}))
        torch.manual_seed(1)
        relative_noise = ball.noise(0.5, geometry)
        torch.manual_seed(1)
        torch.testing.assert_close(relative_noise, factor * absolute.noise(0.5, geometry))


# -- flips -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "units", "count"),
    [(0.03, 100, 3), (0.05, 384, 19), (0.05, 19, 0), (0.05, 20, 1), (0.0, 50, 0), (0.29, 100, 29), (0.999, 10, 9)],
)
def test_the_number_of_flips_is_the_floor_of_rate_times_units(rate, units, count):
    assert Hamming(rate).flips(units) == count
    slope = -torch.rand(3, units) - 0.1  # every unit gains by going off
    move = Hamming(rate).farthest(slope, Geometry((3, units), slope.device))
    assert (move == -1).sum(1).tolist() == [count] * 3
    assert set(move.unique().tolist()) <= {-1.0, 0.0}


def test_the_best_mask_beats_1000_random_masks_and_never_pays_for_a_flip():
    slope = torch.randn(6, 40)
    geometry = Geometry((6, 40), slope.device)
    best = Hamming(0.2).farthest(slope, geometry)
    assert ((best == -1).sum(1) <= 8).all()
    assert (slope[best == -1] < 0).all()
    for _ in range(1000):
        off = torch.rand(6, 40).argsort(1) < torch.randint(9, (6, 1))
        assert ((slope * best).sum(1) >= (slope * -off.float()).sum(1) - 1e-6).all()


def test_no_gain_no_flip_even_where_flips_are_left():
    slope = torch.tensor([[1.0, 2.0, -3.0, 0.5]])
    move = Hamming(0.75).farthest(slope, Geometry((1, 4), slope.device))
    assert move.tolist() == [[0, 0, -1, 0]]


def test_a_unit_that_is_off_at_the_start_comes_back_on_where_that_gains():
    slope = torch.tensor([[1.0, -1.0, -2.0, 3.0]])
    start = torch.tensor([[-1.0, -1.0, 0.0, 0.0]])
    move = Hamming(0.5).farthest(slope, Geometry((1, 4), slope.device), start)
    assert move.tolist() == [[0, -1, -1, 0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [slice(None), 3])
def test_a_bad_slope_flips_nothing(bad, where):
    slope = torch.randn(3, 20)
    slope[1, where] = bad
    slope[2] = 0.0
    start = torch.zeros(3, 20)
    start[2, 4] = -1.0
    move = Hamming(0.2).farthest(slope, Geometry((3, 20), slope.device), start)
    assert set(move.unique().tolist()) <= {-1.0, 0.0}
    assert not move[1].any()
    assert torch.equal(move[2], start[2])  # the slope says nothing: stay where the search began
