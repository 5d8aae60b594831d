"""Where a perturbation enters a model: its word embeddings, or a mask on its last layer's input or recurrent state.

A site is opened once on a model, by one persistent hook, and read by that hook in every forward: no weight is ever
edited, nothing is registered or removed between steps (torch.compile ignores hooks that come and go), and frozen
embeddings (LoRA) and tied embeddings work, since what is differentiated is a leaf of ours.
"""

from hf_rat.regularizers.embedding_site import EMBEDDINGS, EmbeddingSite
from hf_rat.regularizers.logits_site import LOGITS_INPUT, LogitsInputSite
from hf_rat.regularizers.recurrent_site import RECURRENT, RecurrentSite

Site = EmbeddingSite | LogitsInputSite | RecurrentSite

SITES: dict[str, type[EmbeddingSite] | type[LogitsInputSite] | type[RecurrentSite]] = {
    EMBEDDINGS: EmbeddingSite,
    LOGITS_INPUT: LogitsInputSite,
    RECURRENT: RecurrentSite,
}
