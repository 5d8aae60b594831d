"""A named module as the site: images, sound, and any hidden layer, against the algorithms by hand."""

import inspect

import pytest
import runs
import torch
from peft import LoraConfig, get_peft_model
from tiny import assert_same_gradients, gradients, tiny_batch, tiny_model
from torch import nn
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperForAudioClassification,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_rat import Regularization, fgm, neftune, parse, rat
from hf_rat.passes.sites.module import ModuleSite
from hf_rat.regularizers import RECIPES

pytestmark = pytest.mark.filterwarnings("ignore:.* has no dropout")

PERTURBING = [
    name
    for name, build in RECIPES.items()
    if "site" in inspect.signature(build).parameters and name not in ("adversarial_dropout", *runs.AT_WEIGHTS)
]
LABELS = torch.tensor([0, 2, 1])
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def vit():
    config = ViTConfig(**SIZES, image_size=8, patch_size=4, num_labels=3, initializer_range=0.3)
    return ViTForImageClassification(config), {"pixel_values": torch.randn(3, 3, 8, 8)}


def resnet():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    return ResNetForImageClassification(config), {"pixel_values": torch.randn(3, 3, 16, 16)}


def wav2vec2():
    conv = {"conv_dim": (8, 8), "conv_kernel": (4, 4), "conv_stride": (2, 2), "num_feat_extract_layers": 2}
    position = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    config = Wav2Vec2Config(
        **SIZES, **conv, **position, classifier_proj_size=8, num_labels=3, initializer_range=0.3,
        layerdrop=0.0, apply_spec_augment=False, hidden_dropout=0.0, activation_dropout=0.0, attention_dropout=0.0,
        feat_proj_dropout=0.0,
    )  # fmt: skip
    return Wav2Vec2ForSequenceClassification(config), {"input_values": torch.randn(3, 64)}


def whisper():
    side = {"layers": 1, "attention_heads": 2, "ffn_dim": 24}
    sides = {f"{where}_{name}": n for where in ("encoder", "decoder") for name, n in side.items()}
    ids = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 2, "decoder_start_token_id": 3}
    config = WhisperConfig(
        **sides, **ids, d_model=16, num_mel_bins=4, max_source_positions=8, num_labels=3, classifier_proj_size=8,
        init_std=0.3, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
    )  # fmt: skip
    return WhisperForAudioClassification(config), {"input_features": torch.randn(3, 4, 16)}


CASES = {
    "vit.embeddings": (vit, (3, 5, 16)),
    "resnet.embedder": (resnet, (3, 8, 4, 4)),
    "wav2vec2.feature_projection.projection": (wav2vec2, (3, 14, 16)),
    "encoder.conv2": (whisper, (3, 16, 8)),
}


def case(name):
    torch.manual_seed(0)
    model, batch = CASES[name][0]()
    return model.train(), {**batch, "labels": LABELS}


def moved_by_hand(model, name, batch, epsilon):
    """The output of the module, the move, and a function (added move) -> outputs, without any hook of ours."""
    module, made = model.get_submodule(name), []
    look = module.register_forward_hook(lambda module, args, output: made.append(output))
    model(**batch)
    look.remove()
    leaf = torch.zeros_like(made[0]).requires_grad_()

    def run(move):
        hook = module.register_forward_hook(lambda module, args, output: output + move)
        outputs = model(**batch)
        hook.remove()
        return outputs

    (slope,) = torch.autograd.grad(run(leaf).loss, leaf)
    norms = slope.flatten(1).norm(dim=1).view(-1, *[1] * (slope.dim() - 1))
    return epsilon * slope / norms, run


