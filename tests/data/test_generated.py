"""The built-in example: its rule, its noise and its model."""

import re

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from hf_rat.data.generated import generated_config, generated_pairs, generated_tokenizer

WORTH = {
    -2: "awful terrible horrid dreadful rotten vile",
    -1: "bland dull slow stale meagre shabby",
    1: "fine decent pleasant tidy fresh warm",
    2: "superb excellent perfect splendid wonderful brilliant",
}


def _answer(row):
    value = {word: worth for worth, words in WORTH.items() for word in words.split()}
    words = re.findall(r"\w+", f"{row['sentence1']} {row['sentence2']}")
    return int(sum(value.get(word, 0) for word in words) > 0)


def test_validation_labels_follow_the_rule_and_a_fifth_of_the_training_labels_do_not():
    rows = generated_pairs(train=2000)
    assert all(_answer(row) == row["label"] for row in rows["validation"])
    wrong = sum(_answer(row) != row["label"] for row in rows["train"]) / 2000
    assert wrong == pytest.approx(0.2, abs=0.03)  # three standard deviations of 2000 throws


def test_asides_say_nothing_about_the_label():
    """Town, day and room: over many pairs each goes with either answer as often, within the noise of counting."""
    rows = generated_pairs(train=6000, noise=0.0, asides=True)["train"]
    assert all(_answer(row) == row["label"] for row in rows)
    labels = np.array(rows["label"][:])
    pattern = re.compile(r"(\w+) , day (\d+) : .*\nroom (\d+) : ")
    found = [
        pattern.match(f"{a}\n{b}").groups() for a, b in zip(rows["sentence1"][:], rows["sentence2"][:], strict=True)
    ]
    for place, count in enumerate((40, 31, 40)):
        values = np.array([each[place] for each in found])
        assert len(set(values)) == count
        scores = []
        for value in set(values):
            own = labels[values == value]
            scores.append((own.mean() - labels.mean()) / (0.5 / np.sqrt(len(own))))
        # The sum of the squared scores is chi-squared with about `count` degrees of freedom.
        assert np.square(scores).sum() < count + 4 * np.sqrt(2 * count)


def test_without_noise_every_label_is_true():
    assert all(_answer(row) == row["label"] for row in generated_pairs(noise=0.0)["train"])


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    assert generated_pairs()["train"].to_dict() == generated_pairs()["train"].to_dict()
    assert generated_pairs()["train"].to_dict() != generated_pairs(seed=1)["train"].to_dict()


def test_both_answers_occur_about_equally_often():
    labels = generated_pairs()["validation"]["label"][:]
    assert 0.4 < sum(labels) / len(labels) < 0.6


@pytest.mark.parametrize("asides", [False, True])
def test_the_tokenizer_knows_every_word_and_marks_the_two_sentences(asides):
    tokenizer, rows = generated_tokenizer(asides), generated_pairs(asides=asides)
    encoded = tokenizer(rows["train"]["sentence1"][:], rows["train"]["sentence2"][:])
    assert all(tokenizer.unk_token_id not in ids for ids in encoded["input_ids"])
    one = tokenizer("the soup was bland", "the room was fine")
    assert tokenizer.convert_ids_to_tokens(one["input_ids"])[:3] == ["[CLS]", "the", "soup"]
    assert one["token_type_ids"] == [0] * 6 + [1] * 5
    assert max(map(len, encoded["input_ids"])) <= tokenizer.model_max_length


def test_the_tokenizer_survives_saving(tmp_path):
    tokenizer = generated_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again("the soup was bland", "zzz").data == tokenizer("the soup was bland", "zzz").data


@pytest.mark.parametrize("hidden_size", [32, 64, 128])
def test_word_vectors_have_a_norm_of_about_one(hidden_size):
    torch.manual_seed(0)
    model = BertForSequenceClassification(generated_config(generated_tokenizer(), hidden_size, layers=1))
    norms = model.get_input_embeddings().weight[1:].norm(dim=1)
    assert norms.mean().item() == pytest.approx(1.0, abs=0.05)
    assert model.config.hidden_dropout_prob == model.config.attention_probs_dropout_prob == 0.1
