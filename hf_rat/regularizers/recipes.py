"""Every published method in one expression, with its card as the docstring.

Arguments mean the same everywhere: `epsilon` radius of the ball, `step` length of an ascent step, `steps` how many,
`start` size of the random start, `alpha` weight of the regularizing part, `rate` fraction of units flipped, `passes`
dropout passes, `scope` what a norm is taken over, `unit` what epsilon, step and start are measured in ("absolute", as
in the papers; "embedding" multiplies them by the mean norm of the model's embeddings), `divergence` one of
ce, mae, mse, kl, reverse_kl, js, bi_kl, logit_mse, `site` where the perturbation enters: "embeddings" (the word
embeddings, in an encoder-decoder those of the encoder), "decoder_embeddings", or the name of any module, whose output
is then moved, for instance "vit.embeddings"; adversarial_dropout has sites of its own. Every recipe but `plain` has
`begin`: before this optimizer step training is plain. Those with a clean task loss (all but `freelb` and `neftune`)
also have `warmup`: over so many steps after `begin` the regularizing part grows linearly to its full weight.

Every divergence is a mean over examples (over unmasked positions for token-level outputs), so alpha does not change
with the batch size; each card says how to convert the paper's alpha and that of the official code.
Costs are in passes over the batch: "2F + 2B" is two forwards and two backwards, S a traversal that computes the slope
at the perturbation only.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec

from hf_rat.passes.sites import DECODER_EMBEDDINGS, EMBEDDINGS, LOGITS_INPUT, RECURRENT
from hf_rat.regularizers.balls import L2, SCOPES, UNITS, Hamming, Linf
from hf_rat.regularizers.divergences import NAMES
from hf_rat.regularizers.perturbations import START_MASKS, Ascent, Dropped, Flip, Gradient, Noise, Redrawn
from hf_rat.regularizers.terms import (
    Adversarial,
    Consistency,
    Proximal,
    Scheduled,
    Smoothness,
    TaskLoss,
    Term,
)

P = ParamSpec("P")

MASK_SITES = {"logits": LOGITS_INPUT, "recurrent": RECURRENT}
BASES = ("ones", "random")

RECIPES: dict[str, Callable[..., Term]] = {}


@dataclass(frozen=True, repr=False)
class Recipe(Term):
    """A term that remembers the call that made it: its repr is that call."""

    name: str
    arguments: tuple[tuple[str, Any], ...]
    body: Term

    def parts(self, step: int) -> Any:
        return self.body.parts(step)

    def __repr__(self) -> str:
        silent = {"begin": 0, "warmup": 0, "site": EMBEDDINGS}
        shown = (f"{name}={value!r}" for name, value in self.arguments if value != silent.get(name))
        return f"{self.name}({', '.join(shown)})"


def recipe(build: Callable[P, Term]) -> Callable[P, Recipe]:
    """A recipe checks its arguments, obeys `begin` and `warmup`, remembers how it was called, and can be named."""
    signature = inspect.signature(build)

    @functools.wraps(build)
    def call(*args: P.args, **kwargs: P.kwargs) -> Recipe:
        unknown = [name for name in kwargs if name not in signature.parameters]
        if unknown:
            raise ValueError(unknown_argument(build.__name__, unknown[0]))
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {name: _checked(build.__name__, name, value) for name, value in bound.arguments.items()}
        body = build(**arguments)  # type: ignore[call-arg]
        if arguments.get("begin") or arguments.get("warmup"):
            body = Scheduled(body, arguments["begin"], arguments.get("warmup", 0))
        return Recipe(build.__name__, tuple(arguments.items()), body)

    RECIPES[build.__name__] = call
    return call


def unknown_argument(recipe_name: str, argument: str) -> str:
    """The message for an argument that a recipe does not have."""
    known = list(inspect.signature(RECIPES[recipe_name]).parameters)
    near = difflib.get_close_matches(argument, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{recipe_name} has no argument {argument!r}{hint} (it has: {', '.join(known) or 'none'})"


def _number(low: float, high: float = math.inf, open_high: bool = False) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if ok and low <= value and (value < high if open_high else value <= high):
            return None
        return f"a finite number of at least {low:g}" + ("" if high == math.inf else f" and below {high:g}")

    return check


def _whole(low: int) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        ok = isinstance(value, int) and not isinstance(value, bool) and value >= low
        return None if ok else f"a whole number of at least {low}"

    return check


def _choice(names: tuple[str, ...]) -> Callable[[Any], str | None]:
    return lambda value: None if value in names else f"one of {', '.join(names)}"


def _yes_or_no(value: Any) -> str | None:
    return None if isinstance(value, bool) else "True or False"


def _place_name(value: Any) -> str | None:
    if isinstance(value, str) and re.fullmatch(r"[\w.]+", value):
        return None
    return f'"{EMBEDDINGS}", "{DECODER_EMBEDDINGS}" or the name of a module'


def _several(check: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    def each(value: Any) -> str | None:
        if value is None or (isinstance(value, tuple) and value and not any(check(item) for item in value)):
            return None
        return f"a tuple, one value per pass, each {check(None)}"

    return each


CHECKS: dict[str, Callable[[Any], str | None]] = {
    "epsilon": _number(0),
    "step": _number(0),
    "start": _number(0),
    "alpha": _number(0),
    "mu": _number(0),
    "rate": _number(0, 1, open_high=True),
    "beta": _number(0, 1, open_high=True),
    "steps": _whole(1),
    "passes": _whole(2),
    "begin": _whole(0),
    "warmup": _whole(0),
    "scope": _choice(SCOPES),
    "unit": _choice(UNITS),
    "start_mask": _choice(START_MASKS),
    "site": _place_name,
    "base": _choice(BASES),
    "fixed": _yes_or_no,
    "divergence": _choice(tuple(NAMES)),
    "epsilons": _several(_number(0)),
    "dropouts": _several(_number(0, 1, open_high=True)),
}


def _checked(recipe_name: str, name: str, value: Any) -> Any:
    value = tuple(_plain_number(item) for item in value) if isinstance(value, (list, tuple)) else _plain_number(value)
    expected = CHECKS[name](value)
    if expected:
        raise ValueError(f"{recipe_name}({name}={value!r}): {name} must be {expected}")
    return value


def _plain_number(value: Any) -> Any:
    """numpy's float64 is a float, but its repr is no literal."""
    return float(value) if isinstance(value, float) else value


