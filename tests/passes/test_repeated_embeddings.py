"""Word embeddings that run several times in a pass: each run has its own perturbation, within one norm."""

import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_rat import Regularization, fgm, parse


class Siamese(nn.Module):
    """Embeds two texts with one table, one after the other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.output = nn.Embedding(20, 6), nn.Linear(12, 3)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, other_input_ids, attention_mask=None, other_attention_mask=None, labels=None):
        return self.after(self.embedding(input_ids), self.embedding(other_input_ids), labels)

    def after(self, one, other, labels):
        z = self.output(torch.cat([one.mean(1).tanh(), other.square().mean(1)], -1))
        return SequenceClassifierOutput(loss=F.cross_entropy(z, labels), logits=z)


def pairs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 20, (4, 9), generator=generator)
    return {"input_ids": ids[:, :5], "other_input_ids": ids[:, 5:], "labels": torch.tensor([0, 2, 1, 1])}


def test_each_run_is_moved_within_one_norm():
    model, batch = Siamese(), pairs()
    one, other = (model.embedding(batch[name]) for name in ("input_ids", "other_input_ids"))
    clean = model.after(one, other, batch["labels"]).loss
    slopes = torch.autograd.grad(clean, [one, other], retain_graph=True)
    norm = torch.cat(slopes, 1).flatten(1).norm(dim=1).view(-1, 1, 1)
    moved = model.after(one + 0.5 * slopes[0] / norm, other + 0.5 * slopes[1] / norm, batch["labels"]).loss
    (clean + moved).backward()
    ours = Siamese()
    named = Regularization(fgm(epsilon=0.5), ours).backward(batch)
    assert float(named["task"]) == pytest.approx(clean.item(), rel=1e-5)
    assert float(named["adversarial_task"]) == pytest.approx(moved.item(), rel=1e-5)
    tiny.assert_same_gradients(tiny.gradients(ours), tiny.gradients(model))


@pytest.mark.parametrize("text", ["rat(epsilon=0.5)", "vat(epsilon=0.5)", "freelb(start=0.2)", "fgm(scope='table')"])
def test_other_recipes_reach_both_runs_of_every_batch(text):
    model = Siamese()
    regularization = Regularization(parse(text), model)
    regularization.backward(pairs())
    longer = pairs(1)
    longer["input_ids"] = longer["input_ids"].repeat(1, 2)
    longer["attention_mask"] = (torch.arange(10) < 7).long().expand(4, 10)
    named = regularization.backward(longer)
    assert all(torch.isfinite(value) for value in named.values())
    place = regularization._sites.open("embeddings").geometry(longer)
    assert place.shape == (4, 14, 6)
    assert place.mask.sum(1).tolist() == [11] * 4


def test_runs_for_what_is_no_input_are_refused():
    class Shifted(Siamese):
        def forward(self, input_ids, other_input_ids, labels=None):
            return self.after(self.embedding(input_ids), self.embedding(other_input_ids.flip(1)), labels)

    with pytest.raises(ValueError, match=r"Embedding of Shifted runs 2 times .*name a module that runs once") as error:
        Regularization(fgm(), Shifted()).backward(pairs())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_both_sides_of_an_encoder_decoder_may_share_a_table_but_run_once_each(family):
    model, batch = tiny.tiny_model(family), tiny.tiny_batch()

    def twice(model, inputs):
        first, second = model(**inputs), model(**inputs)
        return (first.loss + second.loss) / 2, first.logits

    assert Regularization(fgm(), model).backward(batch)
    with pytest.raises(RuntimeError, match="runs more often"):
        Regularization(fgm(), model, run=twice).backward(batch)


def test_a_loss_that_runs_the_model_twice_is_refused():
    model, batch = tiny.tiny_model(dropout=0.1), tiny.tiny_batch()

    def twice(model, inputs):
        first, second = model(**inputs), model(**inputs)
        return (first.loss + second.loss) / 2, first.logits

    with pytest.raises(RuntimeError, match="runs more often in a pass than in one forward of the model") as error:
        Regularization(fgm(), model, run=twice).backward(batch)
    assert "\n" not in str(error.value)
    assert Regularization(parse("rdrop"), model, run=twice).backward(batch)  # which moves nothing
