"""The recurrent classifiers against torch's layers, one example at a time, unpadded."""

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from hf_rat.finetuning.pretrained import set_dropout
from hf_rat.models.configuration_rnn import RNNConfig
from hf_rat.models.modeling_rnn import RNNForSequenceClassification, RNNForTokenClassification, RNNModel
from hf_rat.models.modeling_rnn_lm import RNNForCausalLM
from hf_rat.models.recurrent import _Recurrent

TORCH = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
VOCABULARY, LABELS = 20, 3
LENGTHS = [5, 2, 1]
TIME = 7


def config(**options):
    sizes = {"vocab_size": VOCABULARY, "embedding_size": 6, "hidden_size": 5, "num_labels": LABELS}
    # A wide initialisation, so that the logits of a tiny model depend on its input.
    return RNNConfig(**{**sizes, "initializer_range": 1.0, "classifier_dropout": 0.0, **options})


def make(kind=RNNForSequenceClassification, **options):
    return kind(config(**options)).double().eval()


def same(left, right):
    """Equal but for what the alignment of the weights in memory does to the last bits."""
    torch.testing.assert_close(left, right, rtol=0.0, atol=1e-14)


def make_examples():
    return [torch.randint(1, VOCABULARY, (length,)) for length in LENGTHS]


def padded(examples, side):
    """The ids (batch, TIME) and the mask; what stands at padding is a word like any other."""
    ids = torch.randint(1, VOCABULARY, (len(examples), TIME))
    mask = torch.zeros(len(examples), TIME, dtype=torch.long)
    for row, example in enumerate(examples):
        n = len(example)
        places = {"right": range(n), "left": range(TIME - n, TIME), "holes": sorted(torch.randperm(TIME)[:n].tolist())}
        mask[row, list(places[side])] = 1
    ids[mask.bool()] = torch.cat(examples)
    return ids, mask


SIDES = ["right", "left", "holes"]


def run_layers(model, ids):
    """(time, width) outputs and the final states of the last layer, by torch's own layers, for one example."""
    x = model.embeddings.weight[ids].unsqueeze(0)
    options = {"batch_first": True, "bidirectional": model.config.bidirectional}
    for depth, layer in enumerate(model.layers):
        twin = TORCH[model.config.cell](x.size(2), layer.hidden_size, **options).double()
        twin.load_state_dict(layer.state_dict())
        if depth and model.config.between == "tanh":
            x = torch.tanh(x)
        x, state = twin(x)
    h = state[0] if model.config.cell == "lstm" else state
    return x[0], h[:, 0].flatten()


def expected_logits(model, ids):
    outputs, last = run_layers(model.rnn, ids)
    if model.config.pooling == "attention":
        project, query = model.attention.project, model.attention.query
        scores = torch.tanh(outputs @ project.weight.T + project.bias) @ query.weight[0]
        pooled = (scores.exp() / scores.exp().sum()) @ outputs
    else:
        pooled = {"last": last, "mean": outputs.mean(0), "max": outputs.max(0).values}[model.config.pooling]
    return model.classifier.weight @ pooled + model.classifier.bias


# --- logits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["last", "mean", "max", "attention"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", TORCH)
def test_logits_are_those_of_torch_on_each_example_alone(cell, bidirectional, pooling):
    stack = {"num_hidden_layers": 2, "last_hidden_size": 4, "between": "tanh"} if pooling == "last" else {}
    model = make(cell=cell, bidirectional=bidirectional, pooling=pooling, **stack)
    examples = make_examples()
    expected = torch.stack([expected_logits(model, ids) for ids in examples])
    for side in SIDES:
        ids, mask = padded(examples, side)
        torch.testing.assert_close(model(ids, mask).logits, expected)
    torch.testing.assert_close(model(examples[0][None]).logits, expected[:1])  # no mask: all steps are valid


@pytest.mark.parametrize("pooling", ["last", "attention"])
def test_gradients_do_not_depend_on_padding(pooling):
    model = make(pooling=pooling, bidirectional=True, num_hidden_layers=2)
    examples = make_examples()

    def gradients(batches):
        model.zero_grad()
        for ids, mask in batches:
            model(ids, mask).logits.square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    alone = gradients([(ids[None], None) for ids in examples])
    assert all(grad.abs().sum() > 0 for grad in alone)
    for side in SIDES:
        for ours, expected in zip(gradients([padded(examples, side)]), alone, strict=True):
            torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("side", SIDES)
