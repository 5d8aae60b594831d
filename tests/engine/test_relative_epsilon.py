"""unit="relative": epsilon times the length of the example's own tensor at the site, wherever that is."""

import inspect

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from test_models_that_pad import longformer
from test_repeated_embeddings import Siamese, pairs
from tiny import assert_same_gradients, gradients, tiny_batch, tiny_model
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMultipleChoice
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_rat import Regularization, fgm, parse, rat
from hf_rat.passes.sites import LOGITS_INPUT
from hf_rat.regularizers import L2, RECIPES, Adversarial, Gradient, TaskLoss

pytestmark = pytest.mark.filterwarnings("ignore:.* has no dropout")

MEASURED = [name for name, build in RECIPES.items() if "unit" in inspect.signature(build).parameters]


class Scaled(nn.Embedding):
    """Does more than look up: only a forward tells what it puts out."""

    def forward(self, input_ids):
        return 3.0 * super().forward(input_ids) + 0.1


class Own(nn.Module):
    """A model that no list knows."""

    def __init__(self, embedding=nn.Embedding):
        super().__init__()
        torch.manual_seed(1)
        self.words = embedding(60, 6)
        self.hidden, self.output = nn.Linear(6, 8), nn.Linear(8, 3)

    def get_input_embeddings(self):
        return self.words

    def after(self, x, attention_mask, labels):
        mask = attention_mask.unsqueeze(-1)
        logits = self.output((self.hidden(x).tanh() * mask).sum(1) / mask.sum(1))
        return SequenceClassifierOutput(loss=F.cross_entropy(logits, labels), logits=logits)

    def forward(self, input_ids, attention_mask, labels=None):
        return self.after(self.words(input_ids), attention_mask, labels)


def lengths(x, mask=None):
    """Of each example's tensor, by hand."""
    kept = x if mask is None else x * mask.unsqueeze(-1)
    return kept.detach().square().flatten(1).sum(1).sqrt().view(-1, *[1] * (x.dim() - 1))


@pytest.mark.parametrize("embedding", [nn.Embedding, Scaled])
@pytest.mark.parametrize("expression", ["fgm", "rat", "fgsm", "pgd"])
def test_it_is_the_method_by_hand(expression, embedding):
    model, batch = Own(embedding).train(), tiny_batch()
    mask = batch["attention_mask"]
    x = model.words(batch["input_ids"])
    own = lengths(x, mask)
    clean = model.after(x, mask, batch["labels"]).loss
    if expression == "pgd":
        settings, move = "epsilon=0.3, step=0.2, steps=2, ", torch.zeros_like(x)
        for _ in range(2):
            leaf = move.clone().requires_grad_()
            (g,) = torch.autograd.grad(model.after(x.detach() + leaf, mask, batch["labels"]).loss, leaf)
            move = move + 0.2 * own * g / lengths(g)
            move = move * (0.3 * own / lengths(move)).clamp(max=1.0)
    else:
        (g,) = torch.autograd.grad(clean, x, retain_graph=True)
        entries = 6 * mask.sum(1).view(-1, 1, 1)
        settings = "epsilon=0.3, "
        move = 0.3 * (own / entries.sqrt() * g.sign() if expression == "fgsm" else own * g / lengths(g))
    moved = model.after(x + move, mask, batch["labels"]).loss
    (clean + moved).backward()
    ours = Own(embedding).train()
    named = Regularization(parse(f"{expression}({settings}unit='relative')"), ours).backward(batch)
    assert float(named["task"]) == pytest.approx(clean.item(), rel=1e-5)
    assert float(named["adversarial_task"]) == pytest.approx(moved.item(), rel=1e-5)
    assert moved > 1.02 * clean
    assert_same_gradients(gradients(ours), gradients(model))


@pytest.mark.parametrize("recipe", MEASURED)
def test_of_one_text_it_is_the_absolute_one_times_its_length(recipe):
    """Every size that a recipe has, for every recipe that measures one."""
    batch = {name: value[1:2] for name, value in tiny_batch().items()}
    known = inspect.signature(RECIPES[recipe]).parameters
    sizes = {name: size for name, size in (("epsilon", 0.3), ("step", 0.1), ("start", 0.2)) if name in known}
    words = tiny_model().get_input_embeddings()(batch["input_ids"])
    length = float(lengths(words, batch["attention_mask"]))
    if recipe in ("fgsm", "smart", "r3f"):  # boxes
        length /= float(16 * batch["attention_mask"].sum()) ** 0.5

    def losses(unit, factor):
        torch.manual_seed(3)
        model = tiny_model(dropout=0.1)
        term = RECIPES[recipe](**{name: factor * size for name, size in sizes.items()}, unit=unit)
        return Regularization(term, model).backward(batch), gradients(model)

    (ours, mine), (theirs, other) = losses("relative", 1.0), losses("absolute", length)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert_same_gradients(mine, other, 1e-3)
    assert any(abs(float(ours[n]) - float(losses("absolute", 1.0)[0][n])) > 1e-4 for n in ours), "the unit matters"


