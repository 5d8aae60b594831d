"""HAN: against torch.nn.GRU and the attention's equation, one sentence and one text at a time."""

import pytest
import torch
from torch import nn

from hf_rat.models import HANConfig, HANForSequenceClassification

WORDS, SIZE, HIDDEN, END = 20, 5, 4, 9
TEXTS = [[3, 1, 4, END, 5, END, 2], [END, END, 6], [8, 7], [5, 6, END], []]
"""Three sentences; two of nothing but their end; one without an end; one; no word at all."""
SENTENCES = [[[3, 1, 4, END], [5, END], [2]], [[END], [END], [6]], [[8, 7]], [[5, 6, END]], []]

CLOSE = {"check_dtype": False, "rtol": 1e-5, "atol": 1e-6}  # attention is float32


def make(**settings):
    settings = {"vocab_size": WORDS, "embedding_size": SIZE, "hidden_size": HIDDEN, "num_labels": 3} | settings
    config = HANConfig(**settings, initializer_range=1.0)
    return HANForSequenceClassification(config).double().eval()


def by_sentence(**settings):
    return make(sentence_level=True, sentence_separator_token_id=END, **settings)


def pad(texts, width=9, left=False):
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        place = slice(width - len(text), width) if left else slice(0, len(text))
        ids[row, place] = torch.tensor(text, dtype=torch.long)
        mask[row, place] = 1
    return ids, mask


def read(level, x):
    """One sequence (time, d) -> its vector and weights: a_t = softmax(u . tanh(W h_t + b)), sum a_t h_t."""
    gru = nn.GRU(x.size(1), HIDDEN, batch_first=True, bidirectional=True).double()
    gru.load_state_dict(level.encoder.state_dict())
    hidden = gru(x.unsqueeze(0))[0][0]
    attention = level.attention
    inner = torch.tanh(hidden @ attention.project.weight.t() + attention.project.bias)
    weights = torch.softmax(inner @ attention.query.weight[0], 0)
    return weights @ hidden, weights


def test_one_level():
    model = make()
    outputs = model(*pad(TEXTS), output_attentions=True)
    (attention,) = outputs.attentions
    for row, text in enumerate(TEXTS):
        pooled, weights = torch.zeros(2 * HIDDEN, dtype=torch.double), torch.zeros(0, dtype=torch.double)
        if text:
            pooled, weights = read(model.words, model.embeddings.weight[torch.tensor(text)])
        torch.testing.assert_close(outputs.logits[row], model.classifier(pooled), **CLOSE)
        torch.testing.assert_close(attention[row, : len(text)], weights, **CLOSE)
        assert not attention[row, len(text) :].any()


def test_two_levels():
    model = by_sentence()
    outputs = model(*pad(TEXTS), output_attentions=True)
    of_words, of_sentences = outputs.attentions
    for row, sentences in enumerate(SENTENCES):
        pooled, weights = torch.zeros(2 * HIDDEN, dtype=torch.double), torch.zeros(0, dtype=torch.double)
        if sentences:
            read_ones = [read(model.words, model.embeddings.weight[torch.tensor(one)]) for one in sentences]
            expected = torch.cat([weights for _, weights in read_ones])
            torch.testing.assert_close(of_words[row, : len(expected)], expected, **CLOSE)
            pooled, weights = read(model.sentences, torch.stack([vector for vector, _ in read_ones]))
        torch.testing.assert_close(outputs.logits[row], model.classifier(pooled), **CLOSE)
        torch.testing.assert_close(of_sentences[row, : len(weights)], weights, **CLOSE)
        assert not of_sentences[row, len(weights) :].any()


@pytest.mark.parametrize("model", [make(), by_sentence()], ids=["words", "sentences"])
def test_attention_lies_where_the_words_are(model):
    right = model(*pad(TEXTS), output_attentions=True).attentions
    left = model(*pad(TEXTS, left=True), output_attentions=True).attentions
    for row, text in enumerate(TEXTS):
        torch.testing.assert_close(left[0][row, 9 - len(text) :], right[0][row, : len(text)])
    assert model(*pad(TEXTS)).attentions is None
    model.config.output_attentions = True
    assert model(*pad(TEXTS)).attentions is not None


def test_texts_without_a_word():
    for model in (make(), by_sentence()):
        outputs = model(*pad([[], []]), output_attentions=True)
        torch.testing.assert_close(outputs.logits, model.classifier.bias.expand(2, -1))
        assert not outputs.attentions[0].any()


def test_vectors_need_words_to_end_sentences():
    model, (ids, mask) = by_sentence(), pad(TEXTS)
    vectors = model.embeddings(ids)
    with pytest.raises(ValueError, match="inputs_embeds alone with sentence_level=True"):
        model(inputs_embeds=vectors, attention_mask=mask)
    given = model(input_ids=ids, inputs_embeds=vectors, attention_mask=mask).logits
    assert torch.equal(given, model(ids, mask).logits)


def test_the_cut_carries_gradients():
    """Every word of every sentence has its share in the loss."""
    model, (ids, mask) = by_sentence(), pad(TEXTS)
    vectors = model.embeddings(ids).detach().requires_grad_()
    model(input_ids=ids, inputs_embeds=vectors, attention_mask=mask).logits.square().sum().backward()
    assert torch.equal(vectors.grad.abs().sum(-1) > 0, mask.bool())


def test_recurrent_dropout_is_on_in_training_only():
    model, (ids, mask) = make(recurrent_dropouts={"variational": 0.5}, classifier_dropout=0.0), pad(TEXTS)
    assert torch.equal(model(ids, mask).logits, model(ids, mask).logits)
    model.train()
    assert not torch.equal(model(ids, mask).logits, model(ids, mask).logits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sentence_level": True},
            "sentence_level=True needs sentence_separator_token_id, the word that ends a sentence",
        ),
        ({"sentence_separator_token_id": 4}, "sentence_separator_token_id=4 cuts nothing without sentence_level=True"),
        (
            {"sentence_level": True, "sentence_separator_token_id": 30000},
            "sentence_separator_token_id=30000 is outside the vocabulary of 30000 words",
        ),
        ({"hidden_size": 0}, "hidden_size=0 is not a whole number of at least 1"),
        ({"attention_size": -1}, "attention_size=-1 is not a whole number of at least 1"),
        ({"recurrent_dropouts": 0.5}, "recurrent_dropouts=0.5 is not a mapping of rates by name"),
        ({"recurrent_dropouts": {"variational": 1.0}}, "dropout variational=1.0 is not a rate in [0, 1)"),
        (
            {"recurrent_dropouts": {"layers": 0.5}},
            "recurrent_dropouts layers=0.5 acts between stacked layers, and there is one layer",
        ),
    ],
)
def test_a_wrong_configuration(settings, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        HANConfig(**settings)
    assert str(error.value) == message
