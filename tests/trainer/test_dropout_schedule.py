"""Dropout schedules: the rates that the calls of dropout really get, in each step of a run."""

import json
import math
from types import SimpleNamespace

import pytest
import runs
import tiny
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForSequenceClassification, FalconConfig, Trainer, TrainerCallback

from hf_rat.models.embedding import WordEmbedding
from hf_rat.models.recurrent import GRU, LSTM
from hf_rat.trainer.dropout_schedule import DropoutSchedule


class Recorder(TorchFunctionMode):
    """Notes the rate of every dropout that is on, kernels of attention included."""

    def __init__(self):
        super().__init__()
        self.rates = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.dropout:
            names = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
            if names.get("training", True):
                self.rates.append(names.get("p", 0.5))
        elif func is F.scaled_dot_product_attention:
            self.rates.append(kwargs.get("dropout_p", 0.0))
        return func(*args, **kwargs)


def rates_called(model, batch):
    with Recorder() as recorder, torch.no_grad():
        torch.manual_seed(0)
        model(**batch)
    return [rate for rate in recorder.rates if rate > 0]  # layers of ours make no call at rate 0


def begin(schedule, model, steps=100):
    schedule.on_train_begin(None, SimpleNamespace(global_step=0, max_steps=steps), None, model=model)


def step_begin(schedule, step, steps=100):
    schedule.on_step_begin(None, SimpleNamespace(global_step=step, max_steps=steps), None, model=None)


def step_end(schedule):
    schedule.on_step_end(None, SimpleNamespace(global_step=1, max_steps=100), None, model=None)


# --- the law -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [None, 0.003])
@pytest.mark.parametrize("step", [0, 1, 40, 400])
def test_the_rates_follow_the_papers_keep_probabilities(step, gamma):
    """theta(t) is the probability to keep, theta_bar its end: written as in the paper."""
    steps, rate, g = 400, 0.3, 10 / 400 if gamma is None else gamma
    theta_bar = 1 - rate
    curriculum = (1 - theta_bar) * math.exp(-g * step) + theta_bar
    annealed = 1 - (1 - theta_bar) * math.exp(-g * step)
    assert 1 - rate * DropoutSchedule("curriculum", gamma).share(step, steps) == pytest.approx(curriculum, abs=1e-12)
    assert 1 - rate * DropoutSchedule("annealed", gamma).share(step, steps) == pytest.approx(annealed, abs=1e-12)
    assert DropoutSchedule("switch", gamma).share(step, steps) == float(step >= 1 / g)


def test_the_default_gamma_is_ten_over_the_steps():
    share = DropoutSchedule().share
    assert share(0, 1000) == 0.0
    assert share(100, 1000) == pytest.approx(0.632, abs=1e-3)
    assert share(1000, 1000) == pytest.approx(0.99995, abs=1e-5)


# --- what is reached ----------------------------------------------------------------------------------------------


class Words(nn.Module):
    """Our own layers and torch's, with a rate of their own each."""

    def __init__(self):
        super().__init__()
        self.embeddings = WordEmbedding(tiny.VOCABULARY, 8, dropout=0.1)
        self.noise = nn.ModuleList([nn.Dropout1d(0.2), nn.AlphaDropout(0.3), nn.Dropout(0.0)])
        dropouts = {"variational": 0.25, "recurrent": 0.35, "zoneout": 0.45, "layers": 0.05, "dropconnect": 0.15}
        self.layer = GRU(8, 8, 2, dropout=dropouts)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.4)
        self.torch_layer = nn.LSTM(8, 8, 2, dropout=0.55)


def own_rates(model):
    p = model.layer.dropouts
    own = [model.embeddings.dropout, *(module.p for module in model.noise)]
    engine = [p.variational, p.recurrent, p.zoneout, p.layers, p.dropconnect, p.variational_x, p.rnndrop]
    return [*own, *engine, model.attention.dropout, model.torch_layer.dropout]


