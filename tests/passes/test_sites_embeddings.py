"""Which embeddings are perturbed: those of the encoder or the decoder, shared, scaled or factorised ones."""

import inspect

import pytest
import runs
import torch
from tiny import EOS, FIRST, PAD, VOCABULARY, tiny_batch, tiny_model
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    GemmaConfig,
    GemmaForSequenceClassification,
    PreTrainedConfig,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import Seq2SeqLMOutput

from hf_rat import Regularization, fgm, freelb, parse, pgd
from hf_rat.passes.sites import DECODER_EMBEDDINGS, EMBEDDINGS, DecoderEmbeddingSite, EmbeddingSite
from hf_rat.regularizers import RECIPES

PERTURBING = [
    name
    for name, build in RECIPES.items()
    if "site" in inspect.signature(build).parameters and name not in ("adversarial_dropout", *runs.AT_WEIGHTS)
]
IDS = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": EOS}


def seq2seq(family):
    torch.manual_seed(0)
    if family == "t5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
        config = T5Config(**sizes, **IDS, decoder_start_token_id=PAD, dropout_rate=0.0)
        return T5ForConditionalGeneration(config).train()
    side = {"layers": 1, "attention_heads": 2, "ffn_dim": 24}
    sides = {f"{where}_{name}": n for where in ("encoder", "decoder") for name, n in side.items()}
    rates = {"dropout": 0.0, "attention_dropout": 0.0}
    config = BartConfig(
        **sides, **rates, **IDS, d_model=16, bos_token_id=FIRST, decoder_start_token_id=EOS, init_std=0.3,
        forced_eos_token_id=EOS, max_position_embeddings=24, scale_embedding=True,
    )  # fmt: skip
    return BartForConditionalGeneration(config).train()


def seq2seq_batch():
    """Targets of other lengths than the sources, the second of them padded by two."""
    batch = tiny_batch(size=3, kind="none")
    batch["labels"] = torch.randint(FIRST, VOCABULARY, (3, 5), generator=torch.Generator().manual_seed(1))
    batch["labels"][1, 3:] = -100
    return batch