# -- the task loss alone, or at one other point ----------------------------------------------------------------------


@recipe
def plain() -> Term:
    """The task loss and nothing else.

    L = L(x). Cost: 1F + 1B.
    """
    return TaskLoss()


@recipe
def fgm(
    epsilon: float = 0.1,
    scope: str = "example",
    unit: str = "absolute",
    site: str = EMBEDDINGS,
    begin: int = 0,
    warmup: int = 0,
) -> Term:
    """Fast gradient method, the adversarial training of Miyato et al.

    L = L(x) + L(x + r),  r = epsilon g / ||g||_2,  g = dL(x)/dx, x the word embeddings of one example.

    Arguments: epsilon: 0.1 by our measurement from scratch (results/defaults), 0.02 was better for a pretrained MiniLM
        (results/fine_tuning/rte); paper 5.0 on frequency-normalised embeddings; snippets 1.0, the table's scope.
        scope: "example" is the paper; "table" is the snippets' (and the R-AT authors') FGM, one norm over the
        micro-batch's gradient of the embedding table.
    Relations: pgd(steps=1, step=epsilon) is fgm; rat without its second pass and divergence is fgm; epsilon=0 adds a
        second task loss under other dropout masks.
    Cost: 2F + 2B; the slope comes with the clean backward.
    Reference: Miyato, Dai, Goodfellow 2017, "Adversarial Training Methods for Semi-Supervised Text Classification".
        https://arxiv.org/abs/1605.07725
    Paper and code: the paper shares the embedding dropout mask between the two passes; here all masks are drawn anew,
        as in the snippets. r is not differentiated (both agree).
    """
    return TaskLoss() + Adversarial(Gradient(L2(epsilon, scope, unit), site=site), TaskLoss())


