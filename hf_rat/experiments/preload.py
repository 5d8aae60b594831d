"""Imported once, by the process that those of runs are forked off: what each of them would otherwise do for itself.

Nothing here computes with torch: threads of a computation do not survive a fork, nor does a GPU that was looked at.
"""

import gc

import matplotlib.backends.backend_agg  # noqa: F401 (the learning curves)
import matplotlib.figure  # noqa: F401
import torch.utils.data  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import hf_rat.finetuning.run  # noqa: F401

get_checkpoint_conversion_mapping("")  # makes the table of all models, which saving one asks for
gc.freeze()  # what is imported is no garbage: no process looks through it
