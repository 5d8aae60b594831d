"""Sites: a zero move changes no bit, a move lands where it should, and nothing stays behind."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import FAMILIES, PAD, assert_same_gradients, gradients, tiny_batch, tiny_model
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel
from transformers.integrations.neftune import activate_neftune
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_rat import Regularization, adversarial_dropout, fgm, freelb, parse, pgd, plain, r3f
from hf_rat.passes.sites import EmbeddingSite, LogitsInputSite


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("length", [7, 4])  # 4: as many tokens as examples
@pytest.mark.parametrize("family", FAMILIES)
def test_a_zero_move_is_the_clean_model_bit_for_bit(family, length):
    model, batch = tiny_model(family), tiny_batch(size=4, length=length)
    clean = logits(model, batch)
    site = EmbeddingSite(model)
    place = site.geometry(batch)
    assert place.shape[:2] == (4, length)
    with site.perturbed(torch.zeros(place.shape)):
        assert torch.equal(logits(model, batch), clean)
    assert site.fired
    assert torch.equal(logits(model, batch), clean)


@pytest.mark.parametrize("length", [7, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_move_is_added_to_the_word_embedding_of_its_example_and_token(family, length):
    """Moving a token's embedding by the difference of two rows of the table is exchanging the token."""
    model, batch = tiny_model(family), tiny_batch(size=4, length=length)
    site = EmbeddingSite(model)
    site.geometry(batch)
    if family in ("t5", "bart"):  # else the exchanged token would reach the decoder's inputs too
        batch["decoder_input_ids"] = batch["input_ids"]
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    # 9 ends a sentence of han_sentences, which the ids tell, not the vectors.
    other["input_ids"][1, 1] = 10 if int(batch["input_ids"][1, 1]) != 10 else 11
    expected = logits(model, other)
    assert not torch.allclose(expected[1], logits(model, batch)[1], atol=1e-4)
    table = site.module.weight.detach()
    move = table[other["input_ids"]] - table[batch["input_ids"]]
    with site.perturbed(move):
        torch.testing.assert_close(logits(model, batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_slope_at_the_move_agrees_with_finite_differences(family):
    model, batch = tiny_model(family).double(), tiny_batch()
    site = EmbeddingSite(model)
    shape = site.geometry(batch).shape
    direction = torch.randn(shape, dtype=torch.float64)

    def loss(move):
        with site.perturbed(move):
            return model(**batch).loss

    leaf = torch.zeros(shape, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(leaf), leaf)
    h = 1e-3
    with torch.no_grad():
        difference = (loss(h * direction.float()) - loss(-h * direction.float())) / (2 * h)
    assert float((slope * direction).sum()) == pytest.approx(float(difference), rel=0.02, abs=1e-3)


def test_the_batch_axis_of_xlnet_is_found_also_where_time_and_batch_are_as_long():
    for size, length in ((3, 7), (5, 5)):
        site = EmbeddingSite(tiny_model("xlnet"))
        assert site.geometry(tiny_batch(size, length)).shape == (size, length, 16)
        assert site._time_first
    site = EmbeddingSite(tiny_model("bert"))
    site.geometry(tiny_batch(5, 5))
    assert not site._time_first


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_decoders_are_moved_in_the_encoder_alone(family):
    model, batch = tiny_model(family), tiny_batch()
    site = EmbeddingSite(model)
    place = site.geometry(batch)
    seen = {}

    def remember(name):
        def hook(module, args, kwargs):
            seen[name] = args[0] if args else kwargs["hidden_states"]

        return hook

    for name, side in (("encoder", model.get_encoder()), ("decoder", model.get_decoder())):
        block = side.block[0] if family == "t5" else side.layers[0]
        block.register_forward_pre_hook(remember(name), with_kwargs=True)
    logits(model, batch)
    clean = dict(seen)
    with site.perturbed(torch.ones(place.shape)):
        logits(model, batch)
    assert not torch.allclose(seen["encoder"], clean["encoder"])
    assert torch.equal(seen["decoder"], clean["decoder"])


def test_an_embedding_that_runs_again_for_no_input_is_refused():
    class Shared(nn.Module):
        """Looks its words up once more, in another order."""

        def __init__(self):
            super().__init__()
            self.embedding, self.output = nn.Embedding(60, 8), nn.Linear(8, 3)

        def get_input_embeddings(self):
            return self.embedding

        def forward(self, input_ids, **inputs):
            self.encoded = self.embedding(input_ids)
            self.decoded = self.embedding(input_ids.flip(1))
            return SequenceClassifierOutput(logits=self.output((self.encoded + self.decoded).mean(1)))

    model, batch = Shared(), tiny_batch(kind="none")
    site = EmbeddingSite(model)
    move = torch.ones(site.geometry(batch).shape)
    with pytest.raises(RuntimeError, match="Embedding of Shared runs more often in a pass"), site.perturbed(move):
        model(**batch)


def test_a_perturbation_of_bf16_embeddings_is_added_in_fp32():
    model, batch = tiny_model().bfloat16(), tiny_batch()
    site = EmbeddingSite(model)
    place = site.geometry(batch)
    seen = []
    site.module.register_forward_hook(lambda module, args, output: seen.append(output))
    move = torch.full(place.shape, 3e-3)
    with site.perturbed(move):
        logits(model, batch)
    table = site.module.weight.detach()
    expected = (table[batch["input_ids"]].float() + move).bfloat16()
    assert torch.equal(seen[0], expected)


@pytest.mark.parametrize("kind", ["lora", "frozen"])
def test_frozen_embeddings_still_have_a_slope_and_are_really_moved(kind):
    model, batch = tiny_model(), tiny_batch()
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]))
    else:
        model.get_input_embeddings().requires_grad_(False)
    assert not model.get_input_embeddings().weight.requires_grad
    moves = []
    regularization = Regularization(fgm(epsilon=0.5), model)
    model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: moves.append(output.detach() - module.weight.detach()[args[0]])
    )
    losses = regularization.backward(batch)
    assert len(moves) == 2
    assert not moves[0].any()
    torch.testing.assert_close(moves[1].flatten(1).norm(dim=1), torch.full((4,), 0.5))
    assert losses["adversarial_task"] > losses["task"]
    regularization.close()


