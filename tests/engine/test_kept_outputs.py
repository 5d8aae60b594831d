"""Truncated back-propagation under a regularizer: a state goes in, and that of the clean pass comes out."""

import copy
from collections import namedtuple

import pytest
import torch
from tiny import assert_same_gradients, gradients, tiny_batch, tiny_model
from torch import Tensor, nn
from torch.nn import functional as F

from hf_rat import Regularization, fraternal, parse, plain, rdrop
from hf_rat.models import RNNConfig, RNNForCausalLM

Carried = namedtuple("Carried", "h c")


def language_model(cell: str = "lstm", p: float = 0.3) -> RNNForCausalLM:
    """All of its dropout draws for each example; weight drop is another matter."""
    rates = {"input": p, "hidden": p, "output": p, "variational": p}
    sizes = {"vocab_size": 20, "embedding_size": 6, "hidden_size": 5, "last_hidden_size": 6, "num_hidden_layers": 2}
    torch.manual_seed(0)
    return RNNForCausalLM(RNNConfig(**sizes, cell=cell, recurrent_dropouts=rates)).train()


class OwnLanguageModel(nn.Module):
    """A user's own, with names, shapes and a container of its own for what it carries."""

    def __init__(self, p: float = 0.3) -> None:
        super().__init__()
        self.table, self.lstm, self.head = nn.Embedding(20, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 20)
        self.dropout = nn.Dropout(p)

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, input_ids: Tensor, labels: Tensor, carried: Carried | None = None) -> dict[str, object]:
        x, after = self.lstm(self.dropout(self.table(input_ids)), carried)
        logits = self.head(self.dropout(x))
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits, "carried": Carried(*after)}


def chunks(count: int = 3) -> list[dict[str, Tensor]]:
    ids = torch.randint(1, 20, (4, 6 * count), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": part, "labels": part} for part in ids.split(6, 1)]


def flat(state: object) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else [s for part in state for s in flat(part)]


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_fraternal_over_chunks_is_the_loop_by_hand(cell, memory):
    model = language_model(cell)
    by_hand = copy.deepcopy(model)
    regularization = Regularization(fraternal(alpha=0.5), model, memory=memory, keep=["state"])
    ours = theirs = None
    for index, chunk in enumerate(chunks()):
        regularization.weighting.problem(chunk)  # asked before the masks are drawn
        torch.manual_seed(index)
        losses = regularization.backward({**chunk, "state": ours})
        ours = regularization.kept["state"]
        torch.manual_seed(index)
        passes = [by_hand(**chunk, state=theirs) for _ in range(2)]
        theirs = passes[0].state  # both start from one state, and the first goes on (Zolna et al.)
        task = (passes[0].loss + passes[1].loss) / 2
        apart = (passes[0].logits - passes[1].logits)[:, :-1].square().mean()
        (task + 0.5 * apart).backward()
        assert float(losses["task"]) == pytest.approx(task.item(), rel=1e-5)
        assert float(losses["consistency"]) == pytest.approx(0.5 * apart.item(), rel=1e-4)
        for state, expected in zip(flat(ours), flat(theirs), strict=True):
            torch.testing.assert_close(state, expected)
            assert not state.requires_grad
    assert_same_gradients(gradients(model), gradients(by_hand))


quiet = pytest.mark.filterwarnings("ignore:.*has no dropout")
RECIPES = ["plain", "rdrop", "rat", "fgm", "vat", "freelb", "smart", "adversarial_dropout", "expectation_linear"]


@quiet
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_kept_is_that_of_the_clean_pass_and_nothing_runs_for_it(recipe):
    calls = []
    with_keep, without = language_model(p=0.0), language_model(p=0.0)
    for model in (with_keep, without):
        model.register_forward_hook(lambda module, args, output, model=model: calls.append(model))
    keeping = Regularization(parse(recipe), with_keep, keep=["state"])
    other = Regularization(parse(recipe), without)
    state = None
    for chunk in chunks():
        expected = language_model(p=0.0)
        expected.load_state_dict(with_keep.state_dict())
        keeping.backward({**chunk, "state": state})
        other.backward({**chunk, "state": state})
        expected = expected(**chunk, state=state).state
        state = keeping.kept["state"]
        if recipe != "freelb":  # which has no clean pass: its first starts from noise
            for ours, theirs in zip(flat(state), flat(expected), strict=True):
                torch.testing.assert_close(ours, theirs)
    if recipe in ("plain", "fgm", "vat", "freelb"):  # no doubled batch that is split for it
        assert calls.count(with_keep) == calls.count(without)


@quiet
@pytest.mark.parametrize("recipe", ["rdrop", "rat", "fraternal"])
def test_a_model_that_no_list_knows(recipe):
    model = OwnLanguageModel(p=0.0)
    regularization = Regularization(parse(recipe), model, keep=["carried"])
    carried = None
    for chunk in chunks():
        regularization.backward({**chunk, "carried": carried})
        expected = model(**chunk, carried=carried)["carried"]
        carried = regularization.kept["carried"]
        assert isinstance(carried, Carried)
        torch.testing.assert_close(tuple(carried), tuple(part.detach() for part in expected))
        assert not carried.h.requires_grad


def test_losses_keeps_too_and_each_batch_has_its_own():
    regularization = Regularization(rdrop(), language_model(), keep=["state", "logits"])
    seen = []
    for chunk in chunks(2):
        regularization.losses(chunk)
        seen.append(regularization.kept["logits"])
    assert seen[0].shape == (4, 6, 20)
    assert not torch.equal(*seen)


def test_an_output_that_is_not_there_is_named_in_one_line():
    with pytest.raises(ValueError, match=r"BertForSequenceClassification returned no 'state'") as error:
        Regularization(plain(), tiny_model(), keep=["state"]).backward(tiny_batch())
    assert "\n" not in str(error.value)


def test_nothing_is_left_on_the_model():
    model = language_model()
    before = len(model._forward_hooks)
    regularization = Regularization(plain(), model, keep=["state"])
    assert len(model._forward_hooks) == before + 1
    regularization.close()
    assert len(model._forward_hooks) == before
    assert Regularization(plain(), model).kept == {}