@recipe
def fgsm(
    epsilon: float = 0.01, unit: str = "absolute", site: str = EMBEDDINGS, begin: int = 0, warmup: int = 0
) -> Term:
    """Fast gradient sign method.

    L = L(x) + L(x + epsilon sign(dL/dx)).

    Arguments: epsilon: largest change of an entry of a word vector.
    Relations: fgm in a box instead of an L2 ball. The paper weighs clean and adversarial loss 1/2 each; ours 1 and 1.
    Cost: 2F + 2B.
    Reference: Goodfellow, Shlens, Szegedy 2015, "Explaining and Harnessing Adversarial Examples".
        https://arxiv.org/abs/1412.6572
    """
    return TaskLoss() + Adversarial(Gradient(Linf(epsilon, unit), site=site), TaskLoss())


@recipe
def pgd(
    epsilon: float = 0.1,
    step: float = 0.05,
    steps: int = 3,
    start: float = 0.0,
    scope: str = "example",
    unit: str = "absolute",
    site: str = EMBEDDINGS,
    begin: int = 0,
    warmup: int = 0,
) -> Term:
    """Projected gradient descent: K ascents, trained at the last point.

    L = L(x) + L(x + r_K),  r_{t+1} = Proj_{||r|| <= epsilon} (r_t + step g_t / ||g_t||_2),  r_0 = 0 or random.

    Arguments: epsilon as in fgm, step half of it; the common snippet has step 0.3, epsilon 1.0, steps 3 (table scope).
    Relations: steps=1 with step=epsilon is fgm. freelb trains at every point instead of the last.
    Cost: (K + 1)F + 2B + (K - 1)S from a start at zero, (K + 2)F + 2B + K S from a random one.
    Reference: Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks".
        https://arxiv.org/abs/1706.06083
    Paper and code: the ascents replay the clean pass's dropout masks (FreeLB's PGD shares them too, the snippet draws
        new ones and wipes accumulated gradients on the way); the last pass draws its own. FreeLB's PGD has no clean
        loss; ours has.
    """
    ascent = Ascent(L2(epsilon, scope, unit), step=step, steps=steps, start=start, site=site)
    return TaskLoss() + Adversarial(ascent, TaskLoss())


@recipe
def freelb(
    epsilon: float = 0.3,
    step: float = 0.1,
    steps: int = 3,
    start: float = 0.2,
    unit: str = "absolute",
    site: str = EMBEDDINGS,
    begin: int = 0,
) -> Term:
    """Free large-batch adversarial training: the mean of the task loss over the points of an ascent.

    L = 1/K sum_t L(x + r_t),  r_{t+1} = Proj_{||r|| <= epsilon} (r_t + step g_t / ||g_t||_2),
    r_1 = U(-1, 1) start / sqrt(tokens * dim), zero on padding.

    Arguments: paper (RoBERTa-large, from which ours are): step 0.025 to 0.2, start 0.1 to 1, epsilon 0.15 to 0.7. A
        radius of 0 means "no projection" in the official code; here pass a large epsilon. begin: plain training
        until then (the authors report NaN when it is on from the first step; a small model trained from scratch needs
        it, as there is no clean task loss).
    Relations: replaces the task loss; in a sum it counts as an added adversarial task loss. steps=1, start=0 is plain.
    Cost: K F + K B: each backward gives the gradient and the slope.
    Reference: Zhu et al. 2020, "FreeLB: Enhanced Adversarial Training for Natural Language Understanding".
        https://arxiv.org/abs/1909.11764
    Paper and code: steps counts forward-backward pairs, as the paper and the official ALBERT tree do; the fairseq tree
        counts ascents, one less. All dropout masks are shared over the K passes, as in the paper (both official trees
        share only some of them).
    """
    return Adversarial(
        Ascent(L2(epsilon, unit=unit), step=step, steps=steps, start=start, every=True, site=site), TaskLoss()
    )