def test_token_logits_and_loss(side):
    model = make(RNNForTokenClassification, bidirectional=True)
    examples = make_examples()
    expected = [run_layers(model.rnn, ids)[0] @ model.classifier.weight.T + model.classifier.bias for ids in examples]
    ids, mask = padded(examples, side)
    labels = torch.where(mask == 1, torch.randint(LABELS, ids.shape), -100)
    labels[0, mask[0].argmax()] = -100
    outputs = model(ids, mask, labels=labels)
    losses = []
    for row, logits in enumerate(expected):
        valid = mask[row] == 1
        torch.testing.assert_close(outputs.logits[row, valid], logits)
        pairs = zip(logits, labels[row, valid], strict=True)
        losses += [logit.logsumexp(0) - logit[label] for logit, label in pairs if label != -100]
    assert len(losses) == sum(LENGTHS) - 1
    torch.testing.assert_close(outputs.loss, sum(losses).float() / len(losses))  # transformers reduces in float32


@pytest.mark.parametrize("pooling", ["last", "mean", "max", "attention"])
def test_an_example_of_padding_alone_pools_to_zero(pooling):
    model = make(pooling=pooling, bidirectional=True)
    ids, mask = padded(make_examples(), "right")
    mask[1] = 0
    embeds = model.get_input_embeddings()(ids).detach()
    embeds[mask == 0] = float("nan")
    logits = model(inputs_embeds=embeds, attention_mask=mask).logits
    torch.testing.assert_close(logits[1], model.classifier.bias)
    assert logits.isfinite().all()
    # A batch of empty texts, as a tokenizer returns it.
    torch.testing.assert_close(model(torch.zeros(2, 0)).logits, model.classifier.bias.expand(2, -1))


def test_problem_types():
    ids, mask = padded(make_examples(), "left")
    single, several = torch.tensor([2, 0, 1]), torch.rand(3, LABELS).double().round()

    def loss_and_logits(labels, **options):
        model = make(**options)
        outputs = model(ids, mask, labels=labels)
        return outputs.loss, outputs.logits, model.config.problem_type

    loss, logits, kind = loss_and_logits(single)
    torch.testing.assert_close(loss, (logits.logsumexp(1) - logits[range(3), single]).mean())
    assert kind == "single_label_classification"
    loss, logits, kind = loss_and_logits(several)
    p = logits.sigmoid()
    torch.testing.assert_close(loss, -(several * p.log() + (1 - several) * (1 - p).log()).mean())
    assert kind == "multi_label_classification"
    loss, logits, kind = loss_and_logits(torch.rand(3).double(), num_labels=1)
    assert (loss.ndim, kind) == (0, "regression")
    labels = torch.rand(3, LABELS).double()
    loss, logits, kind = loss_and_logits(labels, problem_type="regression")
    torch.testing.assert_close(loss, (logits - labels).square().mean())


def test_outputs_follow_the_conventions():
    model = make(num_hidden_layers=2, bidirectional=True, last_hidden_size=3)
    ids, mask = padded(make_examples(), "left")
    outputs = model(ids, mask, output_hidden_states=True)
    assert [each.shape[2] for each in outputs.hidden_states] == [6, 10, 6]
    assert outputs.hidden_states[-1][mask == 0].eq(0).all()
    outputs = model(ids, mask, labels=torch.tensor([0, 1, 2]), return_dict=False)
    assert isinstance(outputs, tuple)
    assert [part.shape for part in outputs] == [(), (3, LABELS)]
    encoded = model.rnn(ids, mask)
    assert [[s.shape for s in pair] for pair in encoded.state] == [[(2, 3, 5)] * 2, [(2, 3, 3)] * 2]
    assert model.rnn(ids, mask, use_cache=False).state is None
    embeds = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(inputs_embeds=embeds, attention_mask=mask).logits, model(ids, mask).logits)