def test_a_modules_to_save_wrapper_around_the_embeddings_is_no_obstacle():
    model = get_peft_model(
        tiny_model(),
        LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], modules_to_save=["word_embeddings"]),
    )
    losses = Regularization(fgm(epsilon=0.5), model).backward(tiny_batch())
    assert losses["adversarial_task"] > losses["task"]


@pytest.mark.parametrize("scope", ["example", "table"])
def test_tied_embeddings_are_moved_at_the_input_alone(scope):
    """A masked language model whose output layer is its table: the perturbation is one of the inputs only."""
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=24, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3,
    )  # fmt: skip
    model = BertForMaskedLM(config).train()
    table = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is table
    batch = tiny_batch(kind="none")
    batch["labels"] = batch["input_ids"].masked_fill(batch["input_ids"] == PAD, -100)
    before = table.detach().clone()

    # By hand: the slope at the embedding output, the move, and the loss at embeddings + move.
    outputs = table[batch["input_ids"]].detach().requires_grad_()
    inputs = {"attention_mask": batch["attention_mask"], "labels": batch["labels"]}
    (slope,) = torch.autograd.grad(model(inputs_embeds=outputs, **inputs).loss, outputs)
    if scope == "example":
        move = 0.3 * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1)
    else:
        rows = torch.zeros_like(table).index_add(0, batch["input_ids"].flatten(), slope.flatten(0, 1))
        rows[PAD] = 0
        move = (0.3 * rows / rows.norm())[batch["input_ids"]].detach()
    expected = model(inputs_embeds=table[batch["input_ids"]] + move, **inputs).loss
    losses = Regularization(fgm(epsilon=0.3, scope=scope), model).backward(batch)
    assert losses["adversarial_task"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(table, before)


def test_embeddings_that_draw_random_numbers_learn_under_the_numbers_that_were_drawn():
    """Word dropout: the clean pass of fgm gives the table the gradient of plain training under the same masks."""
    found = {}
    for regularizer in (plain(), 1e-9 * fgm()):
        model = tiny_model("textcnn")
        model.get_input_embeddings().dropout = 0.5
        torch.manual_seed(0)
        Regularization(regularizer, model).backward(tiny_batch())
        found[repr(regularizer)] = gradients(model)
    assert_same_gradients(*found.values())


@pytest.mark.parametrize("drawn_by", ["word dropout", "the Trainer's NEFTune"])
def test_embeddings_that_draw_random_numbers_draw_them_with_the_masks(drawn_by):
    """All points of freelb are under the masks of the first: where they hardly move, their losses are one."""
    model = tiny_model("textcnn")
    if drawn_by == "word dropout":
        model.get_input_embeddings().dropout = 0.5
    else:
        activate_neftune(model, 50.0)
    losses = {}
    for regularizer in (plain(), freelb(epsilon=1.0, step=1e-6, start=0.0, steps=3)):
        torch.manual_seed(0)
        (loss,) = Regularization(regularizer, model).backward(tiny_batch()).values()
        losses[repr(regularizer)] = float(loss)
    one, other = losses.values()
    assert other == pytest.approx(one, abs=1e-4)


def test_the_mean_norm_is_measured_without_word_dropout():
    model = tiny_model("textcnn")
    embeddings = model.get_input_embeddings()
    embeddings.dropout = 0.5
    site, before = EmbeddingSite(model), torch.get_rng_state()
    assert site.embedding_norm == pytest.approx(embeddings.weight.norm(dim=-1).mean().item(), rel=1e-5)
    assert torch.equal(torch.get_rng_state(), before)
    assert embeddings.training


def test_a_causal_language_model_works_too():
    config = GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=24, initializer_range=0.3)
    batch = tiny_batch(kind="none")
    batch["labels"] = batch["input_ids"].masked_fill(batch["input_ids"] == PAD, -100)
    model = GPT2LMHeadModel(config).eval()
    losses = Regularization(fgm(epsilon=0.3), model).backward(batch)
    assert losses["adversarial_task"] > losses["task"]


