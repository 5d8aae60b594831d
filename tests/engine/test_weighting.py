"""Where labels are by position, each of them counts alike: the trainer, plain loops, and what a task loss may be."""

import keyed
import pytest
import runs
import tiny
import tiny_tasks
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from test_problem_losses import counting, embed
from tiny_tasks import BY_POSITION, TASKS, collate, task_model, task_rows
from torch.nn import functional as F
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer

from hf_rat import Regularization, RegularizationMixin, fgm, parse, plain, rat, rdrop
from hf_rat.passes.problems import NEXT_TOKENS, TOKENS
from hf_rat.regularizers import L2, Gradient, Smoothness

SHIFTED = ("causal_lm", "causal_lm_llama")
WINDOW = {"gradient_accumulation_steps": 2, "train_sampling_strategy": "sequential", "max_steps": 1}


def micro_batches(task):
    rows = task_rows(task, 8)
    return [collate(rows[:4]), collate(rows[4:])]


def losses_by_hand(task, model, batch, smoothing=0.0, move=None):
    """(word embeddings, the task loss of each label that counts)."""
    x = embed(model, batch)
    inputs = {name: value for name, value in batch.items() if name != "input_ids"}
    logits = model(inputs_embeds=x if move is None else x + move, **inputs).logits
    rows = counting(task, batch["labels"])
    picked = torch.stack([logits[i, t] for i, t, _ in rows])
    targets = torch.tensor([target for _, _, target in rows])
    return x, F.cross_entropy(picked, targets, reduction="none", label_smoothing=smoothing)


def fgm_by_hand(task, model, smoothing=0.0):
    """The clean and the adversarial loss of each label of both micro-batches."""
    clean, adversarial = [], []
    for batch in micro_batches(task):
        x, losses = losses_by_hand(task, model, batch, smoothing)
        (g,) = torch.autograd.grad(losses.sum(), x, retain_graph=True)
        length = g.flatten(1).norm(dim=1).view(-1, 1, 1)
        clean.append(losses)
        move = torch.where(length > 0, 0.5 * g / length, 0.0)
        adversarial.append(losses_by_hand(task, model, batch, smoothing, move)[1])
    assert len(clean[0]) != len(clean[1]), "a mean of means would be the same"
    return torch.cat(clean).mean(), torch.cat(adversarial).mean()


def trained(task, expression="fgm(epsilon=0.5)", kind=None, **settings):
    options = {**tiny_tasks.options(task, 8), **settings.pop("options", {})}
    how = {} if kind is None else {"kind": kind}
    (log,) = runs.run(expression, model=task_model(task), options=options, **how, **WINDOW, **settings).logs
    return log


def norm_of(loss, model):
    loss.backward()
    return torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()


@pytest.mark.parametrize("task", BY_POSITION)
def test_an_optimizer_step_is_the_mean_over_its_labels(task):
    log, model = trained(task), task_model(task)
    clean, adversarial = fgm_by_hand(task, model)
    assert log["loss_task"] == pytest.approx(clean.item(), rel=1e-5)
    assert log["loss_adversarial_task"] == pytest.approx(adversarial.item(), rel=1e-5)
    assert log["loss"] == pytest.approx((clean + adversarial).item(), rel=1e-5)
    assert log["grad_norm"] == pytest.approx(norm_of(clean + adversarial, model), rel=1e-4)


