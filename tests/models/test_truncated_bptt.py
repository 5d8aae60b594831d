"""The ReLU layer of the recurrent classifier and truncated back-propagation, against a slow loop over the steps."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_rat.models.configuration_rnn import RNNConfig
from hf_rat.models.modeling_rnn import RNNForSequenceClassification
from hf_rat.models.modeling_rnn_lm import RNNForCausalLM

CELLS = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
LENGTHS = [7, 4, 3, 1, 0]
LABELS = torch.tensor([0, 1, 2, 1, 0])


def make(kind=RNNForSequenceClassification, **options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "embedding_size": 6, "hidden_size": 5, "num_labels": 3, "classifier_hidden_size": 4}
    return kind(RNNConfig(**{**sizes, "initializer_range": 1.0, "classifier_dropout": 0.0, **options})).double()


def batch(side, time=9):
    ids = torch.randint(1, 20, (len(LENGTHS), time))
    mask = torch.zeros_like(ids)
    for row, n in enumerate(LENGTHS):
        places = {"right": range(n), "left": range(time - n, time), "holes": sorted(torch.randperm(time)[:n].tolist())}
        mask[row, list(places[side])] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": LABELS}


def detached(state):
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


def by_hand(model, inputs, steps):
    """The loss, text by text and step by step; what comes before the last `steps` steps is detached."""
    rows = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        x = [model.rnn.embeddings.weight[word] for word in ids[mask.bool()]]
        boundary = len(x) - steps
        for layer in model.rnn.layers:
            cell = CELLS[model.config.cell](layer.input_size, layer.hidden_size).double()
            names = {name: getattr(layer, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            state, outputs = None, []
            for t, word in enumerate(x):
                state = torch.func.functional_call(cell, names, (word[None], state))
                if t < boundary:
                    state = detached(state)
                outputs.append((state[0] if isinstance(state, tuple) else state)[0])
            x = outputs
        zero = torch.zeros(layer.hidden_size, dtype=torch.float64)
        pooled = {"last": x[-1] if x else zero, "mean": torch.stack(x).mean(0) if x else zero}[model.config.pooling]
        hidden = model.hidden.weight @ pooled + model.hidden.bias
        hidden = hidden * (hidden > 0)
        rows.append(model.classifier.weight @ hidden + model.classifier.bias)
    return F.cross_entropy(torch.stack(rows), inputs["labels"])


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("side", ["right", "left", "holes"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("steps", "pooling", "layers"), [(3, "last", 1), (1, "last", 2), (2, "mean", 2), (9, "mean", 1)]
)
def test_loss_and_gradients_are_those_of_a_loop_that_detaches(cell, side, steps, pooling, layers):
    model = make(cell=cell, pooling=pooling, num_hidden_layers=layers, truncated_bptt=steps)
    inputs = batch(side)
    loss, expected = model(**inputs).loss, by_hand(model, inputs, steps)
    torch.testing.assert_close(loss, expected)
    got = gradients(model, loss)
    for name, wanted in gradients(model, expected).items():
        torch.testing.assert_close(
            got[name], wanted, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )
    model.config.truncated_bptt = None
    whole = gradients(model, model(**inputs).loss)
    same = torch.allclose(whole["rnn.layers.0.weight_hh_l0"], got["rnn.layers.0.weight_hh_l0"])
    assert same == (steps >= max(LENGTHS)), "truncation changes the gradient where texts are longer, and nothing else"


def test_no_gradient_reaches_words_before_the_last_steps():
    model, inputs = make(truncated_bptt=3), batch("right")
    vectors = model.rnn.embeddings(inputs["input_ids"]).detach().requires_grad_()
    model(inputs_embeds=vectors, attention_mask=inputs["attention_mask"], labels=LABELS).loss.backward()
    reached = vectors.grad.abs().sum(-1) > 0
    for row, n in zip(reached, LENGTHS, strict=True):
        assert row.nonzero().flatten().tolist() == list(range(max(n - 3, 0), n))


def test_a_mask_on_the_recurrent_state_acts_before_and_after():
    """As adversarial dropout gives it: one mask for all steps, the gradient of which is that of the last ones."""
    model, inputs = make(truncated_bptt=2), batch("left")
    mask = (torch.rand(len(LENGTHS), 5, dtype=torch.float64) > 0.4).double()
    layer = model.rnn.layers[0]
    run = layer.forward
    layer.forward = lambda *args, **kwargs: run(*args, **{**kwargs, "recurrent_mask": mask})
    truncated = model(**inputs).logits
    model.config.truncated_bptt = None
    torch.testing.assert_close(model(**inputs).logits, truncated)


@pytest.mark.parametrize("kind", [{"variational": 0.5}, {"input": 0.5, "output": 0.5, "zoneout": 0.3}])
def test_dropout_runs_and_evaluation_is_whole(kind):
    model, inputs = make(truncated_bptt=2, recurrent_dropouts=kind), batch("right")
    assert all(g.isfinite().all() for g in gradients(model.train(), model(**inputs).loss).values())
    model.eval()
    kept = model(**inputs, output_hidden_states=True)
    model.config.truncated_bptt = None
    whole = model(**inputs, output_hidden_states=True)
    torch.testing.assert_close(kept.logits, whole.logits)
    for one, other in zip(kept.hidden_states, whole.hidden_states, strict=True):
        torch.testing.assert_close(one, other)


def test_a_language_model_of_the_same_configuration_learns_from_all_steps():
    inputs = batch("right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    grads = [
        gradients(model, model(**{**inputs, "labels": labels}).loss)
        for model in (make(RNNForCausalLM), make(RNNForCausalLM, truncated_bptt=2))
    ]
    for name, value in grads[0].items():
        torch.testing.assert_close(value, grads[1][name])


def test_the_layer_is_saved_and_loaded(tmp_path):
    model, inputs = make(), batch("right")
    model.save_pretrained(tmp_path)
    again = RNNForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64)
    assert again.hidden.weight.shape == (4, 5)
    torch.testing.assert_close(again.eval()(**inputs).logits, model.eval()(**inputs).logits)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"classifier_hidden_size": 0}, "classifier_hidden_size=0 is not a whole number of at least 1"),
        ({"truncated_bptt": 2.5}, r"truncated_bptt=2\.5 is not a whole number of at least 1"),
        ({"truncated_bptt": 3, "bidirectional": True}, "truncated_bptt=3 needs one direction"),
    ],
)
def test_bad_values_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        RNNConfig(**options)