def test_the_embedding_module_runs_once_on_ids_and_makes_the_input():
    model = make()
    calls = []
    model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: calls.append(args[0]) or output * 0
    )
    ids, mask = padded(make_examples(), "left")
    logits = model(ids, mask).logits
    assert len(calls) == 1
    assert calls[0] is ids
    zeros = torch.zeros(*ids.shape, 6).double()
    torch.testing.assert_close(logits, model(inputs_embeds=zeros, attention_mask=mask).logits)


# --- dropout -----------------------------------------------------------------------------------------------------


def record_layer_inputs(model):
    seen = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    return seen


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("rate", ["input", "hidden", "layers", "output"])
def test_a_rate_acts_in_its_place(rate, per_step):
    rates = {rate: 0.5, "per_step": [rate] if per_step and rate != "layers" else []}
    model = RNNModel(config(num_hidden_layers=3, recurrent_dropouts=rates)).double().train()
    seen = record_layer_inputs(model)
    outputs = model(torch.randint(1, VOCABULARY, (4, TIME)), output_hidden_states=True)
    before = list(outputs.hidden_states)
    after = [*seen, outputs.last_hidden_state]
    places = {"input": [0], "hidden": [1, 2], "layers": [1, 2], "output": [3]}[rate]
    for place, (x, y) in enumerate(zip(before, after, strict=True)):
        ratio = (y / x).detach()
        if place not in places:
            assert ratio.eq(1).all()
            continue
        assert set(ratio.flatten().round(decimals=9).tolist()) == {0.0, 2.0}
        fixed = ratio.std(1).max() < 1e-9
        assert fixed == (
            rate != "layers" and not per_step
        )  # a locked mask is the same at all steps, and another for each example
        assert ratio.std(0).max() > 0


def test_rates_inside_the_layers_and_evaluation():
    rates = {"input": 0.4, "hidden": 0.3, "layers": 0.2, "output": 0.4, "variational": 0.3, "zoneout_cell": 0.1}
    model = make(RNNModel, num_hidden_layers=2, recurrent_dropouts=rates | {"zoneout_cell": 0.0})
    for layer in model.layers:
        assert layer.dropouts.set() == {"variational": 0.3}
    ids = torch.randint(1, VOCABULARY, (2, TIME))
    plain = make(RNNModel, num_hidden_layers=2)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(ids).last_hidden_state, plain(ids).last_hidden_state)
    with pytest.raises(ValueError, match="zoneout_cell is not defined for GRU"):
        make(RNNModel, cell="gru", num_hidden_layers=2, recurrent_dropouts=rates)


@pytest.mark.parametrize(
    ("options", "attribute"),
    [
        ({"cell": "rnn", "nonlinearity": "relu"}, "nonlinearity"),
        ({"cell": "gru", "reset_after": False}, "reset_after"),
    ],
)
def test_an_option_of_a_cell_reaches_every_layer_and_is_saved(options, attribute, tmp_path):
    model = make(RNNModel, num_hidden_layers=2, **options)
    assert [getattr(layer, attribute) for layer in model.layers] == [options[attribute]] * 2
    ids = torch.randint(1, VOCABULARY, (2, TIME))
    other = make(RNNModel, num_hidden_layers=2, cell=options["cell"])
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(model(ids).last_hidden_state, other(ids).last_hidden_state)
    model.save_pretrained(tmp_path)
    again = RNNModel.from_pretrained(tmp_path)
    same(again(ids).last_hidden_state, model(ids).last_hidden_state)


def test_the_command_lines_dropout_finds_the_rates():
    own = config(recurrent_dropouts={"variational": 0.3})
    assert sorted(set_dropout(own, 0.2)) == ["classifier_dropout", "embedding_dropout"]
    model = RNNForSequenceClassification(own)
    assert (model.dropout.p, model.rnn.embeddings.dropout) == (0.2, 0.2)


