"""A model that pads its inputs itself: the perturbation is that of the tokens, with length buckets or without."""

import pytest
import tiny
import torch
from torch import nn
from transformers import (
    LongformerConfig,
    LongformerForMultipleChoice,
    LongformerForSequenceClassification,
    LongformerForTokenClassification,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_rat import Regularization, fgm, parse


def longformer(kind=LongformerForSequenceClassification):
    torch.manual_seed(0)
    config = LongformerConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        attention_window=[4, 4], max_position_embeddings=40, pad_token_id=tiny.PAD, num_labels=3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return kind(config).train()


def widened(batch, width):
    add = width - batch["input_ids"].shape[1]
    pad = nn.functional.pad
    more = {name: pad(batch[name], (0, add), value=v) for name, v in (("input_ids", tiny.PAD), ("attention_mask", 0))}
    return {**batch, **more}


def by_hand(batch, epsilon):
    """On the batch as the model pads it."""
    model, batch = longformer(), widened(batch, 8)
    x = model.get_input_embeddings()(batch["input_ids"])
    rest = {name: value for name, value in batch.items() if name != "input_ids"}
    rest["global_attention_mask"] = (torch.arange(8) == 0).long().expand(4, 8)
    positions = batch["attention_mask"].cumsum(1) * batch["attention_mask"] + tiny.PAD
    clean = model(inputs_embeds=x, position_ids=positions, **rest).loss
    (g,) = torch.autograd.grad(clean, x, retain_graph=True)
    move = epsilon * g / g.flatten(1).norm(dim=1).view(-1, 1, 1)
    moved = model(inputs_embeds=x + move, position_ids=positions, **rest).loss
    (clean + moved).backward()
    return clean.item(), moved.item(), tiny.gradients(model)


@pytest.mark.parametrize("length_buckets", ["auto", "off"])
@pytest.mark.parametrize("width", [7, 8, 12])
def test_longformer(width, length_buckets):
    batch = tiny.tiny_batch(length=7)
    model = longformer()
    named = Regularization(fgm(epsilon=0.5), model, length_buckets=length_buckets).backward(widened(batch, width))
    clean, moved, slopes = by_hand(batch, 0.5)
    assert float(named["task"]) == pytest.approx(clean, rel=1e-5)
    assert float(named["adversarial_task"]) == pytest.approx(moved, rel=1e-5)
    tiny.assert_same_gradients(tiny.gradients(model), slopes, 1e-3)


@pytest.mark.filterwarnings("ignore:.*has no dropout")
@pytest.mark.parametrize("kind", [LongformerForSequenceClassification, LongformerForTokenClassification])
@pytest.mark.parametrize("text", ["rat(epsilon=0.5)", "vat(epsilon=0.5)", "freelb", "smart", "r3f", "neftune"])
def test_every_way_to_move_it(text, kind):
    model, batch = longformer(kind), tiny.tiny_batch(length=7)
    if kind is LongformerForTokenClassification:
        batch["labels"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"] % 3, -100)
    assert all(torch.isfinite(value) for value in Regularization(parse(text), model).backward(batch).values())


def test_the_choices_of_a_multiple_choice():
    model, batch = longformer(LongformerForMultipleChoice), tiny.tiny_batch(length=7)
    batch = {name: value.unsqueeze(1).repeat(1, 3, 1) for name, value in batch.items() if name != "labels"}
    batch["input_ids"][:, 1] = 5
    batch["global_attention_mask"] = torch.zeros_like(batch["input_ids"])
    named = Regularization(fgm(epsilon=0.5), model).backward({**batch, "labels": torch.tensor([0, 1, 1, 2])})
    assert named["adversarial_task"] > named["task"]


def test_a_model_that_puts_more_than_padding_there_is_refused():
    class Prompted(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.output = nn.Embedding(60, 8), nn.Linear(8, 3)

        def get_input_embeddings(self):
            return self.embedding

        def forward(self, input_ids, attention_mask=None, labels=None):
            z = self.output(self.embedding(torch.cat([input_ids, input_ids], 1)).mean(1))
            return SequenceClassifierOutput(loss=nn.functional.cross_entropy(z, labels), logits=z)

    with pytest.raises(ValueError, match=r"Prompted looks up more ids .*pad_to_multiple_of.*length_buckets") as error:
        Regularization(fgm(), Prompted()).backward(tiny.tiny_batch())
    assert "\n" not in str(error.value)