# -- the mask on the logits' input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_no_flip_is_the_clean_model_and_a_flip_is_a_unit_gone(family):
    model, batch = tiny_model(family), tiny_batch()
    clean = logits(model, batch)
    site = LogitsInputSite(model)
    place = site.geometry(batch)
    assert place.shape == (4, site.module.in_features)
    with site.perturbed(torch.zeros(place.shape)):
        assert torch.equal(logits(model, batch), clean)
    move = torch.zeros(place.shape)
    move[1, 3] = -1.0
    seen = []
    site.module.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    logits(model, batch)
    with site.perturbed(move):
        moved = logits(model, batch)
    units = place.shape[1]
    gone = 1.0 + move
    gone = gone * units / gone.sum(-1, keepdim=True)
    expected = seen[0] * (gone if seen[0].dim() == 2 else gone.unsqueeze(1))
    torch.testing.assert_close(seen[1], expected)
    assert not torch.equal(moved[1], clean[1])
    assert torch.equal(moved[[0, 2, 3]], clean[[0, 2, 3]])


def test_finding_the_output_layer_changes_no_mode_and_draws_no_numbers():
    model, batch = tiny_model(dropout=0.3), tiny_batch()
    model.bert.embeddings.eval()  # as someone does who freezes a part
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    LogitsInputSite(model).geometry(batch)
    EmbeddingSite(model).geometry(batch)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


# -- what goes wrong, in one line ------------------------------------------------------------------------------------


class NoEmbeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, labels=None):
        z = self.layer(x)
        return SequenceClassifierOutput(loss=nn.functional.cross_entropy(z, labels), logits=z)


class Bypassed(nn.Module):
    """Names an embedding that it does not run."""

    def __init__(self, runs=False):
        super().__init__()
        self.named, self.used, self.output = nn.Embedding(60, 8), nn.Embedding(60, 8), nn.Linear(8, 3)

    def get_input_embeddings(self):
        return self.named

    def forward(self, input_ids, attention_mask=None, labels=None):
        z = self.output(self.used(input_ids).mean(1))
        return SequenceClassifierOutput(loss=nn.functional.cross_entropy(z, labels), logits=z)


class NoOutputLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.scores = nn.Embedding(60, 8), nn.Parameter(torch.randn(8, 3))

    def forward(self, input_ids, attention_mask=None, labels=None):
        z = self.embedding(input_ids).mean(1) @ self.scores
        return SequenceClassifierOutput(loss=nn.functional.cross_entropy(z, labels), logits=z)


def refused(regularizer, model, batch, match):
    with pytest.raises(ValueError, match=match) as error:
        Regularization(regularizer, model).backward(batch)
    assert "\n" not in str(error.value)
    assert type(model).__name__ in str(error.value) or "input_ids" in str(error.value)


def test_a_model_without_input_embeddings_is_refused():
    batch = {"x": torch.randn(4, 4), "labels": torch.tensor([0, 1, 2, 0])}
    refused(fgm(), NoEmbeddings(), batch, "NoEmbeddings has no input embeddings")