@recipe
def neftune(epsilon: float = 5.0, unit: str = "absolute", site: str = EMBEDDINGS, begin: int = 0) -> Term:
    """Noisy embedding fine-tuning.

    L = L(x + u),  u = U(-1, 1) epsilon / sqrt(tokens * dim).

    Arguments: epsilon is the paper's alpha: 5, 10 or 15.
    Relations: replaces the task loss; in a sum it counts as an added noisy task loss. freelb(steps=1) with its start.
    Cost: 1F + 1B.
    Reference: Jain et al. 2023, "NEFTune: Noisy Embeddings Improve Instruction Finetuning".
        https://arxiv.org/abs/2310.05914
    Paper and code: the official code counts padding in `tokens` and puts noise on it; here neither.
    """
    return Adversarial(Noise(L2(epsilon, unit=unit), site=site), TaskLoss())


# -- agreement of dropout passes -------------------------------------------------------------------------------------


@recipe
def rdrop(alpha: float = 0.5, passes: int = 2, divergence: str = "bi_kl", begin: int = 0, warmup: int = 0) -> Term:
    """R-Drop: two dropout passes of one input must agree.

    L = 1/2 [L_1(x) + L_2(x)] + alpha 1/2 [KL(p_1 || p_2) + KL(p_2 || p_1)].

    Arguments: alpha: 0.5 by our measurement (results/defaults). The paper sums the two task losses, so its alpha is
        2 x ours (its GLUE grid 0.1, 0.5, 1 is 0.05, 0.25, 0.5 here); its code mixes mean task losses with a KL summed
        over the batch, so the code's alpha times the batch size is ours (halved where it adds the two task losses). On
        a regression the divergence is the mean squared difference.
    Relations: alpha=0 is the mean of two passes. rat is rdrop at the adversarial point. fraternal compares logits.
    Cost: K F + K B as one batch of K copies, K = passes.
    Reference: Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks".
        https://arxiv.org/abs/2106.14448
    Paper and code: the code divides by nothing (sum over batch and classes), runs both passes in evaluation too, and
        differs from file to file; this is the paper's formula with the task losses averaged.
    """
    return TaskLoss(passes) + alpha * Consistency(divergence, passes)


@recipe
def rat(
    epsilon: float = 0.1,
    alpha: float = 0.5,
    passes: int = 2,
    scope: str = "example",
    divergence: str = "bi_kl",
    epsilons: tuple[float, ...] | None = None,
    dropouts: tuple[float, ...] | None = None,
    unit: str = "absolute",
    site: str = EMBEDDINGS,
    begin: int = 0,
    warmup: int = 0,
) -> Term:
    """R-AT, regularized adversarial training: dropout passes at the adversarial point must be right and agree.

    L = L(x) + 1/K sum_k L_k(x + r) + alpha mean_{i<j} 1/2 [KL(p_i || p_j) + KL(p_j || p_i)],
    r = epsilon g / ||g||_2,  g = dL(x)/dx,  p_k the prediction of the k-th dropout pass at x + r.

    Arguments:
        epsilon: 0.1 by our measurement from scratch (results/defaults), 0.02 was better for a pretrained MiniLM
        (results/fine_tuning/rte); paper 0.1 to 0.15 on GLUE (Table 7, table scope), 1 to 9
            for the small models (Appendix B).
        alpha: 0.5, for six of nine tasks the paper's, 0.8 for the others (Table 7), as a mean per example. The
            authors' code sums the divergence over the batch: its 0.5 at batch 32 is alpha=16 here. Equation 10 (K=3)
            leaves out the half of equation 7; ours keeps it for every K, so that alpha means the same.
        passes: K >= 2. divergence: Table 8 compares ce, mae, mse, kl, js, bi_kl; on a regression it is the mean
            squared difference. epsilons, dropouts: one per pass (Appendix B, section 5.2); equal ones are best there.
        scope: "example" is the equation; "table" is the authors' code: the gradient of the embedding table and one
            norm over the micro-batch, every occurrence of a token moved alike.
    Relations: epsilon=0 is one clean task loss more than rdrop, L(x) + L_rdrop (the sum plain + rdrop has one clean
        task loss, and is rdrop); alpha=0 is the paper's ablation without L_KL; with dropout 0 it is fgm.
    Cost: (1 + K)F + (1 + K)B: the slope comes with the clean backward (the authors traverse the clean graph twice).
    Reference: Ni, Li, Kao 2022, "R-AT: Regularized Adversarial Training for Natural Language Understanding".
        https://aclanthology.org/2022.findings-emnlp.480
    """
    for name, values in (("epsilons", epsilons), ("dropouts", dropouts)):
        if values is not None and len(values) != passes:
            raise ValueError(f"rat({name}={values!r}): {name} must have one value per pass, and passes={passes}")
    radius = epsilon if epsilons is None else epsilons
    return TaskLoss() + Adversarial(
        Gradient(L2(radius, scope, unit), site=site),
        TaskLoss(passes, dropouts) + alpha * Consistency(divergence, passes),
    )