# -- wherever the site is --------------------------------------------------------------------------------------------


class Heard:
    """What a module puts out before the site's hook and after it, in passes with a graph that are moved."""

    def __init__(self, model, module, expression, **settings):
        module.register_forward_hook(self._into("before"))
        self.regularization = Regularization(parse(expression), model, **settings)
        module.register_forward_hook(self._into("after"))

    def _into(self, name):
        def hear(module, args, output):
            if torch.is_grad_enabled():
                getattr(self, name).append((output[0] if isinstance(output, tuple) else output).detach())

        return hear

    def run(self, batch):
        self.before, self.after = [], []
        self.regularization.backward(batch)
        moved = [(b, a) for b, a in zip(self.before, self.after, strict=True) if (a - b).abs().max() > 1e-6]
        self.before, self.after = [list(outputs) for outputs in zip(*moved, strict=True)]
        return self


def bart():
    return tiny_model("bart", scale_embedding=True)


def with_lora():
    torch.manual_seed(0)
    return get_peft_model(tiny_model(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))


def with_a_trained_copy():
    torch.manual_seed(0)
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], modules_to_save=["word_embeddings"])
    return get_peft_model(tiny_model(), config)


def choices():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForMultipleChoice(config).train()


def batch_of_choices():
    flat = tiny_batch(size=6)
    stacked = {name: flat[name].view(3, 2, -1) for name in ("input_ids", "attention_mask")}
    return {**stacked, "labels": torch.tensor([0, 1, 1])}


WORDS = "get_input_embeddings"
SITES = {
    "bert": (tiny_model, tiny_batch, WORDS, "embeddings"),
    "a module of its own": (lambda: Own(Scaled).train(), tiny_batch, WORDS, "embeddings"),
    "frozen, with LoRA": (with_lora, tiny_batch, WORDS, "embeddings"),
    "a copy that LoRA trains": (with_a_trained_copy, tiny_batch, WORDS, "embeddings"),
    "scaled by BART": (bart, tiny_batch, "model.encoder.embed_tokens", "embeddings"),
    "time first": (lambda: tiny_model("xlnet"), tiny_batch, WORDS, "embeddings"),
    "padded by the model": (longformer, tiny_batch, WORDS, "embeddings"),
    "choices": (choices, batch_of_choices, WORDS, "embeddings"),
    "two texts": (lambda: Siamese().train(), pairs, WORDS, "embeddings"),
    "a layer": (tiny_model, tiny_batch, "bert.encoder.layer.0", "bert.encoder.layer.0"),
}


@pytest.mark.parametrize("case", SITES)
def test_each_example_moves_by_its_share_of_its_own_length(case):
    make, make_batch, where, site = SITES[case]
    model, batch = make(), make_batch()
    module = model.get_input_embeddings() if where == WORDS else model.get_submodule(where)
    heard = Heard(model, module, f"fgm(epsilon=0.3, unit='relative', site={site!r})", length_buckets="off").run(batch)
    size = len(batch["labels"])
    assert len(heard.after) == (2 if case == "two texts" else 1)
    mask = batch.get("attention_mask")

    def norms(outputs, of_tokens=False):
        """(batch,), over all that an example has."""
        rows = []
        for output in outputs:
            output = output.transpose(0, 1) if case == "time first" else output
            if of_tokens and mask is not None:
                output = output[:, : mask.shape[-1]] * mask.flatten(0, -2).unsqueeze(-1)
            rows.append(output.reshape(size, -1))
        return torch.cat(rows, 1).norm(dim=1)

    own = norms(heard.before, of_tokens=True)
    assert own.min() > 0.1
    # XLNet reads its padding, which then moves too.
    moves = norms([after - before for before, after in zip(heard.before, heard.after, strict=True)])
    torch.testing.assert_close(moves, 0.3 * own, rtol=1e-3, atol=1e-5)


def test_padding_does_not_count():
    def losses(extra, side):
        batch, pad = tiny_batch(), (0, extra) if side == "right" else (extra, 0)
        more = {n: F.pad(batch[n], pad, value=v) for n, v in (("input_ids", 0), ("attention_mask", 0))}
        model = Own().train()
        named = Regularization(fgm(0.4, unit="relative"), model, length_buckets="off").backward({**batch, **more})
        return named, gradients(model)

    (expected, slopes), *others = losses(0, "right"), losses(9, "right"), losses(5, "left")
    for named, other in others:
        torch.testing.assert_close(named, expected)
        assert_same_gradients(other, slopes)


