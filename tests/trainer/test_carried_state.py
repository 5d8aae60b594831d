"""A text read window by window, the state carried on: against loops by hand, over resumed runs, for foreign models."""

import copy
import math
import random
from collections import namedtuple

import pytest
import runs
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerCallback

from hf_rat import RegularizedTrainingArguments
from hf_rat.data.windows import Windows
from hf_rat.models import RNNConfig, RNNForCausalLM
from hf_rat.trainer.carried_state import FILE_NAME, CarriedStateTrainer, flatten, unflatten

VOCABULARY, WIDTH = 17, 6
RATES = {"input": 0.4, "hidden": 0.25, "output": 0.4, "dropconnect": 0.5}
WORD_DROPOUT, ALPHA, BETA = 0.1, 2.0, 1.0
pytestmark = pytest.mark.filterwarnings("ignore:.*(has no dropout|teaches nothing|flips none)")


def text(tokens=400, seed=0):
    return torch.randint(0, VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(seed))


def awd_lstm(**options):
    torch.manual_seed(0)
    config = RNNConfig(
        vocab_size=VOCABULARY,
        embedding_size=WIDTH,
        hidden_size=5,
        last_hidden_size=WIDTH,
        num_hidden_layers=2,
        pad_token_id=None,
        tie_word_embeddings=True,
        **{"embedding_dropout": WORD_DROPOUT, "recurrent_dropouts": RATES, "initializer": "uniform", **options},
    )
    return RNNForCausalLM(config)


class Seeded(TrainerCallback):
    """Random numbers of a step that do not depend on those before."""

    def on_step_begin(self, args, state, control, **kwargs):
        torch.manual_seed(100 + state.global_step)