@recipe
def fraternal(alpha: float = 0.15, begin: int = 0, warmup: int = 0) -> Term:
    """Fraternal dropout: two dropout passes must give the same logits.

    L = 1/2 [L_1(x) + L_2(x)] + alpha 1/m ||z_1 - z_2||^2, z the logits, m how many.

    Arguments: alpha is the paper's kappa, 0.15 (PTB); its code has the same mean over logits, time and batch.
    Relations: rdrop on logits instead of distributions. pi_model has one task loss.
    Cost: 2F + 2B.
    Reference: Zolna et al. 2018, "Fraternal Dropout".
        https://arxiv.org/abs/1711.00066
    """
    return TaskLoss(2) + alpha * Consistency("logit_mse")


@recipe
def pi_model(alpha: float = 1.0, begin: int = 0, warmup: int = 0) -> Term:
    """Pi-model: the task loss of one dropout pass, and a second one that must give the same probabilities.

    L = L_1(x) + alpha 1/C sum_c (p_1c - p_2c)^2.

    Arguments: alpha: paper up to 100 times the labelled fraction, after a ramp-up of 80 epochs (use warmup).
    Relations: fraternal and rdrop learn the labels in both passes. Here the task loss is the mean of the two passes
        only if something else in a sum asks for it.
    Cost: 2F + 2B.
    Reference: Laine, Aila 2017, "Temporal Ensembling for Semi-Supervised Learning".
        https://arxiv.org/abs/1610.02242
    Paper and code: its Gaussian input noise and image augmentation have no counterpart in text.
    """
    return TaskLoss() + alpha * Smoothness(Redrawn(), "mse", fixed=False)


@recipe
def expectation_linear(alpha: float = 0.25, begin: int = 0, warmup: int = 0) -> Term:
    """Expectation-linear dropout: a dropout pass must agree with the network without dropout.

    L = L(x, dropout) + alpha 1/m ||z(x, dropout) - z(x, no dropout)||^2.

    Arguments: alpha: 0.25 in the fraternal-dropout code's version of it (mean over logits, as here).
    Relations: bounds fraternal's term from above (4 times). Both passes carry gradient.
    Cost: 2F + 2B.
    Reference: Ma et al. 2017, "Dropout with Expectation-linear Regularization".
        https://arxiv.org/abs/1609.08017
    """
    return TaskLoss() + alpha * Smoothness(Redrawn(rate=0.0), "logit_mse", fixed=False)


# -- agreement with the clean prediction -----------------------------------------------------------------------------


