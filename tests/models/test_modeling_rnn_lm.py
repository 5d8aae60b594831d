"""The recurrent language model: its loss by hand, its state, and generation by running the whole prefix again."""

import itertools

import pytest
import torch
from safetensors.torch import load_file
from transformers import GenerationConfig, Trainer, TrainingArguments
from transformers.generation.utils import DeferredStopCheck
from transformers.loss.loss_utils import ForCausalLMLoss

from hf_rat import Regularization, rdrop
from hf_rat.models.configuration_rnn import RNNConfig
from hf_rat.models.modeling_rnn_lm import RNNForCausalLM

VOCABULARY, WIDTH = 13, 6
ALPHA, BETA = 2.0, 1.0  # of AR and TAR in AWD-LSTM
AWD = {"input": 0.4, "hidden": 0.25, "output": 0.4, "dropconnect": 0.5}
PENALTIES = {"activation_regularization": ALPHA, "temporal_activation_regularization": BETA}


def make(cell="lstm", **options):
    """A tied model of two layers."""
    sizes = {"vocab_size": VOCABULARY, "embedding_size": WIDTH, "hidden_size": 5, "last_hidden_size": WIDTH}
    config = RNNConfig(cell=cell, num_hidden_layers=2, tie_word_embeddings=True, **sizes, **options)
    return RNNForCausalLM(config).double().eval()


def make_talkative(cell):
    """A model with strong weights, whose next token depends on much of its input."""
    sizes = {"vocab_size": VOCABULARY, "embedding_size": WIDTH, "hidden_size": 16, "num_hidden_layers": 2}
    model = RNNForCausalLM(RNNConfig(cell=cell, **sizes)).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.5 if "bias" in name else 2.0).mul_(0.2 if name.startswith("lm_head") else 1.0)
    return model


def make_batch(side=None, batch=3, time=7):
    ids = torch.randint(1, VOCABULARY, (batch, time))
    mask = torch.ones_like(ids)
    if side == "left":
        mask[0, :3] = mask[1, :5] = 0
    elif side == "right":
        mask[0, -3:] = mask[1, -5:] = 0
    return ids, mask


def labels_of(ids, mask):
    """-100 where a token is padding, or follows padding."""
    after = torch.nn.functional.pad(mask[:, :-1], (1, 0), value=1)
    return ids.masked_fill((mask == 0) | (after == 0), -100)


# --- the loss ----------------------------------------------------------------------------------------------------


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def expected_loss(logits, ids, mask):
    """Mean over each pair of valid neighbours of -log p(next)."""
    pairs = [(b, t) for b, t in itertools.product(*map(range, ids.shape)) if t and mask[b, t] and mask[b, t - 1]]
    return mean(-torch.log_softmax(logits[b, t - 1].float(), 0)[ids[b, t]] for b, t in pairs)


@pytest.mark.parametrize("side", [None, "left", "right"])
def test_loss_with_activation_penalties(side):
    model = make(**PENALTIES, recurrent_dropouts=AWD, embedding_dropout=0.1).train()
    seen = []
    model.rnn.register_forward_hook(lambda module, args, output: seen.append(output))
    ids, mask = make_batch(side)
    outputs = model(ids, mask, labels=labels_of(ids, mask))
    dropped, raw = seen[0].last_hidden_state, seen[0].hidden_states[-1]
    assert dropped.eq(0).any(1).sum() > raw.eq(0).any(1).sum()  # the two penalties look at different things
    valid = [(b, t) for b, t in itertools.product(*map(range, ids.shape)) if mask[b, t]]
    ar = mean(h**2 for place in valid for h in dropped[place])
    changes = [raw[b, t] - raw[b, t - 1] for b, t in valid if (b, t - 1) in valid]
    tar = mean(d**2 for change in changes for d in change)
    expected = expected_loss(outputs.logits, ids, mask) + ALPHA * ar + BETA * tar
    torch.testing.assert_close(outputs.loss.float(), expected.float())
    assert outputs.hidden_states is None
    model.eval()
    outputs = model(ids, mask, labels=labels_of(ids, mask))
    torch.testing.assert_close(outputs.loss, expected_loss(outputs.logits, ids, mask))


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("kind", ["ids", "collated", "some"])
def test_the_labels_that_count_are_those_that_transformers_and_the_package_count(side, kind):
    model = make()
    ids, mask = make_batch(side)
    labels = ids.masked_fill({"ids": ids < 0, "collated": mask == 0, "some": ids % 2 == 0}[kind], -100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    outputs = model(**batch)
    theirs = ForCausalLMLoss(logits=outputs.logits, labels=labels, vocab_size=VOCABULARY)
    torch.testing.assert_close(outputs.loss, theirs)
    places = [(b, t) for b, t in itertools.product(*map(range, ids.shape)) if t and labels[b, t] != -100]
    terms = [-torch.log_softmax(outputs.logits[b, t - 1].float(), 0)[labels[b, t]] for b, t in places]
    torch.testing.assert_close(outputs.loss, mean(terms))
    regularization = Regularization(rdrop(alpha=1), model.train())
    assert regularization.count_labels(batch) == len(places)
    # Dropout is off: the sum of two halves, weighted by what they count, is the task loss of the whole batch.
    halves = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 1), slice(1, 3))]
    sums = [regularization.losses(half, num_labels=len(places), accumulation=1)["task"] for half in halves]
    torch.testing.assert_close(sum(sums), outputs.loss)


