"""The sites that a regularizer perturbs, opened on a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from hf_rat.engine.requirements import warn_of_no_flips
from hf_rat.passes.sites import TOP, EmbeddingSite, ModuleSite, Site, open_site
from hf_rat.passes.sites.geometry import Geometry
from hf_rat.regularizers.terms import Term, all_terms
from hf_rat.regularizers.weight_terms import Distance, NoisyStart


class OpenSites:
    """Opens the sites of a regularizer on a model.

    Args:
        regularizer: the term.
        model: without wrappers.

    Attributes:
        names: of the sites.

    Raises:
        ValueError: the model has no such site, or the word embeddings go by two names.
    """

    def __init__(self, regularizer: Term, model: nn.Module) -> None:
        self._regularizer, self._model = regularizer, model
        perturbations = [term.perturb for term in all_terms(regularizer) if term.perturb is not None]
        about = {term.site for term in all_terms(regularizer) if isinstance(term, (Distance, NoisyStart))}
        self.names = sorted({at.site for at in perturbations if at.site and at.site != TOP} | about)
        self._sites: dict[str, Site] = {}
        self._probed: set[str] = set()
        for name in self.names:
            self.open(name)
        embeddings = [site.module for site in self._sites.values() if isinstance(site, EmbeddingSite)]
        for name, site in self._sites.items():
            if isinstance(site, ModuleSite) and site.module in embeddings:  # which a look-up stands for
                self.close()
                raise ValueError(f"{regularizer!r} perturbs the word embeddings as {name} too; give both one site")

    def open(self, name: str) -> Site:
        """The site of that name."""
        if name not in self._sites:
            self._sites[name] = open_site(name, self._model)
        return self._sites[name]

    def probe(self, geometry: Callable[[str], Geometry]) -> None:
        """Let each site look at the model, before a compiled forward is traced."""
        for name in self.names:
            found = geometry(name)
            if name not in self._probed:  # how wide a mask is does not change
                self._probed.add(name)
                warn_of_no_flips(self._regularizer, name, found)

    @property
    def embedding_norms(self) -> dict[str, float | None]:
        """Site -> mean norm of its embeddings, in which epsilon may be measured."""
        return {name: site.embedding_norm for name, site in self._sites.items() if isinstance(site, EmbeddingSite)}

    def load_embedding_norms(self, norms: Mapping[str, float | None]) -> None:
        """Go on with these, as the run began."""
        for name, norm in norms.items():
            if isinstance(site := self._sites.get(name), EmbeddingSite):
                site.embedding_norm = norm

    def close(self) -> None:
        """Take the hooks off the model."""
        for site in self._sites.values():
            site.close()
        self._sites.clear()