def test_a_hook_can_mask_the_recurrence_of_the_last_layer():
    model = make(num_hidden_layers=2, bidirectional=True)
    layer = [module for module in model.modules() if isinstance(module, _Recurrent)][-1]
    assert layer is model.rnn.layers[-1]
    ids, mask = padded(make_examples(), "left")
    plain = model(ids, mask).logits
    recurrent_mask = torch.ones(3, 5).double().requires_grad_()
    layer.register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | {"recurrent_mask": recurrent_mask}), with_kwargs=True
    )
    masked = model(ids, mask).logits
    torch.testing.assert_close(masked, plain)
    gain = torch.autograd.grad(masked.sum(), recurrent_mask)[0]
    assert gain[:2].ne(0).all()
    assert gain[2].eq(0).all()  # an example of one step has no recurrence


# --- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forget", [1.0, None])
def test_initialisation(forget):
    options = {"vocab_size": 500, "hidden_size": 16, "embedding_size": 50, "pooling": "attention"}
    model = AutoModelForSequenceClassification.from_config(
        config(**options, initializer_range=0.3, forget_bias=forget, normalize_embeddings=True, bidirectional=True)
    )
    vectors = model.rnn.embeddings.weight
    assert vectors[0].eq(0).all()
    assert abs(vectors[1:].std() - 0.3) < 0.01
    assert model.rnn.embeddings.frequencies.eq(1 / 500).all()
    layer = model.rnn.layers[0]
    for name, weight in layer.named_parameters():
        if name.startswith("weight"):
            # Uniform between the bounds 16 ** -0.5 = 0.25: the deviation is the width over sqrt(12).
            assert weight.abs().max() < 0.25
            assert abs(weight.std() - 0.5 / 12**0.5) < 0.01
    for suffix in ("l0", "l0_reverse"):
        bias = (getattr(layer, f"bias_ih_{suffix}") + getattr(layer, f"bias_hh_{suffix}")).detach()
        assert bias[16:32].eq(1.0).all() == (forget == 1.0)
        assert bias.unique().numel() > 40
    assert model.classifier.bias.eq(0).all()
    assert model.classifier.weight.abs().max() < 32**-0.5


def test_loaded_vectors_and_biases_survive(tmp_path):
    model = make(normalize_embeddings=True)
    with torch.no_grad():
        model.rnn.embeddings.weight.copy_(torch.randn(VOCABULARY, 6))
        model.rnn.embeddings.frequencies.copy_(torch.rand(VOCABULARY))
        model.rnn.layers[0].bias_ih_l0.fill_(3.0)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is RNNForSequenceClassification
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].equal(tensor), name
    ids, mask = padded(make_examples(), "right")
    same(loaded(ids, mask).logits, model(ids, mask).logits)


def test_the_encoder_alone_is_found(tmp_path):
    model = make(RNNModel, num_hidden_layers=2)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is RNNModel
    ids, mask = padded(make_examples(), "left")
    same(loaded(ids, mask)[0], model(ids, mask)[0])


@pytest.mark.parametrize("kind", [RNNForSequenceClassification, RNNForCausalLM])
def test_a_checkpoint_takes_along_the_files_that_it_needs(kind, tmp_path):
    make(kind).save_pretrained(tmp_path)
    needed = {"configuration_rnn", "configuration_words", "modeling_rnn", "modeling_words"}
    needed |= {"embedding", "padding", "pooling", "recurrence", "recurrence_in_autograd"}
    needed |= {"recurrent", "recurrent_dropouts"}
    if kind is RNNForCausalLM:
        needed |= {"modeling_rnn_lm", "next_token_loss"}
    assert {path.stem for path in tmp_path.glob("*.py")} == needed


def test_only_a_missing_head_is_initialised(tmp_path):
    encoder = make(RNNForCausalLM)
    with torch.no_grad():
        for parameter in encoder.rnn.parameters():
            parameter.fill_(7.0)
    encoder.save_pretrained(tmp_path)
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert all(parameter.eq(7.0).all() for parameter in model.rnn.parameters())
    assert model.classifier.bias.eq(0).all()
    assert 0 < model.classifier.weight.abs().max() < 5**-0.5


