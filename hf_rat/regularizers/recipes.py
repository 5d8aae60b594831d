"""Every published method in one expression, with its card as the docstring.

An argument means the same in every recipe:

- `epsilon`: radius of the ball. `step`: length of an ascent step. `steps`: how many. `start`: size of the random
  start.
- `alpha`: weight of the regularizing part. `rate`: fraction of units flipped. `passes`: how many dropout passes.
- `scope`: what a norm is taken over. `unit`: what epsilon, step and start are measured in, "absolute", as in the
  papers; "embedding", which multiplies them by the mean norm of the model's embeddings; or "relative", by the length
  of the example's own tensor at the site, all its tokens together and no padding.
- `target`: epsilon is found. It begins at a hundredth of what is given, which it never exceeds, and moves slowly, once
  per optimizer step, to where the task loss rises by this share on average: 0.3 means L(x + r) = 1.3 L(x). step and
  start move with it. With unit="relative".
- `divergence`: how two predictions are compared, the name of one of `divergences.NAMES`.
- `site`: where the perturbation enters: "embeddings" (the word embeddings, in an encoder-decoder those of the
  encoder), "decoder_embeddings", the name of a module, whose output then moves, for instance "vit.embeddings", or
  "weights", all that is trained or those of a pattern, "weights:*.query.weight".
  adversarial_dropout has sites of its own.
- `top`: passes run the top of the model only, this share of its layers (1/3), or from the layer of this name up. What
  is below runs once for a micro-batch, under one set of dropout masks, and once backwards, with the sum of what all
  passes leave at the cut. The perturbation enters there. epsilon is then a share of the length of the example's own
  hidden states at the cut, all its tokens together: unit="relative" and epsilon=0.02, where they are not given.
- `over`, `norm`: at the weights, what a slope is the mean over, and what a norm is taken over.
- `begin`: training is plain before this optimizer step. `warmup`: over so many steps after `begin` the regularizing
  part grows linearly to its full weight. `end`: training is plain from this step on. Each is a whole number of steps,
  or a fraction below 1, a share of all steps of the run. `every`: it is on in one of so many steps, from `begin` on.
  Recipes without a clean task loss have no `warmup`, `plain` and `noisy_tune`
  have none of these.
- `examples`: all passes but the clean one run over this share of each micro-batch's examples, at least one: those of
  a draw of its own, or with `which="hardest"` those of highest task loss. At random their mean is on average that over
  all, and so is the gradient; the hardest depend on how a batch is cut.

Every divergence is a mean over examples (over unmasked positions for token-level outputs), so alpha does not change
with the batch size; each card converts the alpha of the paper and of the official code. A card states the cost in
passes over the batch: "2F + 2B" is two forwards and two backwards, S a backward that computes the slope at the
perturbation only.
"""

from __future__ import annotations

from hf_rat.passes.sites import EMBEDDINGS, INPUT_OF, MASKS, MIXED, SITES, WEIGHTS, is_weights
from hf_rat.regularizers.adaptive import adaptive
from hf_rat.regularizers.averages import Average
from hf_rat.regularizers.balls import L2, Hamming, Linf
from hf_rat.regularizers.perturbations import Ascent, Dropped, Flip, Gradient, Noise, Redrawn
from hf_rat.regularizers.recipe import expression, recipe, require_positive, require_weights
from hf_rat.regularizers.terms import Adversarial, Consistency, Proximal, Smoothness, TaskLoss, Term
from hf_rat.regularizers.weight_balls import Ellipsoid, PerTensor, Spread
from hf_rat.regularizers.weight_perturbations import Mixed, Momentum, steepest
from hf_rat.regularizers.weight_terms import Anchored, Distance, NoisyStart

# A name more here is exported from `hf_rat`, where editors and type checkers see it.
__all__ = [
    "adversarial_dropout",
    "anchor",
    "asam",
    "auto",
    "awp",
    "ema",
    "expectation_linear",
    "fgm",
    "fgsm",
    "fraternal",
    "freelb",
    "l2_sp",
    "mean_teacher",
    "mixout",
    "momentum_sam",
    "neftune",
    "noisy_tune",
    "pgd",
    "pi_model",
    "plain",
    "r3f",
    "rat",
    "rdrop",
    "sam",
    "smart",
    "swa",
    "vat",
]

# -- the task loss alone, or at one other point ----------------------------------------------------------------------


@recipe
def plain() -> Term:
    """The task loss and nothing else.

    L = L(x).

    Cost: 1F + 1B.
    """
    return TaskLoss()