@pytest.mark.parametrize("scope", ["example", "table"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_fgm_on_the_decoder_is_the_one_by_hand(family, scope):
    model, batch = seq2seq(family), seq2seq_batch()
    look_up = model.get_decoder().get_input_embeddings()
    ids = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    at = look_up(ids).detach().requires_grad_()
    (slope,) = torch.autograd.grad(model(**batch, decoder_inputs_embeds=at).loss, at)
    if scope == "example":
        move = 0.5 * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1)
    else:
        rows = torch.zeros(VOCABULARY, 16).index_add(0, ids.flatten(), slope.flatten(0, 1))
        if look_up.padding_idx is not None:
            rows[look_up.padding_idx] = 0
        move = (0.5 * rows / rows.norm())[ids]
    expected = model(**batch, decoder_inputs_embeds=at + move).loss
    losses = Regularization(fgm(epsilon=0.5, scope=scope, site="decoder_embeddings"), model).backward(batch)
    assert losses["adversarial_task"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses["adversarial_task"] > losses["task"]
    encoders = Regularization(fgm(epsilon=0.5, scope=scope), model).backward(batch)
    assert abs(encoders["adversarial_task"] - losses["adversarial_task"]) > 1e-3


@pytest.mark.filterwarnings("ignore:.* has no dropout")
@pytest.mark.parametrize("name", PERTURBING)
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_every_recipe_moves_the_decoder_alone(family, name):
    model, batch = seq2seq(family), seq2seq_batch()
    regularization = Regularization(parse(f"{name}(epsilon=0.5, site='decoder_embeddings')"), model)
    moved = {"encoder": [], "decoder": []}
    for side, stack in (("encoder", model.get_encoder()), ("decoder", model.get_decoder())):
        stack.get_input_embeddings().register_forward_hook(
            lambda module, args, output, seen=moved[side]: seen.append(
                not torch.allclose(output, type(module).forward(module, args[0]), atol=1e-7)
            )
        )
    losses = regularization.backward(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert any(moved["decoder"])
    assert not any(moved["encoder"])
    regularization.close()


@pytest.mark.parametrize("name", PERTURBING)
def test_the_repr_names_the_site_only_if_it_is_another_one(name):
    for site in (EMBEDDINGS, DECODER_EMBEDDINGS, "vit.layers.0"):
        regularizer = RECIPES[name](site=site)
        assert parse(repr(regularizer)) == regularizer
        assert (site in repr(regularizer)) == (site != EMBEDDINGS)


def test_the_decoders_padding_begins_after_its_last_scored_position():
    model, batch = seq2seq("t5"), seq2seq_batch()
    batch["labels"][2, :2] = -100  # a prompt, which is no padding
    site = DecoderEmbeddingSite(model)
    expected = torch.ones(3, 5, dtype=torch.bool)
    expected[1, 3:] = False
    assert torch.equal(site.geometry(batch).mask, expected)
    given = torch.tensor([[1, 1, 1, 1, 0]] * 3)
    assert torch.equal(site.geometry({**batch, "decoder_attention_mask": given}).mask, given.bool())


def test_the_decoders_ids_are_those_of_the_batch_if_it_has_them():
    model, batch = seq2seq("bart"), seq2seq_batch()
    ids = torch.randint(FIRST, VOCABULARY, (3, 4))
    place = DecoderEmbeddingSite(model).geometry({**batch, "decoder_input_ids": ids, "labels": batch["labels"][:, :4]})
    assert torch.equal(place.ids, ids)
    assert place.shape == (3, 4, 16)


class SharedModule(nn.Module):
    """An encoder-decoder that runs one embedding module on both sides."""

    config = PreTrainedConfig(is_encoder_decoder=True)

    class Side(nn.Module):
        def __init__(self, embedding):
            super().__init__()
            self.embedding = embedding

        def get_input_embeddings(self):
            return self.embedding

        def forward(self, ids):
            self.made = self.embedding(ids)
            return self.made

    def __init__(self):
        super().__init__()
        embedding = nn.Embedding(VOCABULARY, 8)
        self.encoder, self.decoder = self.Side(embedding), self.Side(embedding)
        self.output = nn.Linear(8, VOCABULARY)

    def get_encoder(self):
        return self.encoder

    def get_decoder(self):
        return self.decoder

    def prepare_decoder_input_ids_from_labels(self, labels):
        return torch.cat([torch.full_like(labels[:, :1], PAD), labels[:, :-1].clamp(min=PAD)], 1)

    def forward(self, input_ids, attention_mask=None, labels=None):
        encoded = self.encoder(input_ids).mean(1, keepdim=True)
        decoded = self.decoder(self.prepare_decoder_input_ids_from_labels(labels))
        logits = self.output(torch.tanh(encoded + decoded))
        return Seq2SeqLMOutput(loss=nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits=logits)


@pytest.mark.parametrize(("opened", "moved"), [(EmbeddingSite, "encoder"), (DecoderEmbeddingSite, "decoder")])
def test_one_module_on_both_sides_is_moved_on_the_side_that_is_meant(opened, moved):
    model, batch = SharedModule(), seq2seq_batch()
    site = opened(model)
    shape = site.geometry(batch).shape
    ids = {"encoder": batch["input_ids"], "decoder": model.prepare_decoder_input_ids_from_labels(batch["labels"])}
    assert shape == (*ids[moved].shape, 8)
    for _ in range(2):
        with site.perturbed(torch.ones(shape)):
            model(**batch)
        for side in ("encoder", "decoder"):
            expected = model.encoder.embedding.weight[ids[side]] + (side == moved)
            torch.testing.assert_close(getattr(model, side).made, expected)


@pytest.mark.parametrize("regularizer", [fgm(site=DECODER_EMBEDDINGS), pgd(site=DECODER_EMBEDDINGS)], ids=repr)
def test_a_gradient_withheld_from_the_decoders_embeddings_is_given_back(regularizer):
    """The same gradients as with one backward of everything, where nothing is withheld."""
    found = []
    for single in (False, True):
        model = seq2seq("bart")
        Regularization(regularizer, model, single_backward=single).backward(seq2seq_batch())
        found.append(model.get_decoder().get_input_embeddings().weight.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_a_model_of_one_side_has_no_decoder_to_perturb():
    with pytest.raises(ValueError, match="BertForSequenceClassification is not an encoder-decoder") as error:
        Regularization(fgm(site="decoder_embeddings"), tiny_model())
    assert "\n" not in str(error.value)


def test_a_decoder_whose_ids_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="no decoder_input_ids, and BartForSequenceClassification") as error:
        Regularization(fgm(site="decoder_embeddings"), tiny_model("bart")).backward(tiny_batch())
    assert "\n" not in str(error.value)


# -- scaled and factorised embeddings --------------------------------------------------------------------------------


def gemma(model_class, config_class):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    heads = {"num_key_value_heads": 1, "head_dim": 8}
    ids = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": FIRST}
    return model_class(config_class(**sizes, **heads, **ids, num_labels=3, initializer_range=0.3)).train()


MODELS = {
    "gemma": lambda: gemma(GemmaForSequenceClassification, GemmaConfig),
    "gemma3": lambda: gemma(Gemma3TextForSequenceClassification, Gemma3TextConfig),
    "albert": lambda: tiny_model("albert"),  # factorised: embeddings of 8, a model of 16
    "electra": lambda: tiny_model("electra"),
}


@pytest.mark.parametrize("family", MODELS)
def test_a_radius_in_units_of_the_embeddings_is_one_of_what_enters_the_model(family):
    model, batch = MODELS[family](), tiny_batch()
    look_up = model.get_input_embeddings()
    everything = look_up(torch.arange(VOCABULARY)).detach()
    width = 16 if family.startswith("gemma") else 8
    assert everything.shape == (VOCABULARY, width)
    gain = 4.0 if family.startswith("gemma") else 1.0  # sqrt(16)
    torch.testing.assert_close(everything, gain * look_up.weight.detach())
    norm = float(everything.norm(dim=1).mean())
    clean, at = look_up(batch["input_ids"]).detach(), []
    regularization = Regularization(fgm(epsilon=0.25, unit="embedding"), model)
    look_up.register_forward_hook(lambda module, args, output: at.append(output.detach()))
    losses = regularization.backward(batch)
    moved = max(at, key=lambda output: float((output - clean).abs().max()))  # the other look-ups are at the origin
    torch.testing.assert_close((moved - clean).flatten(1).norm(dim=1), torch.full((4,), 0.25 * norm))
    assert losses["adversarial_task"] > losses["task"]


@pytest.mark.parametrize("family", MODELS)
def test_fgm_on_scaled_and_factorised_embeddings_is_the_one_by_hand(family):
    model, batch = MODELS[family](), tiny_batch()
    at = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    # GPT-like classifiers find the last token by the ids, so the embeddings are put in by a hook of our own.
    hand = model.get_input_embeddings().register_forward_hook(lambda module, args, output: at)
    (slope,) = torch.autograd.grad(model(**batch).loss, at)
    hand.remove()
    move = 0.5 * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1)
    hand = model.get_input_embeddings().register_forward_hook(lambda module, args, output: at + move)
    expected = model(**batch).loss
    hand.remove()
    losses = Regularization(fgm(epsilon=0.5), model).backward(batch)
    assert losses["adversarial_task"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("family", MODELS)
def test_withheld_gradients_of_scaled_and_factorised_embeddings_are_given_back(family):
    found = []
    for single in (False, True):
        model = MODELS[family]()
        torch.manual_seed(0)
        Regularization(freelb(epsilon=0.5), model, single_backward=single).backward(tiny_batch())
        found.append(model.get_input_embeddings().weight.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