def test_a_module_loaded_in_part_keeps_what_was_loaded(tmp_path):
    model = make(RNNForCausalLM)
    with torch.no_grad():
        for parameter in model.rnn.parameters():
            parameter.fill_(7.0)
    model.save_pretrained(tmp_path)
    wider = {"bidirectional": True, "normalize_embeddings": True}
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True, **wider)
    new = {f"layers.0.{name}_l0_reverse" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    assert set(info["missing_keys"]) == new | {"embeddings.frequencies"}
    for name, tensor in loaded.state_dict().items():
        assert (name in info["missing_keys"]) != tensor.eq(7.0).all(), name
    assert loaded.embeddings.frequencies.eq(1 / VOCABULARY).all()
    assert loaded.layers[0].bias_ih_l0_reverse[5:10].eq(1.0).all()


@pytest.mark.parametrize("normalized", [False, True])
def test_resized_vocabulary(normalized, tmp_path):
    model = make(normalize_embeddings=normalized)
    ids, mask = padded(make_examples(), "right")
    logits = model(ids, mask).logits
    model.resize_token_embeddings(VOCABULARY + 4, mean_resizing=False)
    # A new word has no share in the normalisation, so the old ones stay what they were.
    torch.testing.assert_close(model(ids, mask).logits, logits)
    ids[0, 0] = VOCABULARY + 3
    assert not torch.allclose(model(ids, mask).logits[0], logits[0])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    same(loaded(ids, mask).logits, model(ids, mask).logits)
    model.resize_token_embeddings(VOCABULARY - 2)
    assert model(ids.clamp(max=VOCABULARY - 3), mask).logits.isfinite().all()


def test_gradient_through_evaluation_and_low_precision():
    model = make(bidirectional=True).float()
    ids, mask = padded(make_examples(), "left")
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()

    def logits_and_gradient():
        logits = model(inputs_embeds=embeds, attention_mask=mask).logits
        return logits.float(), torch.autograd.grad(logits.float().square().sum(), embeds)[0]

    evaluated = logits_and_gradient()
    assert evaluated[1][mask == 0].eq(0).all()
    model.train()  # all rates are 0
    for ours, expected in zip(logits_and_gradient(), evaluated, strict=True):
        torch.testing.assert_close(ours, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for ours, expected in zip(logits_and_gradient(), evaluated, strict=True):
            torch.testing.assert_close(ours, expected, atol=0.05, rtol=0.05)


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "qrnn"}, "cell='qrnn' is none of lstm, gru, rnn"),
        ({"pooling": "first"}, "pooling='first' is none of last, mean, max, attention"),
        ({"between": "relu", "num_hidden_layers": 2}, "between='relu' is none of None, tanh"),
        ({"between": "tanh"}, "between=tanh acts between layers, and num_hidden_layers=1 has none"),
        ({"recurrent_dropouts": {"hidden": 0.2}}, "dropout hidden=0.2 acts between layers, and num_hidden_layers=1"),
        ({"recurrent_dropouts": {"zone": 0.2}}, "dropout zone is unknown"),
        ({"recurrent_dropouts": {"zoneout": 1.5}}, r"dropout zoneout=1.5 is not a rate in \[0, 1\)"),
        ({"recurrent_dropouts": 0.3}, "recurrent_dropouts=0.3 is not a mapping"),
        ({"hidden_size": 0}, "hidden_size=0 is not a whole number of at least 1"),
        ({"last_hidden_size": -1}, "last_hidden_size=-1 is not"),
        ({"classifier_dropout": 1.0}, r"classifier_dropout=1.0 is not a rate in \[0, 1\)"),
        ({"embedding_dropout_per": "word"}, "embedding_dropout_per='word' is none of batch, example"),
        ({"activation_regularization": -1.0}, "activation_regularization=-1.0 is not a number of at least 0"),
        ({"pad_token_id": VOCABULARY}, "pad_token_id=20 is outside the vocabulary of 20 words"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message) as error:
        config(**options)
    assert "\n" not in str(error.value)


def test_bad_inputs():
    model = make(RNNModel)
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="input_ids and inputs_embeds: neither was given, expected one"):
        model()
    with pytest.raises(ValueError, match="both was given"):
        model(ids, inputs_embeds=model.embeddings(ids))
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 4\), expected \(batch, time\) \(2, 3\)"):
        model(ids, torch.ones(2, 4))
    with pytest.raises(ValueError, match="state has 2 entries, expected one for each of 1 layers"):
        model(ids, state=(None, None))
    own = config()
    own.pooling = "first"  # after the configuration was read
    with pytest.raises(ValueError, match="pooling='first'"):
        RNNForSequenceClassification(own)


