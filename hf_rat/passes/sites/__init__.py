"""Where a perturbation enters a model: the output of its word embeddings or of another module, or a mask on its last
layer's input or recurrent state.

A site is opened once on a model, by one persistent hook, and read by that hook in every forward: no weight is ever
edited, nothing is registered or removed between steps (torch.compile ignores hooks that come and go), and frozen
embeddings (LoRA) and tied embeddings work, since what is differentiated is a leaf of ours.
"""

from collections.abc import Callable

from torch import nn

from hf_rat.passes.sites.base import Site
from hf_rat.passes.sites.decoder_embeddings import DECODER_EMBEDDINGS, DecoderEmbeddingSite
from hf_rat.passes.sites.embeddings import EMBEDDINGS, EmbeddingSite
from hf_rat.passes.sites.logits import LOGITS_INPUT, LogitsInputSite
from hf_rat.passes.sites.module import ModuleSite
from hf_rat.passes.sites.recurrent import RECURRENT, RecurrentSite
from hf_rat.passes.sites.sentence_transformers import ColumnsSite

MASKS = (LOGITS_INPUT, RECURRENT)
"""The sites where a perturbation changes a dropout mask; at the others it is added to an output."""

SITES: dict[str, Callable[[nn.Module], Site]] = {
    EMBEDDINGS: EmbeddingSite,
    DECODER_EMBEDDINGS: DecoderEmbeddingSite,
    LOGITS_INPUT: LogitsInputSite,
    RECURRENT: RecurrentSite,
}


def open_site(name: str, model: nn.Module) -> Site:
    """The site of that name on an unwrapped model: a key of SITES, or the output of a module of the model.

    Raises:
        ValueError: the model has no such place; the message says why.
    """
    if name == EMBEDDINGS and hasattr(model, "transformers_model"):  # a SentenceTransformer
        return ColumnsSite(model)
    return SITES[name](model) if name in SITES else ModuleSite(model, name)