@pytest.mark.parametrize("name", CASES)
def test_rat_on_a_named_module_is_the_one_by_hand(name):
    model, batch = case(name)
    move, run = moved_by_hand(model, name, batch, 0.5)
    assert move.shape == CASES[name][1]
    model.zero_grad()
    # Without dropout both passes at the point are equal, and so is their mean.
    clean, there = model(**batch).loss, run(move).loss
    (clean + there).backward()
    expected = gradients(model)
    model.zero_grad()
    losses = Regularization(rat(epsilon=0.5, site=name), model).backward(batch)
    if name == "resnet.embedder":  # batch normalisation sees the doubled batch, with the same moments
        assert losses["adversarial_consistency"].item() == pytest.approx(0, abs=1e-6)
    assert losses["task"].item() == pytest.approx(clean.item(), rel=1e-5)
    assert losses["adversarial_task"].item() == pytest.approx(there.item(), rel=1e-4)
    assert losses["adversarial_task"] > losses["task"]
    assert_same_gradients(gradients(model), expected, tolerance=1e-3)


@pytest.mark.parametrize("recipe", PERTURBING)
@pytest.mark.parametrize("name", CASES)
def test_every_recipe_moves_the_named_module(name, recipe):
    model, batch = case(name)
    before, after = [], []

    def hear(outputs):
        """Looks at the model, and its average, run without gradients."""
        return lambda module, args, output: outputs.append(output.detach()) if torch.is_grad_enabled() else None

    # Hooks run in the order in which they are put on: one before the site's own, one after it.
    model.get_submodule(name).register_forward_hook(hear(before))
    regularization = Regularization(parse(f"{recipe}(epsilon=0.5, site={name!r})"), model)
    model.get_submodule(name).register_forward_hook(hear(after))
    losses = regularization.backward(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert max(float((there - here).abs().max()) for here, there in zip(before, after, strict=True)) > 1e-6


def test_noise_on_every_axis_has_the_size_that_the_recipe_says():
    """U(-1, 1) epsilon / sqrt(N), N all entries of an example: a root mean square of epsilon / sqrt(3 N)."""
    model, batch = case("resnet.embedder")
    made = []
    clean = model.resnet.embedder(batch["pixel_values"]).detach()
    regularization = Regularization(neftune(epsilon=5.0, site="resnet.embedder"), model)
    model.resnet.embedder.register_forward_hook(lambda module, args, output: made.append(output.detach()))
    regularization.backward(batch)
    noise = made[-1] - clean
    entries = 8 * 4 * 4
    assert noise.abs().max() <= 5 / entries**0.5 + 1e-6
    torch.testing.assert_close(noise.flatten(1).norm(dim=1), torch.full((3,), 5 / 3**0.5), rtol=0.2, atol=0)


def test_a_hidden_layer_of_a_text_model_keeps_its_padding_still():
    model, batch = tiny_model(), tiny_batch()
    place = ModuleSite(model, "bert.encoder.layer.0").geometry(batch)
    assert place.shape == (4, 7, 16)
    assert torch.equal(place.mask, batch["attention_mask"].bool())
    word_embeddings = Regularization(fgm(epsilon=0.5, site="bert.embeddings.word_embeddings"), tiny_model())
    ours, theirs = (r.backward(batch) for r in (word_embeddings, Regularization(fgm(epsilon=0.5), tiny_model())))
    assert ours["adversarial_task"].item() == pytest.approx(theirs["adversarial_task"].item(), rel=1e-6)


def test_with_adapters_the_name_is_that_of_the_model_inside():
    model, batch = case("vit.embeddings")
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    losses = Regularization(fgm(epsilon=0.5, site="vit.embeddings"), model).backward(batch)
    assert losses["adversarial_task"] > losses["task"]


def test_shapes_are_looked_up_anew_when_inputs_of_another_shape_come():
    torch.manual_seed(0)
    model, _ = wav2vec2()
    runs = []
    model.wav2vec2.feature_extractor.register_forward_hook(lambda *_: runs.append(1))
    site = ModuleSite(model.train(), "wav2vec2.feature_projection.projection")
    for length, positions, looks in ((64, 14, 2), (64, 14, 2), (40, 8, 4), (64, 14, 4)):
        batch = {"input_values": torch.randn(3, length), "labels": LABELS}
        assert site.geometry(batch).shape == (3, positions, 16)
        assert len(runs) == looks


def test_looking_for_the_shape_leaves_running_statistics_modes_and_random_numbers_alone():
    model, batch = resnet()
    model.train().resnet.encoder.stages[0].eval()
    before = {name: value.clone() for name, value in model.named_buffers()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    ModuleSite(model, "resnet.encoder.stages.1").geometry(batch)
    for name, value in model.named_buffers():
        assert torch.equal(value, before[name]), name
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


# -- what goes wrong, in one line ------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Modules that are no site."""

    def __init__(self):
        super().__init__()
        self.positions, self.unused, self.output = nn.Embedding(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.pair = self.Pair()

    class Pair(nn.Module):
        def forward(self, x):
            return {"x": x}

    def forward(self, pixel_values, labels=None):
        x = pixel_values + self.positions(torch.arange(5)[None])
        z = self.output(self.pair(x)["x"].mean(1))
        return SequenceClassifierOutput(loss=nn.functional.cross_entropy(z, labels), logits=z)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("vit.embedding", "has no module of this name to perturb; did you mean vit.embeddings"),
        ("vit.layers.7", "has no module of this name to perturb; did you mean vit.layers"),
        ("recurrent", "site='recurrent': ViTForImageClassification has no module of this name"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(site, message):
    with pytest.raises(ValueError, match="ViTForImageClassification") as error:
        Regularization(fgm(site=site), case("vit.embeddings")[0])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("positions", "a site must be batch-first"),
        ("unused", "does not run its unused"),
        ("pair", "is no floating point tensor with a batch axis but dict"),
    ],
)
def test_a_module_that_is_no_site_is_refused(site, message, size):
    batch = {"pixel_values": torch.randn(size, 5, 8), "labels": LABELS[:size]}
    with pytest.raises(ValueError, match=message) as error:
        Regularization(fgm(site=site), Odd()).backward(batch)
    assert "\n" not in str(error.value)


def test_the_time_first_layers_of_xlnet_are_refused_even_with_as_many_examples_as_tokens():
    with pytest.raises(ValueError, match="a site must be batch-first"):
        Regularization(fgm(site="transformer.layer.0"), tiny_model("xlnet")).backward(tiny_batch(5, 5))


@pytest.mark.parametrize(
    ("regularizer", "message"),
    [
        (fgm(site="vit.embeddings", scope="table"), 'scope="table" needs the ids of a look-up'),
        (fgm(site="vit.embeddings", unit="embedding"), 'unit="embedding" needs word embeddings'),
    ],
    ids=repr,
)
def test_what_means_something_for_words_only_is_refused(regularizer, message):
    model, batch = case("vit.embeddings")
    with pytest.raises(ValueError, match=message) as error:
        Regularization(regularizer, model).backward(batch)
    assert "\n" not in str(error.value)


def test_a_batch_without_words_asks_for_a_named_module():
    model, batch = case("vit.embeddings")
    with pytest.raises(ValueError, match=r"has no input_ids .* name a module as the site") as error:
        Regularization(fgm(), model).backward(batch)
    assert "\n" not in str(error.value)


def test_word_embeddings_under_two_names_are_refused():
    """The clean pass takes their look-up from outside of the module, and would not feel the second perturbation."""
    model, name = tiny_model(), "bert.embeddings.word_embeddings"
    with pytest.raises(ValueError, match=f"perturbs the word embeddings as {name} too") as error:
        Regularization(fgm() + fgm(site=name), model)
    assert "\n" not in str(error.value)
    assert not model.get_input_embeddings()._forward_hooks
    one, other = (Regularization(fgm(site=site), model).backward(tiny_batch()) for site in (name, "embeddings"))
    torch.testing.assert_close(one, other)