@pytest.mark.parametrize("task", BY_POSITION)
def test_plain_too(task):
    log, model = trained(task, "plain"), task_model(task)
    loss = torch.cat([losses_by_hand(task, model, batch)[1] for batch in micro_batches(task)]).mean()
    assert log["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert log["grad_norm"] == pytest.approx(norm_of(loss, model), rel=1e-4)


def test_plain_is_the_stock_trainer_where_that_counts_labels_rightly():
    """Llama's loss takes `num_items_in_batch`, and the Trainer knows that it shifts labels."""
    ours, stock = trained("causal_lm_llama", "plain"), trained("causal_lm_llama", "plain", Trainer)
    assert ours["loss"] == pytest.approx(stock["loss"], rel=1e-6)
    assert ours["grad_norm"] == pytest.approx(stock["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("task", ["question_answering", "multiple_choice"])
def test_micro_batches_of_as_many_examples_count_alike(task):
    options = {"train_dataset": task_rows(task, 16), "data_collator": tiny_tasks.collate_to_one_length}
    whole, cut = (
        runs.run("fgm(epsilon=0.5)", model=task_model(task), options=options, max_steps=1, **how).logs
        for how in (
            {"per_device_train_batch_size": 16},
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        )
    )
    runs.assert_same_logs(cut, whole)


@pytest.mark.parametrize("first", [0, 2])
def test_micro_batches_with_targets_of_one_token_weigh_what_they_have(first):
    """Alone, (batch, 1) could as well be one label for each example."""
    rows = [{"input_ids": [3, 5, 6 + k, 2], "labels": [7, 5, 6, 9, 2] if k > 1 else [7 + k]} for k in range(4)]

    def collated(some):
        batch = collate(some)
        return {**batch, "labels": batch["labels"].view(len(some), -1)}

    model = task_model("seq2seq")
    (log,) = runs.run(
        "plain",
        model=task_model("seq2seq"),
        options={"train_dataset": rows[first:] + rows[:first], "data_collator": collated},
        per_device_train_batch_size=2,
        **WINDOW,
    ).logs
    sums = [model(**collated([row])).loss * len(row["labels"]) for row in rows]
    assert log["loss"] == pytest.approx(sum(sums).item() / 12, rel=1e-5)


# -- what the task loss may be ---------------------------------------------------------------------------------------


def with_decoder_inputs(task):
    """As DataCollatorForSeq2Seq makes them, for losses that the model does not compute."""
    model = task_model(task)

    def collated(rows):
        batch = collate(rows)
        if model.config.is_encoder_decoder and not task.startswith("causal_lm"):
            batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        return batch

    return {"data_collator": collated}


# The Trainer's label smoothing shifts the labels of every causal model, also where the model itself does not.
@pytest.mark.parametrize("task", [task for task in BY_POSITION if task != "causal_lm_unshifted"])
def test_label_smoothing(task):
    log, model = trained(task, label_smoothing_factor=0.2, options=with_decoder_inputs(task)), task_model(task)
    clean, adversarial = fgm_by_hand(task, model, smoothing=0.2)
    assert log["loss_task"] == pytest.approx(clean.item(), rel=1e-5)
    assert log["loss_adversarial_task"] == pytest.approx(adversarial.item(), rel=1e-5)
    assert log["grad_norm"] == pytest.approx(norm_of(clean + adversarial, model), rel=1e-4)


@pytest.mark.parametrize("task", ["token_classification", "causal_lm", "seq2seq"])
def test_a_loss_function_of_ones_own(task):
    counts = []

    def loss_function(outputs, labels, num_items_in_batch):
        logits = outputs.logits
        if task in SHIFTED:
            logits, labels = logits[:, :-1], labels[:, 1:]
        counts.append((int((labels != -100).sum()), int(num_items_in_batch)))
        return F.cross_entropy(logits.transpose(1, 2), labels, reduction="sum") / num_items_in_batch

    log = trained(task, options={"compute_loss_func": loss_function, **with_decoder_inputs(task)})
    clean, adversarial = fgm_by_hand(task, task_model(task))
    assert log["loss_task"] == pytest.approx(clean.item(), rel=1e-5)
    assert log["loss_adversarial_task"] == pytest.approx(adversarial.item(), rel=1e-5)
    passes = counts[-4:]  # before them, the model is asked which labels count
    assert [given for _, given in passes] == [counted for counted, _ in passes]


# -- whether labels are shifted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", BY_POSITION)
def test_the_model_tells_whether_it_shifts_labels(task):
    model, batch = task_model(task, 0.1), collate(task_rows(task, 4))
    regularization = Regularization(fgm(), model)
    before, weights = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    model.dropped = torch.nn.Dropout().eval()
    assert regularization.weighting.problem(batch) == (NEXT_TOKENS if task in SHIFTED else TOKENS)
    assert regularization.count_labels(batch) == len(counting(task, batch["labels"]))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert not model.dropped.training
    runs.assert_same_weights(model.state_dict(), weights)


@pytest.mark.parametrize(("regularizer", "asked"), [(plain(), 0), (fgm(), 0), (rdrop(), 2)], ids=str)
def test_it_is_asked_once_and_only_where_that_matters(regularizer, asked):
    model, batch = task_model("causal_lm", 0.1), collate(task_rows("causal_lm", 4))
    passes = []
    model.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    regularization = Regularization(regularizer, model)
    regularization.weighting.problem(batch)
    assert passes.count(False) == asked
    regularization.backward(batch)
    looks = passes.count(False)  # of what rdrop runs as one batch, what is drawn at random is looked at too
    assert looks == asked or regularizer == rdrop()
    regularization.backward(batch)
    assert passes.count(False) == looks


# -- loops without a Trainer -----------------------------------------------------------------------------------------


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield Accelerator(cpu=True, gradient_accumulation_steps=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def by_hand(task):
    model = task_model(task)
    clean, adversarial = fgm_by_hand(task, model)
    (clean + adversarial).backward()
    return {"task": clean.item(), "adversarial_task": adversarial.item()}, tiny.gradients(model)


def assert_mean(named, expected):
    assert {name: (named[0][name] + named[1][name]).item() / 2 for name in named[0]} == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("single_backward", [False, True])
@pytest.mark.parametrize("task", ["causal_lm", "masked_lm", "seq2seq"])
def test_items_in_a_bare_loop(task, single_backward):
    model, window = task_model(task), micro_batches(task)
    regularization = Regularization(fgm(epsilon=0.5), model, single_backward=single_backward)
    items = sum(regularization.count_labels(batch) for batch in window)
    named = [regularization.backward(batch, accumulation=len(window), num_labels=items) for batch in window]
    expected, slopes = by_hand(task)
    assert_mean(named, expected)
    tiny.assert_same_gradients(tiny.gradients(model), slopes)


def test_items_in_an_accelerate_loop(accelerator):
    task = "causal_lm"
    model = accelerator.prepare(task_model(task))
    regularization = Regularization(fgm(epsilon=0.5), model, accelerator=accelerator)
    window = micro_batches(task)
    items = accelerator.reduce(sum(regularization.count_labels(batch) for batch in window))
    named = []
    for batch in window:
        with accelerator.accumulate(model):  # accelerator.backward divides by gradient_accumulation_steps
            named.append(regularization.backward(batch, num_labels=items))
    expected, slopes = by_hand(task)
    assert_mean(named, expected)
    tiny.assert_same_gradients(tiny.gradients(model), slopes)


def test_items_of_losses_that_the_loop_back_propagates():
    task = "masked_lm"
    model, window = task_model(task), micro_batches(task)
    regularization = Regularization(fgm(epsilon=0.5), model)
    items = int(sum(regularization.count_labels(batch) for batch in window))
    named = [regularization.losses(batch, accumulation=2, num_labels=items) for batch in window]
    (sum(sum(losses.values()) for losses in named) / 2).backward()
    expected, slopes = by_hand(task)
    assert_mean(named, expected)
    tiny.assert_same_gradients(tiny.gradients(model), slopes)


def test_items_weigh_examples_too():
    """19 examples as 16 and 3, each counting alike, where labels are not by position."""
    rows, model, whole = runs.examples(19), tiny.tiny_model(), tiny.tiny_model()
    Regularization(fgm(epsilon=0.5), whole).backward(runs.collate(rows))
    regularization = Regularization(fgm(epsilon=0.5), model)
    for part in (rows[:16], rows[16:]):
        regularization.backward(runs.collate(part), accumulation=2, num_labels=19)
    tiny.assert_same_gradients(tiny.gradients(model), tiny.gradients(whole))


# -- without labels --------------------------------------------------------------------------------------------------


def without_labels(task):
    batch = with_decoder_inputs(task)["data_collator"](task_rows(task, 4))
    return {name: value for name, value in batch.items() if name not in ("labels", "start_positions", "end_positions")}


@pytest.mark.parametrize("task", TASKS)
def test_labels_are_needed_only_by_terms_that_use_them(task):
    smooth = Smoothness(Gradient(L2(1.0), start=0.5), "kl")  # vat without its task loss
    model = task_model(task)
    named = Regularization(smooth, model).backward(without_labels(task))
    assert named["smoothness"] > 0
    assert any(gradient.any() for gradient in tiny.gradients(model).values())
    with pytest.raises(ValueError, match=r"returned no loss for a batch of .*: the task loss needs labels"):
        Regularization(fgm(), task_model(task)).backward(without_labels(task))


@pytest.mark.parametrize("task", ["token_classification", "question_answering", "multiple_choice", "causal_lm"])
def test_unlabeled_examples_beside_labelled_ones(task):
    rows = [{k: v for k, v in row.items() if k == "input_ids"} for row in task_rows(task, 8, seed=1)]
    options = {"unlabeled_dataset": [{**row, "labels": 0, "start_positions": 0} for row in rows]}
    log = trained(task, "vat(epsilon=0.5, start=0.5)", options=options)
    assert log["loss_unlabeled_smoothness"] > 0
    with keyed.noise():
        named = Regularization(parse("vat(epsilon=0.5, start=0.5)"), task_model(task)).backward(
            collate(task_rows(task, 4)), unlabeled=collate(task_rows(task, 4, seed=1))
        )
    assert set(named) == {"task", "smoothness", "unlabeled_smoothness"}


# -- sequence to sequence --------------------------------------------------------------------------------------------


class Seq2Seq(RegularizationMixin, Seq2SeqTrainer):
    pass


@pytest.mark.parametrize("task", ["seq2seq", "seq2seq_bart"])
def test_seq2seq_trainer_generates_in_evaluation(task, tmp_path):
    args = Seq2SeqTrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=1,
        max_steps=2, gradient_accumulation_steps=2, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=1,
        predict_with_generate=True, generation_max_length=6,
    )  # fmt: skip
    seen = []

    def metrics(predictions):
        seen.append(predictions.predictions.shape)
        return {"tokens": predictions.predictions.sum()}

    data = {**tiny_tasks.options(task, 16), "eval_dataset": task_rows(task, 6, seed=1)}
    one = Seq2Seq(
        model=task_model(task, 0.1), args=args, compute_metrics=metrics, regularizer=rat(epsilon=0.5), **data
    )
    one.train()
    trained_on = [log for log in one.state.log_history if "loss" in log]
    evaluated = [log for log in one.state.log_history if "eval_loss" in log]
    assert len(trained_on) == len(evaluated) == len(seen) == 2
    assert all(len(shape) == 2 and shape[0] == 6 for shape in seen), "tokens, not logits"
    assert {"loss_task", "loss_adversarial_task", "loss_adversarial_consistency"} <= set(trained_on[0])
    stock = Seq2SeqTrainer(model=one.model, args=args, compute_metrics=metrics, **data)
    stock.model_accepts_loss_kwargs = False
    mine, theirs = one.evaluate(), stock.evaluate()
    assert (mine["eval_loss"], mine["eval_tokens"]) == (theirs["eval_loss"], theirs["eval_tokens"])


@pytest.mark.parametrize("expression", ["rdrop", "expectation_linear", "vat"])
def test_what_looks_at_a_model_leaves_the_compiler_as_it_was(expression):
    compiled = []

    def backend(graph, examples):
        compiled.append(graph)
        return graph.forward

    Regularization(parse(expression), task_model("causal_lm")).backward(collate(task_rows("causal_lm", 4)))
    torch._dynamo.reset()
    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    assert compiled, "torch.compile is switched off for what comes after"