class SaveAt(TrainerCallback):
    """Checkpoints at some steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step in self.steps


def make_trainer(model, windows, folder, reg="plain", **settings):
    evaluation = settings.pop("evaluation", None)
    more = {name: settings.pop(name) for name in ("length", "callbacks") if name in settings}
    settings = {
        "num_train_epochs": 2,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "no_price": True,
        **settings,
    }
    args = RegularizedTrainingArguments(
        output_dir=str(folder),
        reg=reg,
        use_cpu=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=windows.columns,
        per_device_eval_batch_size=1 if evaluation is None else evaluation.columns,
        **settings,
    )
    scores = {"perplexity": math.exp}
    return CarriedStateTrainer(
        model=model, args=args, train_dataset=windows, eval_dataset=evaluation, scores=scores, **more
    )


# --- a run by hand -------------------------------------------------------------------------------------------------


def awd_by_hand(weights, ids, targets, state):
    """(loss with AR and TAR, logits, state) of a training pass, written from the equations; torch draws the masks."""

    def drop(like, rate):
        return F.dropout(torch.ones_like(like), rate)

    table = weights["rnn.embeddings.weight"]
    words = drop(table[:, 0], WORD_DROPOUT)
    x = table[ids] * words[ids].unsqueeze(-1)
    x = x * drop(x[:, 0], RATES["input"]).unsqueeze(1)
    after = []
    for layer in (0, 1):
        if layer:
            x = x * drop(x[:, 0], RATES["hidden"]).unsqueeze(1)
        w_ih, w_hh, b_ih, b_hh = (
            weights[f"rnn.layers.{layer}.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        w_hh = F.dropout(w_hh, RATES["dropconnect"])
        size = w_hh.shape[1]
        h, c = (x.new_zeros(len(x), size) for _ in range(2)) if state is None else state[layer]
        outputs = []
        for t in range(x.shape[1]):
            i, f, g, o = (x[:, t] @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        x = torch.stack(outputs, 1)
        after.append((h.detach(), c.detach()))
    dropped = x * drop(x[:, 0], RATES["output"]).unsqueeze(1)
    logits = dropped @ table.T + weights["lm_head.bias"]
    loss = -logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).mean()
    loss = loss + ALPHA * dropped.square().mean()
    if x.shape[1] > 1:
        loss = loss + BETA * (x[:, 1:] - x[:, :-1]).square().mean()
    return loss, logits, after


@pytest.mark.parametrize("kappa", [0.0, 0.15], ids=["plain", "fraternal"])
def test_awd_lstm_by_hand(kappa, tmp_path):
    """Weight drop, word dropout, AR, TAR, tied weights, variable windows, clipped SGD, two passes from one state."""
    columns, length, rate, clip = 3, 8, 0.5, 0.25
    ids = text()
    windows = Windows(ids, columns, length, variable=True, seed=4)
    model = awd_lstm(activation_regularization=ALPHA, temporal_activation_regularization=BETA).double()
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    trainer = make_trainer(
        model,
        windows,
        tmp_path,
        f"fraternal(alpha={kappa})" if kappa else "plain",
        length=length,
        callbacks=[Seeded()],
        optim="sgd",
        learning_rate=rate,
        lr_scheduler_type="constant",
        max_grad_norm=clip,
    )
    trainer.train()

    steps, losses, step = (len(ids) - 1) // columns, [], 0
    inputs, targets = (part[: columns * steps].view(columns, steps) for part in (ids[:-1], ids[1:]))
    for epoch in (0, 1):
        windows.set_epoch(epoch)
        at, state = 0, None
        for width in windows.lengths.tolist():
            seen = slice(at, at + width)
            torch.manual_seed(100 + step)
            passes = [awd_by_hand(weights, inputs[:, seen], targets[:, seen], state) for _ in range(2 if kappa else 1)]
            loss = sum(one[0] for one in passes) / len(passes)
            if kappa:
                loss = loss + kappa * (passes[0][1] - passes[1][1]).square().mean()
            gradients = torch.autograd.grad(loss, list(weights.values()))
            norm = torch.stack([g.norm() for g in gradients]).norm()
            shrink = min(1.0, clip / (float(norm) + 1e-6))
            with torch.no_grad():
                for weight, gradient in zip(weights.values(), gradients, strict=True):
                    weight -= rate * width / length * shrink * gradient
            losses.append(float(loss.detach()))
            state, at, step = passes[0][2], at + width, step + 1
        assert at == steps
    logged = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert logged == pytest.approx(losses, rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, weights[name], rtol=1e-4, atol=1e-6)
    rates = {log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log}
    assert rates == {rate}  # the schedule's, whatever the lengths are


def test_prediction_regularisation_by_hand():
    model = awd_lstm(prediction_regularization=0.7, embedding_dropout=0.0, recurrent_dropouts={}).double().train()
    ids = text(60).view(4, 15)
    targets = ids.roll(-1, 1).clone()
    targets[0, 3:] = -100
    output = model(ids, shift_labels=targets)
    keep = targets != -100
    total, task = 0.0, 0.0
    for row, step in keep.nonzero().tolist():
        z = output.logits[row, step]
        total += sum(float(one) ** 2 for one in z) / VOCABULARY
        task -= float(z.log_softmax(0)[targets[row, step]])
    count = int(keep.sum())
    assert float(output.loss) == pytest.approx(task / count + 0.7 * total / count, rel=1e-6)
    assert float(model.eval()(ids, shift_labels=targets).loss) == pytest.approx(task / count, rel=1e-6)


# --- evaluation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 4])
@pytest.mark.parametrize("length", [1, 11, 500])
def test_perplexity_is_that_of_a_loop_over_tokens(columns, length, tmp_path):
    """One token at a time; in columns, each begins without a state."""
    ids, model = text(90, seed=3), awd_lstm().double()
    windows = Windows(ids, columns, length, whole=True)
    trainer = make_trainer(model, Windows(ids, 2, 5), tmp_path, evaluation=windows)
    found = trainer.evaluate()
    pairs = list(zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True))
    longer, rest = divmod(len(pairs), columns)
    sizes = [longer + (column < rest) for column in range(columns)]
    total = 0.0
    with torch.no_grad():
        for size in sizes:
            state = None
            for _ in range(size):
                one, following = pairs.pop(0)
                output = model(torch.tensor([[one]]), state=state)
                state = output.state
                scores = output.logits[0, 0].tolist()
                top = max(scores)
                total += top + math.log(sum(math.exp(z - top) for z in scores)) - scores[following]
    assert not pairs
    assert found["eval_loss"] == pytest.approx(total / 89, rel=1e-6)
    assert found["eval_perplexity"] == pytest.approx(math.exp(total / 89), rel=1e-6)


def test_evaluation_within_an_epoch_changes_nothing(tmp_path):
    windows, evaluation = Windows(text(), 3, 8), Windows(text(50, seed=2), 2, 9, whole=True)
    weights = []
    for how in ({"eval_strategy": "no"}, {"eval_strategy": "steps", "eval_steps": 3}):
        trainer = make_trainer(awd_lstm(), windows, tmp_path, evaluation=evaluation, callbacks=[Seeded()], **how)
        trainer.train()
        weights.append(copy.deepcopy(trainer.model.state_dict()))
    runs.assert_same_weights(*weights)


def test_the_averaged_model_is_evaluated(tmp_path):
    windows, evaluation = Windows(text(), 3, 8), Windows(text(50, seed=2), 2, 9, whole=True)
    trainer = make_trainer(awd_lstm(), windows, tmp_path, evaluation=evaluation, average="ema(0.9)", learning_rate=0.1)
    trainer.train()
    averaged = trainer.evaluate()["eval_loss"]
    model = copy.deepcopy(trainer.model).eval()
    alone = make_trainer(model, windows, tmp_path, evaluation=evaluation)
    assert alone.evaluate()["eval_loss"] == pytest.approx(averaged)


# --- what is carried -----------------------------------------------------------------------------------------------

Memory = namedtuple("Memory", "cell hidden")


class OwnModel(nn.Module):
    """A user's own: another order of its state, in a tuple of its own."""

    def __init__(self, p=0.2, width=7):
        super().__init__()
        self.table, self.lstm, self.head = nn.Embedding(VOCABULARY, 5), nn.LSTM(5, width), nn.Linear(width, VOCABULARY)
        self.dropout, self.calls, self.starts = nn.Dropout(p), 0, []

    def get_input_embeddings(self):
        return self.table

    def forward(
        self, input_ids: Tensor, shift_labels: Tensor | None = None, state: Memory | None = None
    ) -> dict[str, object]:
        self.calls += 1
        self.starts.append(state)
        x = self.dropout(self.table(input_ids)).transpose(0, 1)
        x, (h, c) = self.lstm(x, None if state is None else (state[1], state[0]))
        logits = self.head(self.dropout(x.transpose(0, 1)))
        loss = F.cross_entropy(logits.flatten(0, 1), shift_labels.flatten())
        return {"loss": loss, "logits": logits, "state": Memory(c, h)}


