"""The generated reviews: their rule, their noise, and that a model has something to learn and to memorize."""

import pytest
import torch
from torch import nn

from hf_rat.data.generated_reviews import REVIEWS, generated_reviews
from hf_rat.data.vocabulary import word_tokenizer

PRAISE = "good great funny moving clever lovely gripping fresh charming brilliant touching superb"
BLAME = "bad boring dull awful silly slow weak messy tedious terrible clumsy bland"
WORTH = dict.fromkeys(PRAISE.split(), 1) | dict.fromkeys(BLAME.split(), -1)


def _answer(text):
    """The label by the rule: words of praise against words of blame."""
    worth = sum(WORTH.get(word, 0) for word in text.split())
    assert worth != 0
    return int(worth > 0)


def test_the_labels_follow_the_rule_and_some_training_labels_do_not():
    data = generated_reviews(train=2000)
    for split in ("validation", "test"):
        assert all(_answer(row["text"]) == row["label"] for row in data[split])
    wrong = sum(_answer(row["text"]) != row["label"] for row in data["train"]) / 2000
    assert wrong == pytest.approx(0.25, abs=0.03)  # three standard deviations of 2000 throws
    assert all(_answer(row["text"]) == row["label"] for row in generated_reviews(noise=0.0)["train"])


def test_the_shape_of_the_data():
    data = generated_reviews(train=30, validation=20, test=10)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 30, "validation": 20, "test": 10}
    for rows in generated_reviews().values():
        assert rows.features["label"].names == list(REVIEWS.labels) == ["negative", "positive"]
        assert rows.column_names == [*REVIEWS.text_columns, REVIEWS.label_column] == ["text", "label"]
        lengths = [len(text.split()) for text in rows["text"]]
        assert 10 <= min(lengths) < 15
        assert 35 < max(lengths) <= 40
        assert 0.4 < sum(rows["label"][:]) / len(rows) < 0.6


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    first = generated_reviews(seed=3)
    assert all(first[split].to_dict() == rows.to_dict() for split, rows in generated_reviews(seed=3).items())
    assert first["train"].to_dict() != generated_reviews(seed=4)["train"].to_dict()


def test_no_review_occurs_twice():
    texts = [text for rows in generated_reviews(train=2000).values() for text in rows["text"]]
    assert len(set(texts)) == len(texts) == 5000


def test_a_film_is_praised_and_blamed_in_one_review():
    """So that no single word decides: a part of the reviews has both, and most of the words say nothing."""
    texts = generated_reviews(train=2000)["train"]["text"][:]
    signs = [{WORTH[word] for word in text.split() if word in WORTH} for text in texts]
    assert 0.1 < sum(len(both) == 2 for both in signs) / len(texts) < 0.6
    words = [word for text in texts for word in text.split()]
    assert sum(word in WORTH for word in words) / len(words) < 0.1


class _Bag(nn.Module):
    """The smallest convolutional text classifier: features of two words, their maximum over the text."""

    def __init__(self, words):
        super().__init__()
        self.embeddings = nn.Embedding(words, 32, padding_idx=0)
        self.features = nn.Conv1d(32, 64, 2)
        self.classifier = nn.Linear(64, 2)

    def forward(self, ids):
        return self.classifier(self.features(self.embeddings(ids).transpose(1, 2)).relu().amax(2))


def test_a_small_network_learns_it_and_memorizes_the_noise():
    data = generated_reviews(train=600)
    tokenizer, _ = word_tokenizer(data["train"]["text"])
    ids = {
        split: tokenizer(rows["text"][:], padding=True, return_tensors="pt")["input_ids"]
        for split, rows in data.items()
    }
    labels = {split: torch.tensor(rows["label"][:]) for split, rows in data.items()}
    model = _Bag(len(tokenizer))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        for rows in torch.randperm(len(ids["train"])).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(ids["train"][rows]), labels["train"][rows]).backward()
            optimizer.step()
    right = {
        split: (model(ids[split]).argmax(1) == labels[split]).float().mean().item() for split in ("train", "test")
    }
    assert right["test"] > 0.65, "clearly above chance"
    assert right["train"] > 0.85, "flipped labels, 25 % of all, are learned too"
    assert right["test"] < right["train"] - 0.08