def by_hand(model, ids, kinds):
    """(time, width) outputs of an LSTM by torch, for one example: the window of each word laid out word by word."""
    window, size = model.config.window, model.config.embedding_size
    words = model.embeddings.weight[ids]
    if kinds is not None:
        words = torch.cat([words, model.type_embeddings.weight[kinds]], 1)
        size += model.config.type_embedding_size
    steps = []
    for step in range(len(ids)):
        near = range(step - window // 2, step + window // 2 + 1)
        steps.append(torch.cat([words[at] if 0 <= at < len(ids) else words.new_zeros(size) for at in near]))
    (layer,) = model.layers
    twin = nn.LSTM(window * size, layer.hidden_size, batch_first=True).double()
    twin.load_state_dict(layer.state_dict())
    return twin(torch.stack(steps).unsqueeze(0))[0][0]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("window", "types"), [(3, 0), (5, 4), (1, 4), (9, 0)])
def test_windows_and_kinds_of_words_by_hand(side, window, types):
    """Windows lie within the text of an example, wherever its padding is, also those that are wider than it."""
    torch.manual_seed(0)
    model = make(RNNModel, window=window, type_vocab_size=types, type_embedding_size=2)
    examples = make_examples()
    ids, mask = padded(examples, side)
    kinds = torch.randint(types, ids.shape) if types else None
    out = model(ids, mask, token_type_ids=kinds, output_hidden_states=True)
    for row, example in enumerate(examples):
        valid = mask[row].bool()
        own = kinds[row][valid] if types else None
        same(out.last_hidden_state[row][valid], by_hand(model, example, own))
        same(out.hidden_states[0][row][valid], model.embeddings.weight[example])  # words alone
        assert not out.last_hidden_state[row][~valid].any()


def test_windows_of_embeddings_that_are_given_see_no_padding():
    """What stands at padding in inputs_embeds, as after a perturbation, reaches nothing."""
    torch.manual_seed(0)
    model = make(RNNForTokenClassification, window=3)
    ids, mask = padded(make_examples(), "right")
    embeds = model.get_input_embeddings()(ids)
    moved = torch.where(mask.bool().unsqueeze(-1), embeds, embeds + 7)
    logits = [model(inputs_embeds=each, attention_mask=mask).logits[mask.bool()] for each in (embeds, moved)]
    same(*logits)


def test_a_tagger_with_windows_and_kinds_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    model = make(RNNForTokenClassification, window=3, type_vocab_size=4)
    model.save_pretrained(tmp_path)
    again = AutoModelForTokenClassification.from_pretrained(tmp_path, dtype=torch.float64).eval()
    ids, mask = padded(make_examples(), "right")
    kinds = torch.randint(4, ids.shape)
    same(model(ids, mask, token_type_ids=kinds).logits, again(ids, mask, token_type_ids=kinds).logits)
    assert model(ids[:, :0], mask[:, :0], token_type_ids=kinds[:, :0]).logits.shape == (3, 0, LABELS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 4}, "window=4 has no middle"),
        ({"window": 0}, "window=0 is not a whole number of at least 1"),
        ({"type_vocab_size": -1}, "type_vocab_size=-1 is not a whole number"),
        ({"type_embedding_size": 0}, "type_embedding_size=0 is not"),
    ],
)
def test_windows_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_kinds_of_words_are_asked_for():
    ids, mask = padded(make_examples(), "right")
    with pytest.raises(ValueError, match="token_type_ids is needed: the kind of each word, below 4"):
        make(RNNForTokenClassification, type_vocab_size=4)(ids, mask)


@pytest.mark.parametrize("options", [{"window": 3}, {"type_vocab_size": 4}])
def test_a_language_model_reads_no_words_to_come(options):
    with pytest.raises(ValueError, match="a causal language model reads no words to come"):
        make(RNNForCausalLM, **options)