def test_sides_of_padding_agree():
    model = make(**PENALTIES).train()
    ids = torch.randint(1, VOCABULARY, (2, 4))
    losses = []
    for before, after in ((0, 3), (3, 0), (1, 2)):
        batch = torch.nn.functional.pad(ids, (before, after), value=5)
        mask = torch.nn.functional.pad(torch.ones_like(ids), (before, after))
        losses.append(model(batch, mask, labels=labels_of(batch, mask)).loss)
    alone = model(ids, labels=ids).loss
    for loss in losses:
        torch.testing.assert_close(loss, alone)
    # TAR sees through a hole in the mask.
    wide = torch.cat([ids[:, :2], ids[:, :1], ids[:, 2:]], 1)
    mask = torch.tensor([[1, 1, 0, 1, 1]] * 2)
    labels = torch.full_like(wide, -100)
    labels[:, 1] = wide[:, 1]
    alone_labels = torch.full_like(ids, -100)
    alone_labels[:, 1] = ids[:, 1]
    torch.testing.assert_close(model(wide, mask, labels=labels).loss, model(ids, labels=alone_labels).loss)


def test_accumulated_batches_weigh_as_one():
    model = make(**PENALTIES).train()
    ids, _ = make_batch(batch=5)
    whole = model(ids, labels=ids).loss
    count = 5 * (ids.size(1) - 1)
    parts = [model(part, labels=part, num_items_in_batch=count).loss for part in ids.split([1, 4])]
    torch.testing.assert_close(sum(parts), whole)


def test_the_decoder_reads_the_table_without_word_dropout():
    model = make(embedding_dropout=0.7).train()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    ids, _ = make_batch()
    outputs = model(ids, output_hidden_states=True)
    assert outputs.hidden_states[0].eq(0).all(2).any()
    table = model.get_input_embeddings().weight
    torch.testing.assert_close(outputs.logits, outputs.hidden_states[-1] @ table.T + model.lm_head.bias)


def test_awd_lstm_has_its_papers_size():
    config = RNNConfig(
        vocab_size=10_000,
        embedding_size=400,
        hidden_size=1150,
        num_hidden_layers=3,
        last_hidden_size=400,
        tie_word_embeddings=True,
        recurrent_dropouts=AWD,
    )
    with torch.device("meta"):
        model = RNNForCausalLM(config)
    lstm = [4 * h * (x + h) + 2 * 4 * h for x, h in ((400, 1150), (1150, 1150), (1150, 400))]
    assert model.num_parameters() == sum(lstm) + 10_000 * 400 + 10_000 == 24_221_600  # 24M in Merity et al. 2018
    assert [layer.dropouts.dropconnect for layer in model.rnn.layers] == [0.5] * 3