@recipe
def vat(
    epsilon: float = 0.1,
    alpha: float = 1.0,
    start: float = 0.1,
    steps: int = 1,
    unit: str = "absolute",
    site: str = EMBEDDINGS,
    begin: int = 0,
    warmup: int = 0,
) -> Term:
    """Virtual adversarial training: the prediction must not change along its most sensitive direction.

    L = L(x) + alpha KL(sg p(x) || p(x + r)),  r = epsilon d / ||d||_2,  d = grad_d KL(sg p(x) || p(x + start d)),
    d at first random, `steps` power iterations.

    Arguments: epsilon: 0.1 by our measurement (results/defaults); paper 5 on frequency-normalised embeddings. start is
        the paper's xi, 0.1 on text, and must be positive: the divergence is flat at its minimum. steps 1 and alpha 1
        in the paper, a mean per example.
    Relations: needs no labels; fgm climbing a divergence. smart bounds single entries and trains both predictions.
    Cost: (2 + steps)F + 2B + steps S.
    Reference: Miyato et al. 2017 (text); Miyato et al. 2018, "Virtual Adversarial Training".
        https://arxiv.org/abs/1605.07725, https://arxiv.org/abs/1704.03976
    Paper and code: the search replays the clean pass's dropout masks, else the divergence at a small start would be
        that of the masks; the pass at x + r draws its own, as the official text code does.
    """
    _positive("vat", "start", start)
    return TaskLoss() + alpha * Smoothness(Gradient(L2(epsilon, unit=unit), start=start, steps=steps, site=site), "kl")


@recipe
def smart(
    epsilon: float = 1e-5,
    step: float = 1e-3,
    steps: int = 1,
    start: float = 1e-5,
    alpha: float = 1.0,
    mu: float = 1.0,
    beta: float = 0.99,
    unit: str = "absolute",
    site: str = EMBEDDINGS,
    begin: int = 0,
    warmup: int = 0,
) -> Term:
    """SMART: smoothness in a box, and a step that stays near an average of the model.

    L = L(x) + alpha [ D(p(x), p(x + r)) + mu D(p~(x), p(x)) ],  D = 1/2 [KL(p || q) + KL(q || p)],
    r_{t+1} = clamp(r_t + step g_t / ||g_t||_inf, +-epsilon),  r_0 = N(0, start^2),  p~ the model whose weights are
    beta x their average + (1 - beta) x the new ones after each optimizer step.

    Arguments: paper: epsilon, start 1e-5, step 1e-3, steps 1. D here has the half that the paper leaves out: the
        paper's lambda_s (1, 3 or 5) is alpha / 2, and its mu (1) is alpha x mu / 2. beta: paper 0.99 for the first
        tenth of the run, then 0.999; here constant.
    Relations: r3f is smart without the search and the average. alpha=0 is plain.
    Cost: (2 + steps)F + 2B + steps S, one more F for the average unless mu=0.
    Reference: Jiang et al. 2020, "SMART: Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models".
        https://arxiv.org/abs/1911.03437
    Paper and code: the released code divides the perturbation by its largest entry instead of projecting, feeds the
        whole embedding module's output through itself a second time, and has no proximal term. This is the paper.
        The search replays the clean pass's dropout masks (the code draws new ones). The average runs without dropout.
    """
    _positive("smart", "start", start)
    ascent = Ascent(Linf(epsilon, unit), step=step, steps=steps, start=start, kind="normal", site=site)
    return TaskLoss() + alpha * (Smoothness(ascent, "bi_kl", fixed=False) + mu * Proximal("bi_kl", beta))


@recipe
def r3f(
    epsilon: float = 1e-5,
    alpha: float = 1.0,
    unit: str = "absolute",
    site: str = EMBEDDINGS,
    begin: int = 0,
    warmup: int = 0,
) -> Term:
    """R3F: the prediction must not change under parametric noise.

    L = L(x) + alpha 1/2 [KL(p(x) || p(x + u)) + KL(p(x + u) || p(x))],  u = U(-epsilon, epsilon) per entry.

    Arguments: epsilon: 1e-5 in the paper. alpha: the paper has no half, so its lambda (0.1 to 5; code 0.7 to 1, a mean
        per example) is alpha / 2.
    Relations: with noise this small the two predictions differ mostly by their dropout masks: close to rdrop with one
        task loss. smart seeks the worst noise.
    Cost: 2F + 2B.
    Reference: Aghajanyan et al. 2021, "Better Fine-Tuning by Reducing Representational Collapse".
        https://arxiv.org/abs/2008.03156
    Paper and code: the noise is added in fp32 (in a bf16 sum only 4 % of it would survive); padding gets none; the
        code skips regression, here it is the mean squared difference.
    """
    return TaskLoss() + alpha * Smoothness(Noise(Linf(epsilon, unit), site=site), "bi_kl", fixed=False)