@recipe
def fgm(
    epsilon: float = 0.1,
    scope: str = "example",
    unit: str = "absolute",
    site: str = EMBEDDINGS,
    top: float | str | None = None,
    target: float | None = None,
    examples: float = 1.0,
    which: str = "random",
    begin: float = 0,
    warmup: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """Fast gradient method, the adversarial training of Miyato et al.

    L = L(x) + L(x + r),  r = epsilon g / ||g||_2,  g = dL(x)/dx, x the word embeddings of one example.

    Relations: pgd(steps=1, step=epsilon) is fgm. rat without its second pass and divergence is fgm. epsilon=0 adds a
        second task loss under other dropout masks.
    Cost: 2F + 2B. The clean backward also gives the slope. With top=1/3, 1.33F + 1.33B.
    Reference: Miyato, Dai, Goodfellow 2017, "Adversarial Training Methods for Semi-Supervised Text Classification".
        https://arxiv.org/abs/1605.07725
    Paper and code: the paper shares the embedding dropout mask between the two passes; we draw all masks anew, as the
        copied snippets do. Neither differentiates r, nor do we.
    Args:
        epsilon: 0.1 by our measurement from scratch (results/defaults); 0.02 was better for a pretrained MiniLM
            (results/fine_tuning/rte). The paper has 5.0 on frequency-normalised embeddings, copied snippets 1.0 with
            the table's scope.
        scope: "example" is the paper. "table" is the FGM of the snippets and of the R-AT authors, one norm over the
            micro-batch's gradient of the embedding table.
        top: the dropout masks below the cut are then those of the clean pass, as in the paper.
    """
    return TaskLoss() + Adversarial(adaptive(Gradient(L2(epsilon, scope, unit), site=site), target), TaskLoss())


@recipe
def fgsm(
    epsilon: float = 0.01,
    unit: str = "absolute",
    site: str = EMBEDDINGS,
    target: float | None = None,
    examples: float = 1.0,
    which: str = "random",
    begin: float = 0,
    warmup: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """Fast gradient sign method.

    L = L(x) + L(x + epsilon sign(dL/dx)).

    Relations: fgm in a box instead of an L2 ball. The paper weighs clean and adversarial loss 1/2 each; we weigh them
        1 and 1.
    Cost: 2F + 2B.
    Reference: Goodfellow, Shlens, Szegedy 2015, "Explaining and Harnessing Adversarial Examples".
        https://arxiv.org/abs/1412.6572
    Args:
        epsilon: largest change of an entry of a word vector.
    """
    return TaskLoss() + Adversarial(adaptive(Gradient(Linf(epsilon, unit), site=site), target), TaskLoss())


@recipe
def pgd(
    epsilon: float = 0.1,
    step: float = 0.05,
    steps: int = 3,
    start: float = 0.0,
    scope: str = "example",
    unit: str = "absolute",
    site: str = EMBEDDINGS,
    target: float | None = None,
    examples: float = 1.0,
    which: str = "random",
    begin: float = 0,
    warmup: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """Projected gradient descent: K ascents, trained at the last point.

    L = L(x) + L(x + r_K),  r_{t+1} = Proj_{||r|| <= epsilon} (r_t + step g_t / ||g_t||_2),  r_0 = 0 or random.

    Relations: steps=1 with step=epsilon is fgm. freelb trains at every point instead of the last.
    Cost: (K + 1)F + 2B + (K - 1)S from a start at zero, (K + 2)F + 2B + K S from a random one.
    Reference: Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks".
        https://arxiv.org/abs/1706.06083
    Paper and code: the ascents replay the clean pass's dropout masks (FreeLB's PGD shares them too; the snippet draws
        new ones and wipes accumulated gradients on the way); the last pass draws its own. FreeLB's PGD has no clean
        loss; ours has one.
    Args:
        epsilon: as in fgm. The common snippet has epsilon 1.0 in the table's scope, step 0.3 and steps 3.
        step: half of epsilon.
    """
    ascent = Ascent(L2(epsilon, scope, unit), step=step, steps=steps, start=start, site=site)
    return TaskLoss() + Adversarial(adaptive(ascent, target), TaskLoss())


@recipe
def freelb(
    epsilon: float = 0.3,
    step: float = 0.1,
    steps: int = 3,
    start: float = 0.2,
    unit: str = "absolute",
    site: str = EMBEDDINGS,
    begin: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """Free large-batch adversarial training: the mean of the task loss over the points of an ascent.

    L = 1/K sum_t L(x + r_t),  r_{t+1} = Proj_{||r|| <= epsilon} (r_t + step g_t / ||g_t||_2),
    r_1 = U(-1, 1) start / sqrt(tokens * dim), zero on padding.

    Relations: it replaces the task loss; in a sum it counts as an added adversarial task loss. steps=1, start=0 is
        plain.
    Cost: K F + K B. Each backward gives the gradient and the slope.
    Reference: Zhu et al. 2020, "FreeLB: Enhanced Adversarial Training for Natural Language Understanding".
        https://arxiv.org/abs/1909.11764
    Paper and code: steps counts forward-backward pairs, as the paper and the official ALBERT tree do; the fairseq tree
        counts ascents, one less. The K passes share all dropout masks, as in the paper (both official trees share only
        some of them).
    Args:
        epsilon: the paper has 0.15 to 0.7 (RoBERTa-large; our values of epsilon, step and start come from its ranges).
            A radius of 0 means "no projection" in the official code; here pass a large epsilon.
        step: the paper has 0.025 to 0.2.
        start: the paper has 0.1 to 1.
        begin: training is plain until then. The authors report NaN when it is on from the first step. A small model
            trained from scratch needs it, as there is no clean task loss.
    """
    return Adversarial(
        Ascent(L2(epsilon, unit=unit), step=step, steps=steps, start=start, every=True, site=site), TaskLoss()
    )


@recipe
def neftune(
    epsilon: float = 5.0,
    unit: str = "absolute",
    site: str = EMBEDDINGS,
    begin: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """Noisy embedding fine-tuning.

    L = L(x + u),  u = U(-1, 1) epsilon / sqrt(tokens * dim).

    Relations: it replaces the task loss; in a sum it counts as an added noisy task loss. It is freelb(steps=1) with
        freelb's random start.
    Cost: 1F + 1B.
    Reference: Jain et al. 2023, "NEFTune: Noisy Embeddings Improve Instruction Finetuning".
        https://arxiv.org/abs/2310.05914
    Paper and code: the official code counts padding in `tokens` and puts noise on it; we do neither.
    Args:
        epsilon: the paper's alpha: 5, 10 or 15.
    """
    return Adversarial(Noise(L2(epsilon, unit=unit), site=site), TaskLoss())


# -- agreement of dropout passes -------------------------------------------------------------------------------------


@recipe
def rdrop(
    alpha: float = 0.5,
    passes: int = 2,
    divergence: str = "bi_kl",
    examples: float = 1.0,
    which: str = "random",
    top: float | str | None = None,
    begin: float = 0,
    warmup: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """R-Drop: two dropout passes of one input must agree.

    L = 1/2 [L_1(x) + L_2(x)] + alpha 1/2 [KL(p_1 || p_2) + KL(p_2 || p_1)].

    Relations: alpha=0 is the mean of two passes. rat is rdrop at the adversarial point. fraternal compares logits.
    Cost: K F + K B as one batch of K copies, K = passes. With top=1/3 and K=2, 1.33F + 1.33B.
    Reference: Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks".
        https://arxiv.org/abs/2106.14448
    Paper and code: the code divides by nothing (it sums over batch and classes), runs both passes in evaluation too,
        and differs from file to file; ours is the paper's formula with the task losses averaged.
    Args:
        alpha: 0.5 by our measurement (results/defaults). The paper sums the two task losses, so its alpha is 2 x ours
            (its GLUE grid 0.1, 0.5, 1 is 0.05, 0.25, 0.5 here). Its code mixes mean task losses with a KL summed over
            the batch, so the code's alpha times the batch size is ours (halved where it adds the two task losses).
        divergence: on a regression it is the mean squared difference, whatever its name.
        top: both passes then have the same dropout masks below the cut, so that they differ less.
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
    top: float | str | None = None,
    target: float | None = None,
    examples: float = 1.0,
    which: str = "random",
    begin: float = 0,
    warmup: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """R-AT, regularized adversarial training: dropout passes at the adversarial point must be right and agree.

    L = L(x) + 1/K sum_k L_k(x + r) + alpha mean_{i<j} 1/2 [KL(p_i || p_j) + KL(p_j || p_i)],
    r = epsilon g / ||g||_2,  g = dL(x)/dx,  p_k the prediction of the k-th dropout pass at x + r.

    Relations: epsilon=0 is one clean task loss more than rdrop, L(x) + L_rdrop (the sum plain + rdrop has one clean
        task loss, and is rdrop). alpha=0 is the paper's ablation without L_KL. With dropout 0 it is fgm.
    Cost: (1 + K)F + (1 + K)B. The clean backward also gives the slope (the authors' code runs back through the clean
        graph twice). With top=1/3 and K=2, 1.67F + 1.67B.
    Reference: Ni, Li, Kao 2022, "R-AT: Regularized Adversarial Training for Natural Language Understanding".
        https://aclanthology.org/2022.findings-emnlp.480
    Args:
        epsilon: 0.1 by our measurement from scratch (results/defaults); 0.02 was better for a pretrained MiniLM
            (results/fine_tuning/rte). The paper has 0.1 to 0.15 on GLUE (Table 7, table scope), 1 to 9 for the small
            models (Appendix B).
        alpha: 0.5, as the paper for six of nine tasks; it has 0.8 for the others (Table 7), as a mean per example. The
            authors' code sums the divergence over the batch: its 0.5 at batch 32 is alpha=16 here. Equation 10 (K=3)
            leaves out the half of equation 7; we keep it for every K, so that alpha means the same.
        passes: K, at least 2.
        scope: "example" is the equation. "table" is the authors' code: it takes the gradient of the embedding table
            and one norm over the micro-batch, and moves every occurrence of a token alike.
        divergence: Table 8 compares ce, mae, mse, kl, js and bi_kl. On a regression it is the mean squared difference,
            whatever its name.
        epsilons: one per pass instead of epsilon (Appendix B). Equal ones are best there; on AG News unequal ones were
            as good (results/rat/epsilons).
        dropouts: one rate per pass (section 5.2). Equal ones are best there; on AG News all from 0.1 to 0.7 were as
            good (results/rat/rates).
        top: all passes then have the same dropout masks below the cut; `dropouts` is about what is above.
    """
    for name, values in (("epsilons", epsilons), ("dropouts", dropouts)):
        if values is not None and len(values) != passes:
            raise ValueError(f"rat({name}={values!r}): {name} must have one value per pass, and passes={passes}")
    radius = epsilon if epsilons is None else epsilons
    return TaskLoss() + Adversarial(
        adaptive(Gradient(L2(radius, scope, unit), site=site), target),
        TaskLoss(passes, dropouts) + alpha * Consistency(divergence, passes),
    )


@recipe
def fraternal(
    alpha: float = 0.15,
    examples: float = 1.0,
    which: str = "random",
    begin: float = 0,
    warmup: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """Fraternal dropout: two dropout passes must give the same logits.

    L = 1/2 [L_1(x) + L_2(x)] + alpha 1/m ||z_1 - z_2||^2, z the logits, m how many.

    Relations: rdrop on logits instead of distributions. pi_model has one task loss.
    Cost: 2F + 2B.
    Reference: Zolna et al. 2018, "Fraternal Dropout".
        https://arxiv.org/abs/1711.00066
    Args:
        alpha: the paper's kappa, 0.15 (PTB). Its code takes the same mean over logits, time and batch.
    """
    return TaskLoss(2) + alpha * Consistency("logit_mse")


@recipe
def pi_model(
    alpha: float = 1.0,
    examples: float = 1.0,
    which: str = "random",
    begin: float = 0,
    warmup: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """Pi-model: the task loss of one dropout pass, and a second one that must give the same probabilities.

    L = L_1(x) + alpha 1/C sum_c (p_1c - p_2c)^2.

    Relations: fraternal and rdrop learn the labels in both passes. Here the task loss is the mean of the two passes
        only if something else in a sum asks for it.
    Cost: 2F + 2B.
    Reference: Laine, Aila 2017, "Temporal Ensembling for Semi-Supervised Learning".
        https://arxiv.org/abs/1610.02242
    Paper and code: its Gaussian input noise and image augmentation have no counterpart in text.
    Args:
        alpha: the paper has up to 100 times the labelled fraction, after a ramp-up of 80 epochs (use warmup).
    """
    return TaskLoss() + alpha * Smoothness(Redrawn(), "mse", fixed=False)


@recipe
def expectation_linear(
    alpha: float = 0.25,
    examples: float = 1.0,
    which: str = "random",
    begin: float = 0,
    warmup: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """Expectation-linear dropout: a dropout pass must agree with the network without dropout.

    L = L(x, dropout) + alpha 1/m ||z(x, dropout) - z(x, no dropout)||^2.

    Relations: it bounds fraternal's term from above (4 times). Both passes carry gradient.
    Cost: 2F + 2B.
    Reference: Ma et al. 2017, "Dropout with Expectation-linear Regularization".
        https://arxiv.org/abs/1609.08017
    Args:
        alpha: 0.25 in the fraternal-dropout code's version of it (a mean over logits, as here).
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
    examples: float = 1.0,
    which: str = "random",
    begin: float = 0,
    warmup: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """Virtual adversarial training: the prediction must not change along its most sensitive direction.

    L = L(x) + alpha KL(sg p(x) || p(x + r)),  r = epsilon d / ||d||_2,  d = grad_d KL(sg p(x) || p(x + start d)),
    d at first random, `steps` power iterations.

    Relations: fgm climbing a divergence, so the regularizing part needs no labels. smart bounds single entries and
        trains both predictions.
    Cost: (2 + steps)F + 2B + steps S.
    Reference: Miyato et al. 2017 (text); Miyato et al. 2018, "Virtual Adversarial Training".
        https://arxiv.org/abs/1605.07725, https://arxiv.org/abs/1704.03976
    Paper and code: the search replays the clean pass's dropout masks, else the divergence at a small start would be
        that of the masks. The pass at x + r draws its own, as the official text code does.
    Args:
        epsilon: 0.1 by our measurement (results/defaults). The paper has 5 on frequency-normalised embeddings.
        alpha: 1 in the paper, a mean per example.
        start: the paper's xi, 0.1 on text. It must be positive: the divergence is flat at its minimum.
        steps: 1 in the paper.
    """
    require_positive("vat", "start", start)
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
    examples: float = 1.0,
    which: str = "random",
    begin: float = 0,
    warmup: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """SMART: smoothness in a box, and a step that stays near an average of the model.

    L = L(x) + alpha [ D(p(x), p(x + r)) + mu D(p~(x), p(x)) ],  D = 1/2 [KL(p || q) + KL(q || p)],
    r_{t+1} = clamp(r_t + step g_t / ||g_t||_inf, +-epsilon),  r_0 = N(0, start^2),  p~ the model whose weights are
    beta x their average + (1 - beta) x the new ones after each optimizer step.

    Relations: r3f is smart without the search and the average. alpha=0 is plain.
    Cost: (2 + steps)F + 2B + steps S, one more F for the average unless mu=0.
    Reference: Jiang et al. 2020, "SMART: Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models".
        https://arxiv.org/abs/1911.03437
    Paper and code: the released code divides the perturbation by its largest entry instead of projecting, feeds the
        whole embedding module's output through itself a second time, and has no proximal term. We implement the paper.
        The search replays the clean pass's dropout masks (the code draws new ones). The average runs without dropout.
    Args:
        epsilon: 1e-5 in the paper.
        step: 1e-3 in the paper.
        steps: 1 in the paper.
        start: 1e-5 in the paper. It must be positive.
        alpha: D here has the half that the paper leaves out, so the paper's lambda_s (1, 3 or 5) is alpha / 2.
        mu: the paper's mu (1) is alpha x mu / 2 here.
        beta: the paper has 0.99 for the first tenth of the run, then 0.999; here it is constant.
    """
    require_positive("smart", "start", start)
    ascent = Ascent(Linf(epsilon, unit), step=step, steps=steps, start=start, kind="normal", site=site)
    return TaskLoss() + alpha * (Smoothness(ascent, "bi_kl", fixed=False) + mu * Proximal("bi_kl", beta))


@recipe
def mean_teacher(
    alpha: float = 1.0,
    beta: float = 0.99,
    divergence: str = "mse",
    examples: float = 1.0,
    which: str = "random",
    begin: float = 0,
    warmup: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """Mean teacher: the prediction must agree with that of an average of the model.

    L = L(x) + alpha D(p~(x), p(x)),  p~ the model whose weights are beta x their average + (1 - beta) x the new ones
    after each optimizer step.

    Relations: smart's second term; pi_model compares with another pass of the same weights. The average is also the
        better model: what is evaluated and saved is it with average="ema(0.99)", which is then kept once.
    Cost: 2F + 1B.
    Reference: Tarvainen, Valpola 2017, "Mean teachers are better role models: Weight-averaged consistency targets
        improve semi-supervised deep learning results". https://arxiv.org/abs/1703.01780
    Paper and code: there the teacher has dropout and input noise of its own; here it runs without. The code begins
        with a plain mean, beta = min(1 - 1 / (step + 1), beta); here beta is constant, from the initial weights. The
        code's ramp-up of alpha is exp(-5 (1 - t)^2); warmup is linear.
    Args:
        alpha: up to 100 in the code, after a ramp-up (use warmup), of squared errors averaged over the classes, as
            here.
        beta: 0.99 during the ramp-up and 0.999 after it in the paper.
        divergence: "mse" in the paper, which finds "kl" worse.
    """
    return TaskLoss() + alpha * Proximal(divergence, beta)


@recipe
def r3f(
    epsilon: float = 1e-5,
    alpha: float = 1.0,
    unit: str = "absolute",
    site: str = EMBEDDINGS,
    examples: float = 1.0,
    which: str = "random",
    begin: float = 0,
    warmup: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """R3F: the prediction must not change under parametric noise.

    L = L(x) + alpha 1/2 [KL(p(x) || p(x + u)) + KL(p(x + u) || p(x))],  u = U(-epsilon, epsilon) per entry.

    Relations: with noise this small the two predictions differ mostly by their dropout masks: close to rdrop with one
        task loss. smart seeks the worst noise.
    Cost: 2F + 2B.
    Reference: Aghajanyan et al. 2021, "Better Fine-Tuning by Reducing Representational Collapse".
        https://arxiv.org/abs/2008.03156
    Paper and code: we add the noise in fp32 (in a bf16 sum only 4 % of it would survive) and none to padding. The code
        skips regression; here D is the mean squared difference there.
    Args:
        epsilon: 1e-5 in the paper.
        alpha: the paper has no half, so its lambda (0.1 to 5; code 0.7 to 1, a mean per example) is alpha / 2.
    """
    return TaskLoss() + alpha * Smoothness(Noise(Linf(epsilon, unit), site=site), "bi_kl", fixed=False)


# A mask's name has a space, which no module's has: nothing but adversarial_dropout can name one. Here "logits input"
# is "logits".
MASK_SITES = {name.split()[0]: name for name in MASKS}


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
    examples: float = 1.0,
    which: str = "random",
    begin: float = 0,
    warmup: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """Adversarial dropout: the prediction must survive the worst dropout mask near the full network.

    L = L(x) + alpha D(p(x, m_0), p(x, m)),  m_0 all ones,  m the mask (one per example) that raises D most to first
    order among those that differ from m_0 in at most floor(rate H) of H units: the flips j of greatest positive gain
    s_j = (1 - 2 m_0j) IM_j,  IM = dD/dm the influence map, in fp32, at the start mask; then again at the mask found,
    `steps` times, the k-th time with k / steps of the flips.

    Relations: vat with a 0/1 mask instead of a vector; fgm's finder in a Hamming ball. fraternal's and
        expectation_linear's masks are random: 1/4 R_fraternal <= R_expectation_linear <= R_adversarial_dropout, for
        squared distances of outputs and the worst mask of all.
    Cost: (2 + steps)F + 2B + steps S; base="random" one F more, and one B more unless fixed.
    Reference: Park et al. 2018, "Adversarial Dropout for Supervised and Semi-supervised Learning"; Park et al. 2019,
        "Adversarial Dropout for Recurrent Neural Networks" (site="recurrent", Jensen-Shannon: "js").
        https://arxiv.org/abs/1707.03631, https://arxiv.org/abs/1904.09816
    Paper and code: the papers' prose flips floor(rate H) units; their equations bound the root of the number of flips,
        and their codes make one flip fewer or more. Each refinement chooses all its flips anew, where the paper adds
        to those it has: on small nets that finds worse masks at the same cost. We flip nothing without gain, as the
        codes; the paper's algorithm fills up. Kept units are scaled by H / (units on), as in the codes; the influence
        contains that scaling at the recurrent site (code for pixels), not at the logits. The codes for images and
        pixels stop no gradient, the one for text does (fixed=True) and starts at "base". The pixels' divergence is
        "reverse_kl". Passes with the start mask replay the dropout masks of the prediction. A recurrent classifier
        with pooling="last" predicts after the last valid step (the paper's lambda_T = 1); for token-level outputs D is
        the mean over unmasked positions (lambda_t uniform). A GRU's mask acts on what enters the gates, and the
        carried z h stays whole.
    Args:
        rate: the papers' delta: 0.05 (images), 0.03 (pixels), 0.04 (text), 0.06 (language models).
        alpha: 1. The codes grow it to that over the first epochs (use warmup).
        start_mask: flips one random unit ("one_drop"), floor(rate H) of them ("random"), or none ("base": the
            influence is then that of other dropout masks; without any other dropout it is zero, and so is the loss).
        site: "logits" is the input of the output layer; the name of another linear layer, as in named_modules(), the
            input of that one (a last hidden state below further layers). "recurrent" is the hidden state where it
            re-enters the gates of the last recurrent layer, one mask for all its steps (and both its directions).
        divergence: D(p, q) of the prediction p under m_0 and q under m: "kl" is KL(p || q), "reverse_kl" KL(q || p).
        base: "random" makes m_0 a random mask with floor(rate H) units off; flips then go both ways.
        fixed: no gradient flows into p(x, m_0).
    """
    if site in SITES or is_weights(site):
        known = ", ".join(MASK_SITES)
        raise ValueError(f"adversarial_dropout(site={site!r}): site must be {known} or the name of a linear layer")
    at = MASK_SITES.get(site, INPUT_OF + site)
    gap: Term = Smoothness(Flip(Hamming(rate), start_mask, steps, at), divergence, fixed=fixed)
    if base == "random":
        gap = Adversarial(Dropped(Hamming(rate), at), gap)
    return TaskLoss() + alpha * gap


# -- at other weights ------------------------------------------------------------------------------------------------


@recipe
def sam(
    epsilon: float = 0.05,
    norm: str = "all",
    over: str = "microbatch",
    site: str = WEIGHTS,
    begin: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """SAM, sharpness-aware minimization: the loss at the worst weights nearby, instead of the loss at the weights.

    L = L(w + e),  e = epsilon g / ||g||_2,  g = dL(w)/dw.

    Relations: fgm(site="weights") has the loss at w too. asam measures e by the size of each weight, awp by that of
        each tensor. In a sum it counts as an added adversarial task loss: rat + sam is R-AT's loss at w, and the task
        loss at w + e.
    Cost: 2F + 2B. The first backward computes g alone, by autograd.grad: gradients that are there already, of other
        micro-batches or terms, are no part of it.
    Reference: Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving Generalization".
        https://arxiv.org/abs/2010.01412
    Paper and code: the pass at w + e replays the dropout masks of the pass at w, since otherwise the masks would
        differ as much as the weights; the official code gives both passes one random key, popular ports draw anew.
        Running statistics are those of the pass at w. Only weights that are trained move, tied ones once.
    Args:
        epsilon: the paper's rho, 0.05 (0.05 to 0.15 for language models, Bahri et al. 2022).
        norm: what the norm is taken over: "all" weights, as in the paper, or each "tensor" by itself.
        over: "microbatch" takes g over the micro-batch of a process (m-sharpness, as the official code on several
            accelerators), so that the loss changes with how a batch is cut. "step" takes it over the whole optimizer
            step, all micro-batches and processes: 16 = 4 x 4 = 2 x 8.
        site: "weights", or some as "weights:*.query.weight", or "weights:!*.bias" for all others.
    """
    require_weights("sam", site)
    return Adversarial(steepest(L2(epsilon) if norm == "all" else PerTensor(epsilon), site, over), TaskLoss())


@recipe
def asam(
    epsilon: float = 0.5,
    eta: float = 0.01,
    over: str = "microbatch",
    site: str = WEIGHTS,
    begin: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """ASAM: sam with a neighbourhood that is as wide in each weight as that weight is large.

    L = L(w + e),  e = epsilon T^2 g / ||T g||_2,  T = |w| + eta,  g = dL(w)/dw.

    Relations: sam, if all weights are equally large.
    Cost: 2F + 2B.
    Reference: Kwon et al. 2021, "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep
        Neural Networks".
        https://arxiv.org/abs/2102.11600
    Paper and code: the code has T = 1 for whatever is not named "weight" (biases), and adds 1e-16 to the norm; we
        follow the paper's elementwise T. Dropout masks and running statistics as in sam.
    Args:
        epsilon: the paper's rho, 0.5 (0.2 for language models and translation there).
        eta: 0.01 in the paper: weights of zero move too.
        over: as in sam.
        site: as in sam.
    """
    require_weights("asam", site)
    return Adversarial(steepest(Ellipsoid(epsilon, eta), site, over), TaskLoss())


@recipe
def momentum_sam(
    epsilon: float = 0.05,
    beta: float = 0.9,
    norm: str = "all",
    momentum: str = "own",
    site: str = WEIGHTS,
    begin: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """Momentum-SAM: sam without its second pass, at weights that a momentum of earlier slopes tells.

    L = L(w + e),  e = -epsilon v / ||v||_2,  v <- beta v + (1 - beta) g,  g = dL(w + e)/dw of each optimizer step.

    Relations: sam seeks the worst weights for this batch; these are where Nesterov's momentum would look, and e is
        the same for all micro-batches and processes of a step. At first v = 0, and L is that of plain.
    Cost: 1F + 1B.
    Reference: Becker, Altrock, Risse 2024, "Momentum-SAM: Sharpness Aware Minimization without Computational
        Overhead".
        https://arxiv.org/abs/2401.12033
    Paper and code: the minus is the paper's: it goes ahead along the way down, and finds the loss there to rise. Its v
        is the optimizer's buffer, v <- mu v + g, which has the same direction (momentum="optimizer"); with Adam its
        code divides by the root of the second moment too, which we do not. Our own v is a mean of the slopes of the
        task loss alone, neither clipped nor with what other terms of a sum add.
    Args:
        epsilon: the paper's rho; larger than sam's there (0.2 to 3).
        beta: of the own momentum; the paper's mu, 0.9.
        norm: as in sam.
        momentum: "own", which a checkpoint keeps, or "optimizer": its exp_avg or momentum_buffer.
        site: as in sam.
    """
    require_weights("momentum_sam", site)
    ball = L2(epsilon) if norm == "all" else PerTensor(epsilon)
    return Adversarial(Momentum(ball, beta, momentum, site), TaskLoss())


@recipe
def awp(
    epsilon: float = 0.005,
    inputs: float = 0.0,
    over: str = "microbatch",
    site: str = WEIGHTS,
    begin: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """Adversarial weight perturbation: the loss, at perturbed inputs or not, at weights moved by a share of each.

    L = L(x', w + v),  v_l = epsilon ||w_l||_2 g_l / ||g_l||_2 for each tensor l,  g = dL(x', w)/dw,
    x' = x + r,  r = inputs h / ||h||_2,  h = dL(x, w)/dx, x the word embeddings of one example.

    Relations: sam(norm="tensor") with a radius that is relative; inputs=0 has no perturbed inputs. In a sum it counts
        as an added loss: plain + awp is the "AWP" that is popular in competitions, the loss at w and at w + v.
    Cost: 2F + 2B, with inputs > 0 one F and one S more.
    Reference: Wu, Xia, Wang 2020, "Adversarial Weight Perturbation Helps Robust Generalization".
        https://arxiv.org/abs/2004.05884
    Paper and code: the paper seeks x' by ten steps of PGD and we by one of fgm. Its code moves only tensors of more
        than one axis named "weight" (site="weights:*.weight"), by a proxy optimizer; ours moves all that are trained,
        each within its own norm, so that biases of zero stay. Dropout masks and running statistics as in sam.
    Args:
        epsilon: the paper's gamma, 0.005 (0.001 to 0.01).
        inputs: length of the perturbation of an example's word embeddings, as epsilon of fgm.
        over: as in sam; "step" needs inputs=0.
        site: as in sam.
        begin: competitions begin it when the loss is already low.
    """
    require_weights("awp", site)
    if inputs and over == "step":
        raise ValueError(f"awp(inputs={inputs!r}, over='step'): a step's slope is taken at inputs as they are; use 0")
    worst: Term = Adversarial(steepest(PerTensor(epsilon, "relative"), site, over), TaskLoss())
    return Adversarial(Gradient(L2(inputs)), worst) if inputs else worst


@recipe
def mixout(rate: float = 0.1, site: str = WEIGHTS, begin: float = 0, end: float | None = None, every: int = 1) -> Term:
    """Mixout: dropout whose dropped weights are not zero but those that training began with.

    L = L(w'),  w' = [(1 - m) w + m u - rate u] / (1 - rate),  m one number in {0, 1} for each weight, 1 with
    probability rate, u the weights that training began with.

    Relations: with u = 0 it is dropout of weights (DropConnect). l2_sp draws to u by a penalty, mixout to first order
        in the same way. In a sum it counts as an added noisy task loss.
    Cost: 1F + 1B.
    Reference: Lee, Cho, Kang 2020, "Mixout: Effective Regularization to Finetune Large-scale Pretrained Language
        Models".
        https://arxiv.org/abs/1909.11299
    Paper and code: the code mixes the matrices of linear layers only and switches the model's dropout off; we mix all
        weights at the site (site="weights:*.weight" leaves biases out) and leave its dropout as it is. Masks are drawn
        anew for each micro-batch and process, as those of dropout.
    Args:
        rate: the paper has 0.7 to 0.9 for BERT-large.
        site: as in sam. A head that begins at random is drawn to where it began.
    """
    require_weights("mixout", site)
    return Adversarial(Mixed(rate, MIXED + site.removeprefix(WEIGHTS)), TaskLoss())


# -- near where training began ---------------------------------------------------------------------------------------


@recipe
def l2_sp(
    alpha: float = 0.01,
    site: str = WEIGHTS,
    begin: float = 0,
    warmup: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """L2-SP: weight decay towards the weights that training began with, instead of towards zero.

    L = L(w) + alpha 1/2 ||w - u||_2^2,  u the weights that training began with.

    Relations: mixout does it by noise. anchor stays near what the model predicted instead of near its weights.
    Cost: 1F + 1B, and one pass over the weights.
    Reference: Li, Grandvalet, Davoine 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional
        Networks".
        https://arxiv.org/abs/1802.01483
    Paper and code: the paper decays new layers towards zero with a factor of their own; leave them out by their name,
        site="weights:!classifier*", and give weight_decay to the optimizer. With adaptive optimizers a penalty is not
        the same as a decay of weights, here as there.
    Args:
        alpha: the paper has 0.001 to 1; its objective has the half too.
        site: as in sam.
    """
    require_weights("l2_sp", site)
    return TaskLoss() + alpha * Distance(site)


@recipe
def anchor(
    alpha: float = 1.0,
    divergence: str = "kl",
    examples: float = 1.0,
    which: str = "random",
    begin: float = 0,
    warmup: float = 0,
    end: float | None = None,
    every: int = 1,
    below: float | None = None,
) -> Term:
    """Anchor: the prediction must stay near that of the model that training began with.

    L = L(x) + alpha KL(p_0(x) || p(x)),  p_0 the model that training began with, without dropout and gradients.

    Relations: smart's second part stays near a slow average instead. For language models it is the KL to the reference
        model that reinforcement learning has, and with a weighted task loss ASFT.
    Cost: 2F + 1B, and a copy of the model in memory and in checkpoints; where nothing but adapters (PEFT) is trained
        it is the same model with its adapters off, and no copy.
    Reference: Li, Hoiem 2016, "Learning without Forgetting".
        https://arxiv.org/abs/1606.09282
    Paper and code: the paper keeps the outputs of the old tasks' heads, recorded before, at a temperature of 2; here
        it is the same head, so that it must be one that has been trained before (a language model's, or a classifier's
        that is trained further). A head that begins at random would be anchored at random predictions. Adapters that
        change the base model when they are made (PiSSA, LoftQ) are anchored at what they leave of it.
    Args:
        alpha: a mean per example, or per position.
        divergence: of p_0 and p; on a regression it is the mean squared difference.
    """
    return TaskLoss() + alpha * Anchored(divergence)


@recipe
def noisy_tune(epsilon: float = 0.15, site: str = WEIGHTS) -> Term:
    """NoisyTune: noise is added to the weights once, before fine-tuning begins.

    L = L(w), from w = u + U(-epsilon / 2, epsilon / 2) std(u_l) on, for each tensor u_l that training began with.

    Relations: after the start it is plain. neftune's noise is in each step, on the words.
    Cost: 1F + 1B.
    Reference: Wu et al. 2022, "NoisyTune: A Little Noise Can Help You Finetune Pretrained Language Models Better".
        https://arxiv.org/abs/2202.12024
    Paper and code: the noise is added when step 0 begins, and a resumed run adds none. All weights at the site get it,
        as in the paper's snippet, also a head that begins at random; several processes add the same. Centres (l2_sp,
        mixout, anchor) are the weights before the noise.
    Args:
        epsilon: the paper's lambda, 0.15 (0.1 to 0.2).
        site: as in sam.
    """
    require_weights("noisy_tune", site)
    return TaskLoss() + NoisyStart(Spread(epsilon), site)


# -- an average of the weights, which is evaluated and saved ----------------------------------------------------------


@recipe
def ema(beta: float = 0.99) -> Term:
    """Exponential moving average of the weights, evaluated and saved in the place of the weights.

    w' <- beta w' + (1 - beta) w after each optimizer step;  training goes on from w.

    Relations: swa is their mean over the end of the run. mean_teacher also lets the model agree with the average.
    Cost: 1F + 1B, and one copy of the weights in memory.
    Reference: Kingma, Ba 2015, "Adam: A Method for Stochastic Optimization", section 7.2.
        https://arxiv.org/abs/1412.6980
    Paper and code: the paper's average begins as zero and is divided by 1 - beta^t; ours begins as what training
        begins with, and needs no division.
    Args:
        beta: what of the average is kept at each step. 0.99 looks back over about 100 steps.
    """
    if not beta:
        raise ValueError(f"ema(beta={beta!r}) keeps nothing: these are the weights themselves; beta must be above 0")
    return TaskLoss() + Average("ema", beta)


@recipe
def swa(after: float = 0.5, below: float | None = None) -> Term:
    """Stochastic weight averaging: the mean of the weights over the end of the run, evaluated and saved.

    w' = mean of w after each optimizer step, once a share of the run is over;  training goes on from w.

    With `below` it begins no earlier than the task loss, as a mean over a tenth of the run, is below that share of
    what it was over the first tenth. In a run too short for that the model keeps its own weights: the average of a
    model that is still learning lags behind it.

    Relations: ema looks back over a fixed number of steps.
    Cost: 1F + 1B, and one copy of the weights in memory.
    Reference: Izmailov, Podoprikhin, Garipov, Vetrov, Wilson 2018, "Averaging Weights Leads to Wider Optima and Better
        Generalization". https://arxiv.org/abs/1803.05407
    Paper and code: both average once per epoch, at a constant or cyclic learning rate; here it is each step, and the
        rate is the run's own.
    Args:
        after: the share of the run that is over before the first of them. The paper has 0.75.
        below: in (0, 1], or None, which asks for no fall of the loss.
    """
    return TaskLoss() + Average("swa", after, below)


# -- what to begin with -----------------------------------------------------------------------------------------------


@expression
def auto() -> Term:
    """What to begin with: fgm(unit="relative", epsilon=0.06, begin=0.5, below=0.3) + swa(after=0.5, below=0.3).

    L = L(x) + L(x + r),  ||r||_2 = 0.06 ||x||_2, in the second half of the run, and the mean of its weights is saved
    if the model has learned its data by then.

    Relations: fgm as a tail, with a radius that is a share of each text's own length, and swa. It has no arguments:
        it is shown as the expression that it is, to be written with others.
    Cost: 1F + 1B, then 2F + 2B: 1.5F + 1.5B over the run, and one copy of the weights in memory.
    Reference: Miyato, Dai, Goodfellow 2017, "Adversarial Training Methods for Semi-Supervised Text Classification".
        https://arxiv.org/abs/1605.07725
    Paper and code: the race, its candidates and what was measured are in results/default. Learning rate, schedule and
        epochs stay as they are given.
    """
    return fgm(unit="relative", epsilon=0.06, begin=0.5, below=0.3) + swa(after=0.5, below=0.3)