# --- the state ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_chunks_continue_from_the_state(cell):
    model = make(cell)
    ids, mask = make_batch("left", time=9)
    labels = labels_of(ids, mask)
    whole = model(ids, mask, labels=labels)
    state, logits, losses, counts = None, [], [], []
    following = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    for start, end in ((0, 2), (2, 6), (6, 9)):
        part = slice(start, end)
        output = model(ids[:, part], mask[:, part], shift_labels=following[:, part], state=state)
        assert not any(s.requires_grad for pair in output.state for s in (pair if cell == "lstm" else [pair]))
        state = output.state
        logits.append(output.logits)
        counts.append(int(((mask[:, part] == 1) & (following[:, part] != -100)).sum()))
        losses.append(output.loss * counts[-1] if counts[-1] else 0.0)
    torch.testing.assert_close(torch.cat(logits, 1), whole.logits)
    torch.testing.assert_close(sum(losses) / sum(counts), whole.loss)
    for ours, expected in zip(state, whole.state, strict=True):
        torch.testing.assert_close(ours, expected)


def test_kept_logits():
    model = make()
    ids, mask = make_batch("left")
    whole = model(ids, mask, labels=labels_of(ids, mask))
    torch.testing.assert_close(model(ids, mask, logits_to_keep=2).logits, whole.logits[:, -2:])
    few = model(ids, mask, labels=labels_of(ids, mask), logits_to_keep=torch.tensor([3, 5]))
    torch.testing.assert_close(few.logits, whole.logits[:, [3, 5]])
    places = [(0, 3), (0, 5), (1, 5), (2, 3), (2, 5)]
    expected = mean(-torch.log_softmax(whole.logits[b, t].float(), 0)[ids[b, t + 1]] for b, t in places)
    torch.testing.assert_close(few.loss, expected)


# --- generation --------------------------------------------------------------------------------------------------


def by_prefix(model, ids, mask, steps):
    """Greedy continuation of each example alone, without padding, running the whole prefix at each step."""
    results = []
    for row, valid in zip(ids, mask.bool(), strict=True):
        prefix = row[valid]
        for _ in range(steps):
            prefix = torch.cat([prefix, model(prefix[None]).logits[0, -1].argmax()[None]])
        results.append(prefix[int(valid.sum()) :])
    return torch.stack(results)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_greedy_generation_of_padded_prompts(cell):
    model = make_talkative(cell)
    ids, mask = make_batch("left")
    expected = by_prefix(model, ids, mask, 8)
    assert len(expected.unique()) > 4
    widths = []
    hook = model.rnn.layers[0].register_forward_pre_hook(lambda module, args: widths.append(args[0].size(1)))
    assert model.generate(ids, attention_mask=mask, max_new_tokens=8)[:, 7:].equal(expected)
    assert widths == [7] + [1] * 7  # the state is the cache
    hook.remove()
    assert model.generate(ids, attention_mask=mask, max_new_tokens=8, use_cache=False)[:, 7:].equal(expected)
    embeds = model.get_input_embeddings()(ids)
    assert model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=8).equal(expected)
    # From the state of the first part of the prompt.
    start = model(ids[:, :6], mask[:, :6]).state
    for cached in (True, False):
        continued = model.generate(ids[:, 6:], state=start, max_new_tokens=8, use_cache=cached)
        assert continued[:, 1:].equal(expected)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True},
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"num_beams": 4, "do_sample": True},
    ],
)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_state_as_cache_changes_nothing(cell, options):
    model = make_talkative(cell)
    ids, mask = make_batch("left")
    whole = {"inputs": ids, "attention_mask": mask}
    rest = {"inputs": ids[:, 6:], "state": model(ids[:, :6], mask[:, :6]).state}
    results = []
    for prompt, cached in itertools.product([whole, rest], [True, False]):
        torch.manual_seed(1)
        tokens = model.generate(**prompt, **options, max_new_tokens=8, eos_token_id=3, use_cache=cached)
        results.append(tokens[:, prompt["inputs"].size(1) :])
    assert len(results[0].unique()) > 4
    for other in results[1:]:
        assert other.equal(results[0])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_beam_search_that_keeps_every_beam_finds_the_best_continuation(cell):
    steps = 3
    model = make_talkative(cell)
    ids, mask = make_batch("left", batch=2)
    expected = []
    greedy = by_prefix(model, ids, mask, steps)
    for row, valid in zip(ids, mask.bool(), strict=True):
        tails = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=steps)))
        prompt = row[valid].expand(len(tails), -1)
        logp = model(torch.cat([prompt, tails], 1)).logits.log_softmax(-1)[:, prompt.size(1) - 1 : -1]
        best = logp.gather(2, tails[:, :, None]).sum((1, 2)).argmax()
        expected.append(tails[best])
    different = [not tail.equal(other) for tail, other in zip(expected, greedy, strict=True)]
    assert any(different)
    found = model.generate(ids, attention_mask=mask, max_new_tokens=steps, num_beams=VOCABULARY ** (steps - 1))
    assert found[:, 7:].equal(torch.stack(expected))


