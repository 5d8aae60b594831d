"""Averages of weights against a loop in float64 written here, over every name of every tensor of a model."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import tiny_batch, tiny_model
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, BartConfig, BertConfig, T5Config

from hf_rat import AveragedWeights, Regularization, smart
from hf_rat.engine.averaged_model import load_raw

IDS = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}


class Normalised(nn.Module):
    """Batch normalisation, a constant mask, a cache that no checkpoint keeps, and two buffers in one storage."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        self.register_buffer("seen", torch.arange(4.0))
        self.register_buffer("half_seen", self.seen[1:3])
        self.register_buffer("cache", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.inner(x))


def bert() -> nn.Module:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return AutoModelForMaskedLM.from_config(BertConfig(**IDS, **sizes))


def bart() -> nn.Module:
    sizes = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    return AutoModelForSeq2SeqLM.from_config(BartConfig(**IDS, **sizes, d_model=8))


def t5() -> nn.Module:
    return AutoModelForSeq2SeqLM.from_config(T5Config(**IDS, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))


def lora() -> nn.Module:
    return get_peft_model(bert(), LoraConfig(target_modules=["query"], r=2, init_lora_weights=False))


def half() -> nn.Module:
    return tiny_model().to(torch.bfloat16)


MODELS = {f.__name__: f for f in (bert, bart, t5, lora, half, Normalised)}


def every_name(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers in float64, those of several names under each."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: value.detach().double().clone() for name, value in tensors}


def moved(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Move all that a training step moves; the new values."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
        if isinstance(model, Normalised):
            model(torch.randn(5, 6, generator=generator))
            model.seen += torch.rand(4, generator=generator)
            model.cache += 1
    return every_name(model)


@pytest.mark.parametrize("beta", [0.9, None])
@pytest.mark.parametrize("name", MODELS)
def test_every_storage_is_averaged_once(name, beta):
    model, generator = MODELS[name]().train(), torch.Generator().manual_seed(0)
    average = AveragedWeights(model, beta)
    path = [every_name(model)]
    for _ in range(4):
        path.append(moved(model, generator))
        average.update(model)
    for key, found in every_name(average.model).items():
        points = [at[key] for at in path]
        if key == "cache" or key.endswith("num_batches_tracked"):
            expected = points[-1]
        elif beta is None:
            expected = sum(points[1:]) / 4
        else:
            expected = points[0]
            for point in points[1:]:
                expected = beta * expected + (1 - beta) * point
        torch.testing.assert_close(found, expected, rtol=4e-3 if name == "half" else 1e-5, atol=1e-5, msg=key)


def test_a_slow_average_of_half_precision_weights_moves():
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    average = AveragedWeights(model, 0.999)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(500):  # each of them less than half of the distance between two numbers of bfloat16
        average.update(model)
    assert float(average.model.weight) == pytest.approx(2 - 0.999**500, rel=4e-3)


@pytest.mark.parametrize("beta", [0.9, None])
@pytest.mark.parametrize("name", MODELS)
def test_a_saved_average_goes_on_as_if_nothing_had_happened(name, beta, tmp_path):
    model, generator = MODELS[name](), torch.Generator().manual_seed(0)
    straight = AveragedWeights(model, beta, "mine.safetensors")
    for _ in range(2):
        moved(model, generator)
        straight.update(model)
    straight.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]
    resumed = AveragedWeights(model, beta, "mine.safetensors")
    resumed.load(tmp_path)
    for _ in range(2):
        moved(model, generator)
        straight.update(model)
        resumed.update(model)
    found, expected = every_name(resumed.model), every_name(straight.model)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("beta", [0.9, None])
@pytest.mark.parametrize("name", MODELS)
def test_applied_to_the_model_it_is_the_model_that_runs(name, beta, tmp_path):
    """Kept beside the weights, without a copy of the model: the same averages, and the weights come back."""
    model, generator = MODELS[name](), torch.Generator().manual_seed(0)
    runs, beside = AveragedWeights(model, beta), AveragedWeights(model, beta, runs=False)
    for _ in range(3):
        moved(model, generator)
        runs.update(model)
        beside.update(model)
    before = every_name(model)
    seen = []

    def interrupted():
        with beside.applied(model):
            seen.append(every_name(model))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (inside,), after = seen, every_name(model)
    assert all(torch.equal(inside[key], value) for key, value in every_name(runs.model).items())
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not torch.equal(*(torch.cat([value.flatten() for value in one.values()]) for one in (inside, after)))
    beside.save_raw(model, tmp_path)
    moved(model, generator)
    load_raw(model, tmp_path)
    trained = {key for key, value in model.named_parameters(remove_duplicate=False) if value.requires_grad}
    assert all(torch.equal(value, before[key]) for key, value in every_name(model).items() if key in trained)


def test_what_adapters_leave_frozen_belongs_to_both_models():
    model = MODELS["lora"]()
    average = AveragedWeights(model, 0.9)
    for mine, theirs in zip(average.model.parameters(), model.parameters(), strict=True):
        assert (mine is theirs) == (not theirs.requires_grad)
    frozen = next(name for name, value in model.named_parameters() if not value.requires_grad)
    dict(model.named_parameters())[frozen].requires_grad_(True)
    with pytest.raises(ValueError, match=f"{frozen} is trained, and was frozen when the average began"):
        average.update(model)


def test_under_autocast_no_cast_of_other_weights_is_used():
    model, x = nn.Linear(4, 4), torch.ones(1, 4)
    average = AveragedWeights(model, 0.5, runs=False)
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update(model)
    with torch.autocast("cpu", torch.bfloat16):
        raw = model(x)
        with average.applied(model):
            averaged = model(x)
        assert torch.equal(model(x), raw)
    assert not torch.allclose(averaged, raw, rtol=0.1)


def test_the_raw_weights_of_another_model_are_refused(tmp_path):
    AveragedWeights(nn.Linear(2, 2), 0.9).save_raw(nn.Linear(2, 2), tmp_path)
    with pytest.raises(ValueError, match="is not of this model: bias is in the file only"):
        load_raw(nn.Linear(2, 2, bias=False), tmp_path)


def test_a_tied_tensor_is_saved_once(tmp_path):
    AveragedWeights(bert(), 0.9).save(tmp_path)
    saved = load_file(tmp_path / "averaged_model.safetensors")
    assert sum(value.shape == (40, 8) for value in saved.values()) == 1


def test_the_average_of_another_model_is_refused_in_one_line(tmp_path):
    AveragedWeights(nn.Linear(2, 2), 0.9).save(tmp_path)
    with pytest.raises(ValueError, match="is not the average of this model: bias is in the file only") as error:
        AveragedWeights(nn.Linear(2, 2, bias=False), 0.9).load(tmp_path)
    assert "\n" not in str(error.value)


def test_the_averaged_model_runs_without_dropout_and_without_gradients():
    model = tiny_model(dropout=0.5)
    average, batch = AveragedWeights(model, 0.9), tiny_batch()
    logits = average(**batch).logits
    assert not logits.requires_grad
    assert torch.equal(logits, copy.deepcopy(model).eval()(**batch).logits)
    assert model.training


def test_smart_moves_tied_embeddings_as_far_as_the_rest():
    model = bert()
    regularization = Regularization(smart(beta=0.9), model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    before = every_name(regularization.teacher.model)
    regularization.after_step()
    for key, value in every_name(regularization.teacher.model).items():
        if value.numel() and key in dict(model.named_parameters()):
            torch.testing.assert_close(value - before[key], torch.full_like(value, 0.1), atol=1e-5, rtol=0)