def test_embeddings_that_do_not_run_are_refused():
    refused(fgm(), Bypassed(), tiny_batch(), "Bypassed does not run the Embedding")


def test_a_batch_of_inputs_embeds_is_refused():
    batch = {**tiny_batch(), "inputs_embeds": torch.randn(4, 7, 16)}
    del batch["input_ids"]
    refused(fgm(), tiny_model(), batch, "the batch has no input_ids")


def test_inputs_embeds_beside_input_ids_never_go_unnoticed():
    model = tiny_model("distilbert")

    class Switching(nn.Module):
        """Embeds the ids in one batch and is given embeddings in the next one."""

        def __init__(self):
            super().__init__()
            self.inner = model

        def get_input_embeddings(self):
            return self.inner.get_input_embeddings()

        def forward(self, input_ids, inputs_embeds=None, **inputs):
            if inputs_embeds is not None:
                return self.inner(inputs_embeds=inputs_embeds, **inputs)
            return self.inner(input_ids=input_ids, **inputs)

    regularization = Regularization(fgm(), Switching())
    regularization.backward(tiny_batch())
    with pytest.raises(RuntimeError, match="never reached Switching") as error:
        regularization.backward({**tiny_batch(), "inputs_embeds": torch.randn(4, 7, 16)})
    assert "\n" not in str(error.value)


def test_a_model_without_an_output_layer_has_no_mask_to_choose():
    refused(adversarial_dropout(), NoOutputLayer(), tiny_batch(), "no nn.Linear of NoOutputLayer makes its 3 logits")


def test_a_model_without_logits_is_named():
    class Headless(nn.Module):
        def forward(self, input_ids, **inputs):
            return {"loss": torch.zeros(())}

    refused(parse("rdrop"), Headless(), tiny_batch(), "Headless returned dict without a `logits` tensor")


def test_an_exception_in_the_model_leaves_no_move_behind():
    model, batch = tiny_model(), tiny_batch()
    clean = logits(model, batch)
    regularization = Regularization(pgd(epsilon=0.5), model)
    broken = model.classifier.register_forward_hook(breaks_at(3))
    with pytest.raises(RuntimeError, match="broken"):
        regularization.backward(batch)
    broken.remove()
    assert torch.equal(logits(model, batch), clean)
    losses = regularization.backward(batch)
    assert losses["adversarial_task"] > losses["task"]


def breaks_at(call):
    calls = []

    def hook(module, args, output):
        calls.extend([1] * torch.is_grad_enabled())  # a look at the model is no pass
        if len(calls) == call:
            raise RuntimeError("broken")

    return hook


def test_closing_takes_every_hook_off():
    model, batch = tiny_model(), tiny_batch()
    before = hooks_of(model)
    regularization = Regularization(fgm() + adversarial_dropout(), model)
    regularization.backward(batch)
    assert hooks_of(model) == before + 2
    regularization.close()
    assert hooks_of(model) == before


def test_a_batch_without_an_attention_mask_has_no_padding():
    model, batch = tiny_model(), tiny_batch()
    del batch["attention_mask"]
    site = EmbeddingSite(model)
    place = site.geometry(batch)
    assert place.mask is None
    assert place.entries().flatten().tolist() == [7 * 16] * 4
    losses = Regularization(fgm(epsilon=0.5) + r3f(), model).backward(batch)
    assert losses["adversarial_task"] > losses["task"]


# -- units -----------------------------------------------------------------------------------------------------------


def test_an_epsilon_in_units_of_the_embeddings_is_times_their_mean_norm():
    model, batch = tiny_model(), tiny_batch()
    norm = float(model.get_input_embeddings().weight.detach().norm(dim=1).mean())
    moves = []
    for regularizer in (fgm(epsilon=0.1, unit="embedding"), fgm(epsilon=0.1 * norm)):
        regularization = Regularization(regularizer, model)
        hook = model.get_input_embeddings().register_forward_hook(
            lambda module, args, output: moves.append(output.detach() - module.weight.detach()[args[0]])
        )
        regularization.backward(batch)
        hook.remove()
        regularization.close()
    relative, absolute = (move for move in moves if move.abs().max() > 1e-4)  # the other look-ups are at the origin
    torch.testing.assert_close(relative, absolute)
    torch.testing.assert_close(relative.flatten(1).norm(dim=1), torch.full((4,), 0.1 * norm))
