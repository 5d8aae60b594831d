"""Regularized fine-tuning for Hugging Face models: one flag, one import.

The names of `hf_rat.public` are found here at their first use, so that `hf-rat --help` imports neither torch nor
Transformers.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hf_rat.public import *  # noqa: F403
else:
    # A type checker that saw these would believe in every name.

    def __getattr__(name):
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        public = import_module("hf_rat.public")
        if name == "__all__":
            return ["__version__", *sorted(name for name in vars(public) if not name.startswith("_"))]
        try:
            return getattr(public, name)
        except AttributeError:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None

    def __dir__():
        return sorted({*globals(), *__getattr__("__all__")})

    if "transformers" in sys.modules:
        import_module("hf_rat.models")  # costs nothing now, and the Auto classes find the companion models