def test_what_stands_on_padding_may_be_anything():
    model, batch = Own().train(), tiny_batch()
    with torch.no_grad():
        model.words.weight[tiny.PAD] = float("nan")
    site = Regularization(fgm(0.4, unit="relative"), model)._sites.open("embeddings")
    length = site.geometry(batch).own_length
    assert torch.isfinite(length).all()
    assert (length > 0).all()


def test_longer_word_vectors_are_moved_by_as_much_more():
    def moves(factor):
        model = Own().train()
        with torch.no_grad():
            model.words.weight.mul_(factor)
            model.hidden.weight.div_(factor)  # the same function of the words, and the same direction
        heard = Heard(model, model.words, "fgm(epsilon=0.3, unit='relative')", length_buckets="off").run(tiny_batch())
        return heard.after[0] - heard.before[0]

    torch.testing.assert_close(moves(7.0), 7.0 * moves(1.0), rtol=1e-4, atol=1e-5)


def test_the_order_of_the_examples_does_not_matter():
    def moves(order):
        model, batch = Own().train(), {name: value[order] for name, value in tiny_batch().items()}
        heard = Heard(model, model.words, "fgm(epsilon=0.3, unit='relative')", length_buckets="off").run(batch)
        return heard.after[0] - heard.before[0]

    order = [2, 0, 3, 1]
    torch.testing.assert_close(moves(order), moves([0, 1, 2, 3])[order])


@pytest.mark.parametrize("expression", ["fgm", "rat", "freelb(start=0.2, step=0.2)", "vat(start=0.5)", "r3f"])
def test_length_buckets_and_lean_memory_change_nothing(expression, monkeypatch):
    monkeypatch.setattr("hf_rat.engine.regularization.overhead", lambda model: 0.0)  # a bucket for each length
    name, _, rest = expression.partition("(")
    text = f"{name}(epsilon=0.4, unit='relative'{', ' + rest if rest else ')'}"

    def losses(**settings):
        torch.manual_seed(3)
        model = tiny_model()
        regularization = Regularization(parse(text), model, **settings)
        return regularization.backward(tiny_batch(size=8)), gradients(model), regularization.why_not_bucketed

    expected, slopes, _ = losses(length_buckets="off")
    split, mine, because = losses(length_buckets="auto")
    assert because is None
    torch.testing.assert_close(split, expected, rtol=1e-4, atol=1e-6)
    assert_same_gradients(mine, slopes, 1e-3)
    lean, mine, _ = losses(length_buckets="off", memory="lean")
    torch.testing.assert_close(lean, expected, rtol=1e-4, atol=1e-6)
    assert_same_gradients(mine, slopes, 1e-3)


def test_the_length_is_that_of_now():
    """Unlike unit="embedding", it follows the weights."""
    model, batch = Own().train(), tiny_batch()
    heard = Heard(model, model.words, "fgm(epsilon=0.3, unit='relative')", length_buckets="off").run(batch)
    with torch.no_grad():
        model.words.weight.mul_(0.5)
    heard.run(batch)
    real = batch["attention_mask"].unsqueeze(-1)
    moved, clean = (heard.after[0] - heard.before[0]) * real, heard.before[0] * real
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), 0.3 * clean.flatten(1).norm(dim=1), rtol=1e-4, atol=0)


def test_a_text_without_a_word_or_with_an_infinite_vector_does_not_move():
    model, batch = Own().train(), tiny_batch()
    with torch.no_grad():
        model.words.weight[batch["input_ids"][0, 1]] = float("inf")
    batch["attention_mask"][1] = 0
    site = Regularization(rat(unit="relative"), model)._sites.open("embeddings")
    length = site.geometry(batch).own_length.flatten()
    assert length[0] == length[1] == 0
    assert (length[2:] > 0).all()


# -- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe", [name for name in MEASURED if "scope" in inspect.signature(RECIPES[name]).parameters]
)
def test_a_table_has_no_length_of_an_examples_own(recipe):
    with pytest.raises(ValueError, match=r'unit="relative" measures each example.*scope="example"') as error:
        RECIPES[recipe](scope="table", unit="relative")
    assert "\n" not in str(error.value)


def test_a_mask_has_no_length():
    term = TaskLoss() + Adversarial(Gradient(L2(0.1, unit="relative"), site=LOGITS_INPUT))
    with pytest.raises(ValueError, match="this site changes a mask") as error:
        Regularization(term, tiny_model()).backward(tiny_batch())
    assert "\n" not in str(error.value)
