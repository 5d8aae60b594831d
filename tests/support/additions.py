"""What somebody adds to the package: a regularizer, a divergence, a site, a companion model, and the files of each.

An addition is a dict from the files that it touches, new or not, to how each is edited. CONTRIBUTING.md promises their
numbers, census.py counts them, and test_additions.py makes them in a copy of the package and uses them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

Edit = Callable[[str], str]


def whole(text: str) -> Edit:
    """A new file."""

    def edit(before: str) -> str:
        assert not before, "the file is there already"
        return text.lstrip("\n")

    return edit


def below(*pairs: tuple[str, str]) -> Edit:
    """A file into which text is put: below a line that is there, or at the end where that line is empty."""

    def edit(before: str) -> str:
        for line, text in pairs:
            if line:
                assert before.count(f"\n{line}\n") == 1, f"{line!r} stands there {before.count(line)} times"
                before = before.replace(f"\n{line}\n", f"\n{line}\n{text}\n")
            else:
                before += f"\n\n{text.strip()}\n"
        return before

    return edit


def row(name: str) -> Edit:
    """One more row in the table of methods, which begins with "| method |"."""

    def edit(before: str) -> str:
        head = re.search(r"^\| method \|.*\n(\|[-| :]+\|\n)", before, re.MULTILINE)
        assert head, "there is no table of methods"
        columns = head[1].count("|") - 1
        return before.replace(head[0], f"{head[0]}| `{name}` |" + " a cell |" * (columns - 1) + "\n")

    return edit


REGULARIZER = {
    "hf_rat/regularizers/recipes.py": below(
        ('    "vat",', '    "wobble",'),
        (
            "",
            '''
@recipe
def wobble(epsilon: float = 2.0, alpha: float = 1.0, divergence: str = "mae", site: str = EMBEDDINGS,
           begin: int = 0, warmup: int = 0) -> Term:
    """Wobble: the clean prediction must survive noise.

    L = L(x) + alpha MAE(sg p(x), p(x + u)),  u = U(-1, 1) epsilon / sqrt(tokens * dim).

    Relations: r3f in a ball, without a gradient into the clean prediction.
    Cost: 2F + 2B.
    Reference: no paper has it. https://arxiv.org/abs/0000.00000
    Args:
        epsilon: 2.
    """
    return TaskLoss() + alpha * Smoothness(Noise(L2(epsilon), site=site), divergence)
''',
        ),
    ),
    "README.md": row("wobble"),
    "tests/regularizers/test_recipes.py": below(
        (
            "CASES = [",
            """    (
        "wobble(epsilon=2, alpha=3)",
        lambda m, b: wobble(m, b, 2, 3),
    ),""",
        ),
        (
            "",
            """
def wobble(model, batch, epsilon, alpha):
    task, clean = run(model, batch, embed(model, batch))
    _, moved = run(model, batch, embed(model, batch) + noise_like_freelb(batch, 16, epsilon))
    return {"task": task, "smoothness": alpha * F.l1_loss(moved.softmax(-1), clean.softmax(-1).detach())}
""",
        ),
    ),
}

DIVERGENCE = {
    "hf_rat/regularizers/divergences.py": below(
        (
            "",
            '''
@divergence
def hellinger(p: Tensor, q: Tensor) -> Tensor:
    """Squared Hellinger distance `1/2 sum_c (sqrt p_c - sqrt q_c)^2`."""
    return ((p / 2).exp() - (q / 2).exp()).square().sum(-1) / 2
''',
        ),
    ),
    "tests/regularizers/test_divergences.py": below(
        ("BY_SCIPY = {", '    "hellinger": lambda p, q: np.square(np.sqrt(p) - np.sqrt(q)).sum() / 2,')
    ),
}

SITE = {
    "hf_rat/passes/sites/first_dropout.py": whole(
        '''
"""The output of the first dropout of a model."""

from __future__ import annotations

from torch import nn

from hf_rat.passes.sites.module import ModuleSite


class FirstDropoutSite(ModuleSite):
    """The output of the first `torch.nn.Dropout` of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, next(name for name, one in model.named_modules() if isinstance(one, nn.Dropout)))