PASSES = {
    "plain": 1,
    "fgm(epsilon=0.5)": 2,
    "fraternal": 2,
    "rdrop": 2,
    "expectation_linear": 2,
    "rat(epsilon=0.5)": 3,
    "freelb(epsilon=0.4, step=0.2, steps=3)": 3,
}


@pytest.mark.parametrize(("reg", "passes"), PASSES.items())
def test_a_foreign_model_carries_its_state_and_runs_no_pass_for_it(reg, passes, tmp_path):
    torch.manual_seed(0)
    model, windows = OwnModel(), Windows(text(), 3, 8)
    trainer = make_trainer(model, windows, tmp_path, reg, num_train_epochs=1, reg_problem="causal_lm")
    before = model.calls
    trainer.train()
    steps = len(windows) // 3
    assert trainer.state.global_step == steps
    assert model.calls - before == pytest.approx(passes * steps, abs=4)  # a few more look at the first batch
    assert model.starts[0] is None
    later = [start for start in model.starts if start is not None]
    assert all(isinstance(start, Memory) and not start.cell.requires_grad for start in later)
    values = {float(start.cell.sum()) for start in later}
    assert len(values) == steps - 1  # every pass of a step starts from one state, each step from another


@pytest.mark.parametrize("reg", [*runs.SETTINGS.values(), "adversarial_dropout(rate=0.3, site='recurrent')"])
def test_every_recipe_trains_a_text(reg, tmp_path):
    windows = Windows(text(130), 3, 8)
    trainer = make_trainer(awd_lstm(), windows, tmp_path, reg, num_train_epochs=1, learning_rate=1e-2)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    assert all(math.isfinite(log["loss"]) for log in trainer.state.log_history if "loss" in log)
    assert any(not torch.equal(before[name], weight) for name, weight in trainer.model.state_dict().items())


def test_a_state_that_is_not_finite_is_not_carried(tmp_path):
    class Breaks(OwnModel):
        def forward(self, input_ids, shift_labels=None, state=None):
            output = super().forward(input_ids, shift_labels, state)
            if self.calls == 3:
                output["state"] = Memory(*(part * math.nan for part in output["state"]))
            return output

    torch.manual_seed(0)
    model = Breaks()
    make_trainer(model, Windows(text(), 3, 8), tmp_path, num_train_epochs=1).train()
    assert all(start.cell.isfinite().all() for start in model.starts if start is not None)
    assert model.starts[3] is model.starts[2]