@recipe
def adversarial_dropout(
    rate: float = 0.05,
    alpha: float = 1.0,
    start_mask: str = "one_drop",
    site: str = "logits",
    steps: int = 1,
    divergence: str = "kl",
    base: str = "ones",
    fixed: bool = False,
    begin: int = 0,
    warmup: int = 0,
) -> Term:
    """Adversarial dropout: the prediction must survive the worst dropout mask near the full network.

    L = L(x) + alpha D(p(x, m_0), p(x, m)),  m_0 all ones,  m the mask (one per example) that raises D most to first
    order among those that differ from m_0 in at most floor(rate H) of H units: the flips j of greatest positive gain
    s_j = (1 - 2 m_0j) IM_j,  IM = dD/dm the influence map, in fp32, at the start mask; then again at the mask found,
    `steps` times, the k-th time with k / steps of the flips.

    Arguments: rate is the papers' delta: 0.05 (images), 0.03 (pixels), 0.04 (text), 0.06 (language models). alpha:
        1, and the codes grow it to that over the first epochs (use warmup). site: "logits", the input of the output
        layer; "recurrent", the hidden state where it
        re-enters the gates of the last recurrent layer, one mask for all its steps (and both its directions).
        start_mask: one random unit flipped ("one_drop"), floor(rate H) of them ("random"), or none ("base": the
        influence is then that of other dropout masks, and without any other dropout it is zero, and so is the loss).
        divergence: D(p, q) of the prediction p under m_0 and q under m: "kl" is KL(p || q), "reverse_kl" KL(q || p).
        base: "random" makes m_0 a random mask with floor(rate H) units off; flips then go both ways.
        fixed: no gradient into p(x, m_0).
    Relations: vat with a 0/1 mask instead of a vector; fgm's finder in a Hamming ball. fraternal's and
        expectation_linear's masks are random: 1/4 R_fraternal <= R_expectation_linear <= R_adversarial_dropout, for
        squared distances of outputs and the worst mask of all.
    Cost: (2 + steps)F + 2B + steps S; base="random" one F more, and one B more unless fixed.
    Reference: Park et al. 2018, "Adversarial Dropout for Supervised and Semi-supervised Learning"; Park et al. 2019,
        "Adversarial Dropout for Recurrent Neural Networks" (site="recurrent", Jensen-Shannon: "js").
        https://arxiv.org/abs/1707.03631, https://arxiv.org/abs/1904.09816
    Paper and code: floor(rate H) flips is the papers' prose; their equations bound the root of the number of flips,
        and their codes make one flip fewer or more. Each refinement chooses all its flips anew, where the paper adds
        to those it has: on small nets that finds worse masks at the same cost. No flip without gain (the codes; the
        paper's algorithm fills up). Kept units are scaled by H / (units on), as in the codes; the influence contains
        that scaling at the recurrent site (code for pixels), not at the logits. The codes for images and pixels stop
        no gradient, the one for text does (fixed=True) and starts at "base". The pixels' divergence is "reverse_kl".
        Passes with the start mask replay the dropout masks of the prediction. A recurrent classifier with
        pooling="last" predicts after the last valid step (the paper's lambda_T = 1); for token-level outputs D is the
        mean over unmasked
        positions (lambda_t uniform). A GRU's mask acts on what enters the gates, and the carried z h stays whole.
    """
    if site not in MASK_SITES:
        raise ValueError(f"adversarial_dropout(site={site!r}): site must be one of {', '.join(MASK_SITES)}")
    at = MASK_SITES[site]
    gap: Term = Smoothness(Flip(Hamming(rate), start_mask, steps, at), divergence, fixed=fixed)
    if base == "random":
        gap = Adversarial(Dropped(Hamming(rate), at), gap)
    return TaskLoss() + alpha * gap


def _positive(recipe_name: str, name: str, value: float) -> None:
    if value <= 0:
        raise ValueError(
            f"{recipe_name}({name}={value!r}): {name} must be positive, since a divergence has no slope at its minimum"
        )