def test_what_generation_refuses():
    model = make()
    ids, mask = make_batch()
    with pytest.raises(ValueError, match="stateful"):
        model.generate(ids, attention_mask=mask, assistant_model=make(), max_new_tokens=2)
    # Where a stop may be noticed a step late (on Apple's GPUs) a returned state, which cannot go back, forbids that.
    state = model(ids, mask).state
    assert not DeferredStopCheck.is_supported(torch.device("mps"), state, True, False)
    assert DeferredStopCheck.is_supported(torch.device("mps"), state, False, False)


# --- weights, training -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_and_resize(tied, tmp_path):
    model = make()
    if not tied:
        model.config.tie_word_embeddings = False
        model = RNNForCausalLM(model.config).double().eval()
    ids, mask = make_batch("left")
    for size in (VOCABULARY, VOCABULARY + 2):
        model.resize_token_embeddings(size)
        logits = model(ids, mask).logits
        assert logits.size(2) == size
        model.save_pretrained(tmp_path)
        assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) == (not tied)
        loaded = RNNForCausalLM.from_pretrained(tmp_path)
        assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
        torch.testing.assert_close(loaded(ids, mask).logits, logits, rtol=0.0, atol=1e-13)


def test_the_trainer_trains_and_evaluates(tmp_path):
    model = make(**PENALTIES, recurrent_dropouts=AWD).float()
    model.generation_config = GenerationConfig()
    data = [{"input_ids": ids, "labels": ids} for ids in torch.randint(1, VOCABULARY, (6, 5))]
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=4,
        max_steps=2,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    before = model.rnn.layers[0].weight_hh_l0.detach().clone()
    trainer.train()
    assert not model.rnn.layers[0].weight_hh_l0.equal(before)
    prediction = trainer.predict(data)
    assert prediction.predictions.shape == (6, 5, VOCABULARY)  # logits alone: the state stays out
    ids = torch.stack([example["input_ids"] for example in data])
    with torch.no_grad():
        expected = expected_loss(model.eval()(ids).logits, ids, torch.ones_like(ids))
    assert prediction.metrics["test_loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_bad_configurations():
    with pytest.raises(ValueError, match="bidirectional=True would show a causal language model the future"):
        make(bidirectional=True)
    config = RNNConfig(embedding_size=6, hidden_size=5, tie_word_embeddings=True)
    with pytest.raises(
        ValueError, match=r"tie_word_embeddings=True needs last_hidden_size=6.*the last layer is 5 wide"
    ):
        RNNForCausalLM(config)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("how", ["normal", "uniform", "uniform_all"])
def test_how_weights_begin(how, tied):
    """By the quantiles of what was drawn: a uniform distribution has half of its values in half of its range."""
    config = RNNConfig(
        vocab_size=400,
        embedding_size=24,
        hidden_size=24,
        initializer=how,
        initializer_range=0.07,
        tie_word_embeddings=tied,
    )
    for name, weight in RNNForCausalLM(config).named_parameters():
        drawn = weight.detach().abs()
        table = name.endswith("embeddings.weight") or name == "lm_head.weight"
        if how == "uniform_all" or (how == "uniform" and table):
            assert drawn.max() <= 0.07
            inner = (drawn[1:] if table else drawn) < 0.035  # the first row is padding's
            assert inner.float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / inner.numel() ** 0.5)
        elif name.endswith("embeddings.weight"):
            assert drawn.max() > 0.14
        elif name != "lm_head.bias":
            assert drawn.max() > 0.07
        if name == "rnn.embeddings.weight":
            assert not drawn[0].any()
            assert drawn[1:].any(1).all()