def test_the_layers_of_the_package_and_of_torch_are_reached():
    model, schedule = Words(), DropoutSchedule()
    before = own_rates(model)
    begin(schedule, model)
    step_begin(schedule, 10)
    scaled = [rate * (1 - math.exp(-1)) for rate in before]
    assert own_rates(model) == pytest.approx(scaled, abs=1e-12)
    step_end(schedule)
    assert own_rates(model) == before


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", [*tiny.FAMILIES, "falcon"])
def test_every_dropout_call_of_transformers_models_is_reached(family, attention):
    if family == "falcon":  # reads its rates from the config in each forward
        rates = {"hidden_dropout": 0.3, "attention_dropout": 0.3}
        sizes = {"vocab_size": tiny.VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = FalconConfig(**sizes, **rates, pad_token_id=0, parallel_attn=False)
        model = AutoModelForSequenceClassification.from_config(config).train()
    else:
        if attention == "sdpa" and not tiny.tiny_model(family)._supports_sdpa:
            pytest.skip("has eager attention only")
        model = tiny.tiny_model(family, dropout=0.3, _attn_implementation=attention)
    batch = tiny.tiny_batch()
    before, config = rates_called(model, batch), model.config.to_dict()
    assert max(before) == 0.3
    schedule = DropoutSchedule("curriculum", gamma=0.1)
    begin(schedule, model)
    for step in (0, 7, 3):
        step_begin(schedule, step)
        expected = [rate * (1 - math.exp(-0.1 * step)) for rate in before] if step else []
        assert rates_called(model, batch) == pytest.approx(expected, abs=1e-12)
        step_end(schedule)
        assert model.config.to_dict() == config
    assert rates_called(model, batch) == before


@pytest.mark.parametrize("family", ["bert", "llama", "bart"])
def test_in_the_first_step_there_is_no_dropout(family):
    model, batch, schedule = tiny.tiny_model(family, dropout=0.5), tiny.tiny_batch(), DropoutSchedule()
    begin(schedule, model)
    with torch.no_grad():
        wanted = model.eval()(**batch).logits
        model.train()
        assert not torch.allclose(model(**batch).logits, wanted, atol=1e-3)
        step_begin(schedule, 0)
        torch.testing.assert_close(model(**batch).logits, wanted)


def test_a_lstm_without_dropout_in_the_first_step_is_that_of_torch():
    layer = LSTM(3, 4, dropout={"variational": 0.5, "recurrent": 0.5, "zoneout_cell": 0.5})
    twin, x = nn.LSTM(3, 4, batch_first=True), torch.randn(2, 5, 3)
    twin.load_state_dict(layer.state_dict())
    schedule = DropoutSchedule()
    begin(schedule, layer)
    step_begin(schedule, 0)
    torch.testing.assert_close(layer(x)[0], twin(x)[0])


def test_rates_of_zero_stay_and_each_rate_has_its_own_target():
    model = tiny.tiny_model(dropout=0.0)
    schedule = DropoutSchedule("annealed", gamma=1.0)
    attention = model.bert.encoder.layer[1].attention.self.dropout
    attention.p, model.dropout.p = 0.4, 0.6
    begin(schedule, model)
    step_begin(schedule, 1)
    rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    assert rates == {0.0, 0.4 * math.exp(-1), 0.6 * math.exp(-1)}


def test_a_shared_layer_is_scaled_once():
    model = nn.ModuleList([nn.Dropout(0.5)])
    model.append(model[0])
    schedule = DropoutSchedule(gamma=1.0)
    begin(schedule, model)
    step_begin(schedule, 1)
    assert model[1].p == pytest.approx(0.5 * (1 - math.exp(-1)))


# --- in a run -----------------------------------------------------------------------------------------------------


class Watch(TrainerCallback):
    """The rate of one dropout when a step's gradients are done, in evaluation, and when a checkpoint is saved."""

    def __init__(self):
        self.stepping, self.between = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.stepping.append(model.dropout.p)

    def on_substep_end(self, args, state, control, model=None, **kwargs):
        self.stepping.append(model.dropout.p)

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        self.between.append(model.dropout.p)

    on_save = on_evaluate


def trainer(schedule, folder, *watch, steps=6, **settings):
    torch.manual_seed(1)
    options = {"callbacks": [schedule, *watch], "eval_dataset": runs.examples(4, seed=5)}
    saving = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 2}
    model = tiny.tiny_model(dropout=0.4, _attn_implementation="eager")
    settings = {"count": 20, "gradient_accumulation_steps": 2, "max_steps": steps, **saving, **settings}
    return runs.trainer(model=model, output_dir=str(folder), options=options, **settings)