'''
    ),
    "hf_rat/passes/sites/__init__.py": below(
        (
            "from hf_rat.passes.sites.embeddings import EMBEDDINGS, EmbeddingSite",
            "from hf_rat.passes.sites.first_dropout import FirstDropoutSite",
        ),
        ("    EMBEDDINGS: EmbeddingSite,", '    "first_dropout": FirstDropoutSite,'),
    ),
    "tests/passes/test_first_dropout.py": whole(
        """
from tiny import tiny_batch, tiny_model

from hf_rat import Regularization, fgm


def test_the_output_of_the_first_dropout_moves():
    named = fgm(epsilon=0.5, site="bert.embeddings.dropout")
    batch, losses = tiny_batch(), []
    for regularizer in (fgm(epsilon=0.5, site="first_dropout"), named):
        losses.append(Regularization(regularizer, tiny_model()).backward(batch))
    assert losses[0] == losses[1]
    assert losses[0]["adversarial_task"] > 1.001 * losses[0]["task"]
"""
    ),
}

COMPANION_MODEL = {
    "hf_rat/models/configuration_bag.py": whole(
        '''
"""Configuration of a bag of words. It travels with a checkpoint."""

from __future__ import annotations

from .configuration_words import WordConfig


class BagConfig(WordConfig):
    """The mean of the words' vectors, for `BagForSequenceClassification`."""

    model_type = "hf_rat_bag"
'''
    ),
    "hf_rat/models/modeling_bag.py": whole(
        '''
"""The mean of the words' vectors, dropout, a linear layer. It travels with a checkpoint beside flat siblings."""

from __future__ import annotations

from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import can_return_tuple

from .configuration_bag import BagConfig
from .modeling_words import WordModel, word_embedding


class BagForSequenceClassification(WordModel):
    config_class = BagConfig

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = word_embedding(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.embedding_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None, **kwargs):
        x, valid = self.embed(input_ids, attention_mask, inputs_embeds)
        mean = (x * valid.unsqueeze(-1)).sum(1) / valid.sum(1, keepdim=True).clamp(min=1)
        logits = self.classifier(self.dropout(mean))
        return SequenceClassifierOutput(loss=self.loss(logits, labels), logits=logits)
'''
    ),
    "hf_rat/models/__init__.py": below(
        (
            "from .configuration_han import HANConfig",
            "from .configuration_bag import BagConfig\nfrom .modeling_bag import BagForSequenceClassification",
        ),
        (
            "COMPANIONS = {",
            '    "bag": Companion(BagConfig, {AutoModelForSequenceClassification: BagForSequenceClassification}),',
        ),
    ),
    "tests/models/test_modeling_bag.py": whole(
        """
import torch
from transformers import AutoModelForSequenceClassification

from hf_rat.models import BagConfig


def test_the_order_of_words_changes_nothing():
    model = AutoModelForSequenceClassification.from_config(BagConfig(vocab_size=9, embedding_size=4)).eval()
    words = torch.tensor([[3, 5, 8]])
    torch.testing.assert_close(model(words).logits, model(words.flip(1)).logits)
"""
    ),
}

ADDITIONS: dict[str, dict[str, Edit]] = {
    "regularizer": REGULARIZER,
    "divergence": DIVERGENCE,
    "site": SITE,
    "companion model": COMPANION_MODEL,
}


def add(root: Path, files: Mapping[str, Edit]) -> None:
    """Make an addition in a checkout of the project."""
    for name, edit in files.items():
        path = root / name
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(edit(before), encoding="utf-8")


def count(files: Mapping[str, Edit]) -> str:
    """How many files an addition touches, tests apart."""
    tests = sum(name.startswith("tests/") for name in files)
    return f"{len(files) - tests} and {tests} of tests"
