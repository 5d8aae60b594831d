"""TextCNN: against F.conv1d on each text alone; its own backward against autograd's of that."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_rat.models import TextCNNConfig, TextCNNForSequenceClassification
from hf_rat.models.modeling_textcnn import LargestConvolution

WORDS, SIZE = 20, 5
TEXTS = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5], [8, 9], [7], []]
"""Longer than, as long as, and shorter than the widest kernel; one word; none."""


def make(**settings):
    settings = {"vocab_size": WORDS, "embedding_size": SIZE, "num_filters": 6, "num_labels": 3} | settings
    return TextCNNForSequenceClassification(TextCNNConfig(**settings)).double()


def pad(texts, width=8):
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text, dtype=torch.long)
        mask[row, : len(text)] = 1
    return ids, mask


def by_hand(model, text):
    """The logits of one text, from Kim's equations: c = max_t relu(w . x_{t:t+h} + b), then a linear layer."""
    x = model.embeddings.weight[torch.tensor(text, dtype=torch.long)].t()
    features = []
    for convolution in model.convolutions:
        width = convolution.kernel_size[0]
        long_enough = F.pad(x, (0, max(0, width - x.size(1))))
        answers = F.conv1d(long_enough.unsqueeze(0), convolution.weight, convolution.bias)
        features.append(answers[0].relu().amax(1))
    return model.classifier(torch.cat(features))


def test_logits_and_gradients_are_those_of_convolutions():
    model = make(classifier_dropout=0.0).train()
    weights = torch.randn(len(TEXTS), 3, dtype=torch.double)
    parameters = list(model.parameters())
    ours = model(*pad(TEXTS)).logits
    theirs = torch.stack([by_hand(model, text) for text in TEXTS])
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    found, expected = (torch.autograd.grad((logits * weights).sum(), parameters) for logits in (ours, theirs))
    assert all(slope.abs().max() > 0 for slope in expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_slope_at_the_embeddings():
    model = make().eval()
    ids, mask = pad(TEXTS)
    vectors = model.embeddings(ids).detach().requires_grad_()
    (found,) = torch.autograd.grad(model(inputs_embeds=vectors, attention_mask=mask).logits.sum(), vectors)
    for row, text in enumerate(TEXTS):
        alone = model.embeddings(torch.tensor([text], dtype=torch.long)).detach().requires_grad_()
        logits = model(inputs_embeds=alone).logits.sum()
        assert not found[row, len(text) :].any()
        if text:
            torch.testing.assert_close(found[row, : len(text)], torch.autograd.grad(logits, alone)[0][0])


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_first_and_second_derivatives(width, check):
    layer = LargestConvolution(2, 3, width).double()
    x = torch.randn(2, 5, 2, dtype=torch.double, requires_grad=True)
    lengths = torch.tensor([5, 3])

    def run(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x, lengths)).tanh()

    assert check(run, (x, layer.weight, layer.bias))


@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_no_gradient_where_none_is_needed(frozen):
    layer, x = LargestConvolution(2, 3, 2), torch.randn(2, 5, 2, requires_grad=frozen != "input")
    layer.weight.requires_grad_(frozen != "weight")
    layer(x, torch.tensor([5, 3])).sum().backward()
    assert (x.grad is None) == (frozen == "input")
    assert (layer.weight.grad is None) == (frozen == "weight")


def test_a_window_that_touches_padding_does_not_count():
    """The largest answers of all lie at the padding, and beside it."""
    layer = LargestConvolution(1, 1, 2)
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    x = torch.tensor([[1.0, 2.0, 3.0, 100.0, 100.0], [1.0, 2.0, 3.0, 4.0, 5.0]]).unsqueeze(2)
    assert layer(x, torch.tensor([3, 5])).flatten().tolist() == [5.0, 9.0]


def test_half_precision_training():
    model = make().to(torch.bfloat16).train()
    model(*pad(TEXTS), labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel_sizes": []}, "kernel_sizes=[] is not a list of widths"),
        ({"kernel_sizes": [2, 0]}, "kernel_sizes=0 is not a whole number of at least 1"),
        ({"kernel_sizes": 3}, "kernel_sizes=3 is not a list of widths"),
        ({"num_filters": 2.5}, "num_filters=2.5 is not a whole number of at least 1"),
        ({"vocab_size": 0}, "vocab_size=0 is not a whole number of at least 1"),
        ({"classifier_dropout": 1.0}, "classifier_dropout=1.0 is not a rate in [0, 1)"),
        ({"embedding_dropout": -0.1}, "embedding_dropout=-0.1 is not a rate in [0, 1)"),
        ({"embedding_dropout_per": "word"}, "embedding_dropout_per='word' is none of batch, example"),
        ({"initializer_range": -1}, "initializer_range=-1 is not a number of at least 0"),
        ({"pad_token_id": 30000}, "pad_token_id=30000 is outside the vocabulary of 30000 words"),
    ],
)
def test_a_wrong_configuration(settings, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        TextCNNConfig(**settings)
    assert str(error.value) == message


def test_a_rate_that_is_set_later_is_checked_too():
    config = TextCNNConfig()
    config.classifier_dropout = 1.5
    with pytest.raises(ValueError, match=r"classifier_dropout=1\.5 is not a rate"):
        TextCNNForSequenceClassification(config)