def test_a_run_counts_optimizer_steps_and_ends_with_the_models_own_rates(tmp_path):
    watch = Watch()
    one = trainer(DropoutSchedule(), tmp_path, watch, count=24)
    one.train()
    expected = [0.4 * (1 - math.exp(-10 * step / 6)) for step in range(6) for _ in range(2)]  # two micro-batches each
    assert watch.stepping == pytest.approx(expected, abs=1e-12)
    assert set(watch.between) == {0.4}
    assert one.model.dropout.p == 0.4
    saved = json.loads((tmp_path / "checkpoint-3" / "config.json").read_text())
    assert saved["hidden_dropout_prob"] == saved["attention_probs_dropout_prob"] == 0.4


def test_a_resumed_run_goes_on_exactly(tmp_path):
    straight = trainer(DropoutSchedule(), tmp_path / "straight")
    straight.train()
    resumed = trainer(DropoutSchedule(), tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-3"))
    runs.assert_same_weights(runs.ran(resumed).weights, runs.ran(straight).weights)
    other = trainer(DropoutSchedule("annealed"), tmp_path / "other")
    other.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-3"))
    name = "classifier.weight"
    assert not torch.equal(runs.ran(other).weights[name], runs.ran(straight).weights[name])


def test_a_schedule_that_stays_full_changes_nothing(tmp_path):
    plain = trainer(Watch(), tmp_path / "plain")
    plain.train()
    full = trainer(DropoutSchedule("annealed", gamma=1e-30), tmp_path / "full")
    full.train()
    runs.assert_same_weights(runs.ran(full).weights, runs.ran(plain).weights)


def test_after_an_error_the_rates_come_back(tmp_path):
    class Interrupt(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            stepping.append(model.dropout.p)
            raise KeyboardInterrupt

    stepping = []
    one = trainer(DropoutSchedule(), tmp_path, Interrupt(), save_strategy="no", eval_strategy="no")
    with pytest.raises(KeyboardInterrupt):
        one.train()
    assert stepping == [0.0]
    assert one.model.dropout.p == one.model.config.hidden_dropout_prob == 0.4  # what is saved now is the model's own


def test_after_an_error_in_the_stock_trainer_the_next_run_has_the_models_own_rates(tmp_path):
    schedule = DropoutSchedule()
    one = trainer(schedule, tmp_path, kind=Trainer, steps=1, save_strategy="no", eval_strategy="no")
    begin(schedule, one.model)
    step_begin(schedule, 1)
    assert one.model.dropout.p != 0.4
    one.train()
    assert one.model.dropout.p == 0.4


def test_recomputed_activations_have_the_rates_of_the_step():
    """Checkpointing calls the layers again in backward: the gradients are those without it."""
    found = []
    for recompute in (False, True):
        model, schedule = tiny.tiny_model(dropout=0.4), DropoutSchedule(gamma=0.3)
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})
        begin(schedule, model)
        step_begin(schedule, 2)
        torch.manual_seed(3)
        model(**tiny.tiny_batch()).loss.backward()
        found.append(tiny.gradients(model))
    tiny.assert_same_gradients(*found, tolerance=1e-5)


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linear",), "dropout_schedule='linear' is none of curriculum, annealed, switch"),
        (("curriculum", 0.0), "dropout_gamma=0.0 must be a number above 0"),
        (("switch", math.nan), "dropout_gamma=nan"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match="dropout_") as error:
        DropoutSchedule(*arguments)
    assert message in str(error.value)


def test_a_model_without_dropout_is_refused():
    with pytest.raises(ValueError, match="BertForSequenceClassification has no dropout rate above 0"):
        begin(DropoutSchedule(), tiny.tiny_model())


@pytest.mark.parametrize("name", ["recurrent", "rnndrop", "zoneout", "zoneout_cell"])
def test_annealing_what_is_tested_at_its_full_rate_is_refused(name):
    layer = LSTM(3, 4, dropout={name: 0.5, "variational": 0.5})
    with pytest.raises(ValueError, match=f"but {name} scales in evaluation by its full rate"):
        begin(DropoutSchedule("annealed"), layer)
    begin(DropoutSchedule("switch"), layer)
