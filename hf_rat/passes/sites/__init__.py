"""Where a perturbation enters a model: the output of its word embeddings or of another module, a mask on its last
layer's input or recurrent state, or its weights.

A site is opened once on a model, by one persistent hook, and read by that hook in every forward (the weights need
none): no weight is ever edited, nothing is registered or removed between steps (torch.compile ignores hooks that come
and go), and frozen embeddings (LoRA) and tied embeddings work, since what is differentiated is a leaf of ours.
"""

from collections.abc import Callable

from torch import nn

from hf_rat.passes.sites.base import Site
from hf_rat.passes.sites.decoder_embeddings import DECODER_EMBEDDINGS, DecoderEmbeddingSite
from hf_rat.passes.sites.embeddings import EMBEDDINGS, EmbeddingSite
from hf_rat.passes.sites.logits import INPUT_OF, LOGITS_INPUT, LogitsInputSite
from hf_rat.passes.sites.module import ModuleSite
from hf_rat.passes.sites.recurrent import RECURRENT, RecurrentSite
from hf_rat.passes.sites.sentence_transformers import ColumnsSite
from hf_rat.passes.sites.weights import MIXED, WEIGHTS, MixedWeightsSite, WeightsSite, is_weights

MASKS = (LOGITS_INPUT, RECURRENT)
"""The sites where a perturbation changes a dropout mask; at the others it is added to an output."""

TOP = "top layers"
"""What enters the top of the model, where passes run nothing else: see cut.py. It is no site of whole passes."""

SITES: dict[str, Callable[[nn.Module], Site]] = {
    EMBEDDINGS: EmbeddingSite,
    DECODER_EMBEDDINGS: DecoderEmbeddingSite,
    LOGITS_INPUT: LogitsInputSite,
    RECURRENT: RecurrentSite,
    WEIGHTS: WeightsSite,
    MIXED: MixedWeightsSite,
}


def open_site(name: str, model: nn.Module) -> Site:
    """The site of that name on an unwrapped model.

    That is a key of SITES, "weights:PATTERN", "input of LAYER", or the output of a module.

    Raises:
        ValueError: the model has no such place; the message says why.
    """
    if name == EMBEDDINGS and hasattr(model, "transformers_model"):  # a SentenceTransformer
        return ColumnsSite(model)
    if name.startswith(INPUT_OF):
        return LogitsInputSite(model, name.removeprefix(INPUT_OF))
    if is_weights(name):
        kind, _, pattern = name.partition(":")
        return (MixedWeightsSite if kind == MIXED else WeightsSite)(model, pattern or "*")
    return SITES[name](model) if name in SITES else ModuleSite(model, name)
