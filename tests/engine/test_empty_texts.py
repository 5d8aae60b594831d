"""A text without a word, alone, beside others, or as a whole batch: every recipe trains over it."""

import pytest
import runs
import torch
from torch import Tensor, nn

from hf_rat import Regularization, parse
from hf_rat.models import (
    HANConfig,
    HANForSequenceClassification,
    RNNConfig,
    RNNForCausalLM,
    RNNForSequenceClassification,
    RNNForTokenClassification,
    TextCNNConfig,
    TextCNNForSequenceClassification,
)

WORDS = {"vocab_size": 30, "pad_token_id": 0, "embedding_size": 6, "num_labels": 3}
SENTENCES = {"sentence_level": True, "sentence_separator_token_id": 9}


class MeanOfWords(nn.Module):
    """A user's own model: the mean of the words, the mask's sum of at least one."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.table, self.dropout, self.head = nn.Embedding(30, 6), nn.Dropout(p), nn.Linear(6, 3)

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        words = self.table(input_ids.long()) * attention_mask.unsqueeze(-1)
        pooled = words.sum(1) / attention_mask.sum(1, keepdim=True).clamp(min=1)
        logits = self.head(self.dropout(pooled))
        return {"logits": logits} | (
            {"loss": nn.functional.cross_entropy(logits, labels)} if labels is not None else {}
        )


def rnn(pooling: str, cell: str = "lstm", **settings: object):
    def build(p: float) -> nn.Module:
        around = {"recurrent_dropouts": {"variational": p}, "classifier_dropout": p}
        config = RNNConfig(**WORDS, cell=cell, pooling=pooling, hidden_size=4, **around, **settings)
        return RNNForSequenceClassification(config)

    return build


CLASSIFIERS = {
    "textcnn": lambda p: TextCNNForSequenceClassification(TextCNNConfig(**WORDS, num_filters=4, classifier_dropout=p)),
    "normalised": lambda p: TextCNNForSequenceClassification(
        TextCNNConfig(**WORDS, num_filters=4, classifier_dropout=p, normalize_embeddings=True)
    ),
    "last": rnn("last", bidirectional=True),
    "mean": rnn("mean", "gru"),
    "max": rnn("max", "rnn"),
    "attention": rnn("attention"),
    "han": lambda p: HANForSequenceClassification(HANConfig(**WORDS, hidden_size=4, classifier_dropout=p)),
    "sentences": lambda p: HANForSequenceClassification(
        HANConfig(**WORDS, **SENTENCES, hidden_size=4, classifier_dropout=p)
    ),
    "own": MeanOfWords,
}
SIZES = {"hidden_size": 4, "classifier_dropout": 0.1}
TAGGERS = {
    "tokens": lambda p: RNNForTokenClassification(RNNConfig(**WORDS, **SIZES)),
    "language": lambda p: RNNForCausalLM(RNNConfig(**WORDS, **SIZES, last_hidden_size=6)),
}
SOME = torch.tensor([[4, 5, 6, 9, 7], [0] * 5, [3, 4, 0, 0, 0]])
TEXTS = {
    "a tokenizer's floats": (torch.zeros(3, 0), torch.zeros(3, 0)),
    "no step": (torch.zeros(3, 0, dtype=torch.long), torch.zeros(3, 0, dtype=torch.long)),
    "padding only": (torch.zeros(3, 4, dtype=torch.long), torch.zeros(3, 4, dtype=torch.long)),
    "one of three": (SOME, (SOME > 0).long()),
}


def built(name: str, p: float = 0.2) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (CLASSIFIERS | TAGGERS)[name](p).train()


def batch_of(texts: str, model: str) -> dict[str, Tensor]:
    ids, mask = TEXTS[texts]
    labels = torch.where(ids > 0, ids % 3, -100).long() if model in TAGGERS else torch.tensor([0, 1, 2])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.filterwarnings("ignore:.*has no dropout")
@pytest.mark.parametrize("texts", ["a tokenizer's floats", "padding only", "one of three"])
@pytest.mark.parametrize("name", CLASSIFIERS | TAGGERS)
def test_every_recipe_trains_over_texts_without_a_word(name, texts):
    # All recipes in one sum: each asks its own passes.
    recipes = parse(" + ".join([*runs.SETTINGS, "fgm(scope='table')", "fgm(unit='embedding')", "pgd(start=0.1)"]))
    for memory in ("fast", "lean"):
        model = built(name)
        regularization = Regularization(recipes, model, memory=memory)
        losses = regularization.backward(batch_of(texts, name))
        assert all(torch.isfinite(loss) for loss in losses.values()), losses
        assert regularization.nonfinite.steps == 0
        # DDP waits for the gradient of every weight.
        gradients = [parameter.grad for parameter in model.parameters()]
        assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.filterwarnings("ignore:.*has no dropout")
@pytest.mark.parametrize("texts", ["no step", "padding only"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_where_there_is_no_word_no_adversary_moves_anything(name, texts):
    batch = batch_of(texts, name)
    for recipe in ("fgm(epsilon=1)", "fgsm(epsilon=1)", "pgd(epsilon=1)"):
        losses = Regularization(parse(recipe), built(name, p=0.0)).backward(batch)
        assert losses["adversarial_task"] == losses["task"], recipe


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_text_without_a_word_has_the_same_logits_however_it_is_written(name):
    model = built(name).eval()
    seen = []
    for texts in TEXTS:
        ids, mask = TEXTS[texts]
        seen.append(model(input_ids=ids, attention_mask=mask)["logits"][1])
    assert torch.isfinite(seen[0]).all()
    for logits in seen[1:]:
        torch.testing.assert_close(logits, seen[0])


@pytest.mark.filterwarnings("ignore:.*has no dropout")
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_unlabelled_texts_without_a_word(name):
    unlabeled = {key: value for key, value in batch_of("no step", name).items() if key != "labels"}
    for recipe in ("vat", "rdrop", "rat + smart"):
        regularization = Regularization(parse(recipe), built(name))
        losses = regularization.backward(batch_of("one of three", name), unlabeled=unlabeled)
        assert all(torch.isfinite(loss) for loss in losses.values())
        assert regularization.nonfinite.steps == 0


def test_nothing_labelled_is_a_loss_of_zero():
    for name in TAGGERS:
        batch = batch_of("one of three", name)
        loss = built(name)(**batch | {"labels": torch.full_like(batch["labels"], -100)}).loss
        assert loss == 0
        assert loss.requires_grad


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_the_state_after_no_step_is_the_state_before_it(cell):
    torch.manual_seed(0)
    model = RNNForCausalLM(RNNConfig(**WORDS, cell=cell, hidden_size=4, last_hidden_size=6)).eval()
    before = model(input_ids=SOME).state
    after = model(input_ids=torch.zeros(3, 0), state=before)
    assert after.logits.shape == (3, 0, 30)
    for one, other in zip(before, after.state, strict=True):
        for a, b in zip(*((s,) if isinstance(s, Tensor) else s for s in (one, other)), strict=True):
            assert torch.equal(a, b)