def test_a_look_at_a_whole_step_is_refused(tmp_path):
    with pytest.raises(ValueError, match="before the first pass, when the state that they start from is not known"):
        make_trainer(awd_lstm(), Windows(text(), 3, 8), tmp_path, "sam(over='step')")


def test_accumulation_hands_the_state_from_one_micro_batch_to_the_next(tmp_path):
    torch.manual_seed(0)
    model = OwnModel(p=0.0)
    trainer = make_trainer(
        model, Windows(text(), 3, 8), tmp_path, num_train_epochs=1, gradient_accumulation_steps=4, learning_rate=0.0
    )
    trainer.train()
    state, windows = None, Windows(text(), 3, 8)
    for window, start in enumerate(model.starts):
        if window:
            for ours, theirs in zip(start, state, strict=True):
                torch.testing.assert_close(ours, theirs)
        batch = [windows[3 * window + column]["input_ids"] for column in range(3)]
        with torch.no_grad():
            x = model.table(torch.stack(batch)).transpose(0, 1)
            _, (h, c) = model.lstm(x, None if state is None else (state.hidden, state.cell))
        state = Memory(c, h)


# --- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reg", ["plain", "fraternal", "smart(epsilon=0.05, step=0.05, start=0.02, beta=0.5)"])
def test_a_run_that_goes_on_within_an_epoch_is_the_one_that_was_not_cut(reg, tmp_path):
    windows = Windows(text(), 3, 8, variable=True, seed=2)
    count = len(windows) // 3
    settings = {"learning_rate": 1e-2, "length": 8}
    within = random.Random(0).sample([n for n in range(1, 2 * count) if n % count], 5 if reg == "plain" else 2)
    cuts = [*within, *([count] if reg == "plain" else [])]  # the end of an epoch too
    whole = make_trainer(awd_lstm(), windows, tmp_path / "whole", reg, callbacks=[SaveAt(cuts)], **settings)
    whole.train()
    for cut in cuts:
        again = make_trainer(awd_lstm(), windows, tmp_path / f"again-{cut}", reg, **settings)
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{cut}"))
        runs.assert_same_weights(again.model.state_dict(), whole.model.state_dict())
        for ours, theirs in zip(flatten(again._state).values(), flatten(whole._state).values(), strict=True):
            assert ours.equal(theirs)
        logs = [[log["loss"] for log in one.state.log_history if "loss" in log] for one in (again, whole)]
        assert logs[0] == logs[1]


def test_a_checkpoint_of_other_windows_is_refused(tmp_path):
    make_trainer(awd_lstm(), Windows(text(), 3, 8), tmp_path / "one", callbacks=[SaveAt([4])], max_steps=4).train()
    checkpoint = str(tmp_path / "one" / "checkpoint-4")
    for windows, name in (
        (Windows(text(seed=1), 3, 8), "text"),
        (Windows(text(), 3, 9), "length 8, those of this run 9"),
        (Windows(text(), 2, 8), "columns 3, those of this run 2"),
        (Windows(text(), 3, 8, variable=True), "variable False"),
    ):
        with pytest.raises(ValueError, match=f"its windows have {name}"):
            make_trainer(awd_lstm(), windows, tmp_path / "two").train(resume_from_checkpoint=checkpoint)
    (tmp_path / "one" / "checkpoint-4" / FILE_NAME).unlink()
    with pytest.raises(ValueError, match=f"has no {FILE_NAME}"):
        make_trainer(awd_lstm(), Windows(text(), 3, 8), tmp_path / "two").train(resume_from_checkpoint=checkpoint)


@pytest.mark.parametrize(
    "state",
    [torch.ones(2), (torch.ones(2),), ((torch.ones(1), torch.zeros(2)), torch.ones(3)), tuple(torch.ones(12, 1))],
    ids=["tensor", "one", "nested", "more than ten"],
)
def test_states_are_taken_apart_and_put_together(state):
    again = unflatten(dict(sorted(flatten(state).items())))
    assert flatten(again).keys() == flatten(state).keys()
    assert all(one.equal(flatten(state)[name]) for name, one in flatten(again).items())
