"""Study dropout masks of a network of hf-rat mnist: how right its sub-networks are, and which units are attacked.

hf-rat masks RUN [RUN ...] reads the folders of finished runs. For each it writes masks.json and two pictures into
--output_dir: accuracies of sub-networks under random and under adversarial masks, the terms of fraternal,
expectation-linear and adversarial dropout, and the mean adversarial mask of each checkpoint in the folder. A second
call goes on where the first one was interrupted.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hf_rat.cli._commands import Parser
from hf_rat.data.generated_digits import generated_digits
from hf_rat.data.idx_files import Images, read_mnist
from hf_rat.data.pixel_sequences import pixel_sequences
from hf_rat.engine.denormals import without_denormals
from hf_rat.engine.sub_networks import SubNetworks, in_batches
from hf_rat.experiments.mask_pictures import picture_of_accuracies, picture_of_mean_masks
from hf_rat.experiments.mask_study import FILE, Settings, Study, spread
from hf_rat.finetuning.blame import reported
from hf_rat.finetuning.checkpoints import checkpoint_problem, checkpoints
from hf_rat.finetuning.flags import DATA_DIR_VARIABLE
from hf_rat.finetuning.processes import say
from hf_rat.finetuning.progress_bars import progress_bars
from hf_rat.finetuning.summary import table
from hf_rat.models import RNNForSequenceClassification

_MADE = 1000  # made-up digits, where there is no data


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status, 2 after an error of the user's."""
    return reported(run, argv)


def run(argv: Sequence[str]) -> None:
    """Make the studies that the flags name.

    Raises:
        ValueError: a folder has no network of ours, an image file is not whole, or a study there has other settings.
    """
    parser = Parser(prog="hf-rat masks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run of hf-rat mnist")
    parser.add_argument("--data_dir", default=os.environ.get(DATA_DIR_VARIABLE) or None, help="as of hf-rat mnist")
    parser.add_argument("--images", type=int, default=2000, help="test images that are looked at [2000]")
    parser.add_argument("--masks", type=int, default=500, help="sub-networks of a kind, an even number [500]")
    parser.add_argument("--draws", type=int, default=50, help="searches of each image's own worst mask [50]")
    parser.add_argument("--rate", type=float, default=0.03, help="share of units that are off [0.03]")
    parser.add_argument("--steps", type=int, default=2, help="of the search of adversarial masks [2]")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers [0]")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the studies, one below it for each")
    asked = parser.parse_args(argv)
    for name, least in (("images", 1), ("masks", 4), ("draws", 1), ("steps", 1), ("seed", 0)):
        if getattr(asked, name) < least:
            raise ValueError(f"--{name} {getattr(asked, name)}: at least {least} is needed")
    if asked.masks % 2:
        raise ValueError(f"--masks {asked.masks}: an even number is needed, for they are compared two by two")
    if not 0 < asked.rate < 1:
        raise ValueError(f"--rate {asked.rate}: a share between 0 and 1 is needed")
    images = _read(asked.data_dir)
    count = min(asked.images, len(images.labels))
    if asked.masks > count:
        raise ValueError(f"--masks {asked.masks}: each is the worst for another image, and there are {count}")
    with progress_bars(shown=False), without_denormals():  # each checkpoint would draw one
        networks = {folder: _load(folder) for folder in asked.runs}  # a wrong folder is told before any is studied
        for folder, model in networks.items():
            name = "-".join(folder.parts[-2:]) if len(networks) > 1 else ""
            settings = Settings(str(folder), count, asked.masks, asked.draws, asked.rate, asked.steps, asked.seed)
            _study(settings, folder, model, images.part(0, count), asked.output_dir / name)


def _study(settings: Settings, folder: Path, model: Any, images: Images, output: Path) -> None:
    """One network, and the checkpoints beside it."""
    study = Study(settings, output)
    side, order = model.config.images["side"], model.config.images["permutation_seed"]
    inputs = {"inputs_embeds": torch.from_numpy(pixel_sequences(images.pixels, side, order))}
    batches = in_batches(inputs, torch.from_numpy(images.labels))

    def network_of(path: Path) -> SubNetworks:
        return SubNetworks(_load(path), batches)

    for path in tqdm(checkpoints(folder)[::-1], desc="checkpoints", leave=False):
        study.add_mean_mask(path.name, partial(network_of, path))
    study.add_mean_mask("at the end", lambda: SubNetworks(model, batches))
    network = SubNetworks(model, batches)
    study.study_network(network)
    network.close()
    (output / "accuracies.png").write_bytes(picture_of_accuracies(study.found))
    (output / "mean_masks.png").write_bytes(picture_of_mean_masks(study.found["mean_masks"]))
    say(f"\n{folder}: {settings.images} images, accuracy {study.found['accuracy']:.4f}")
    rows = [[name, f"{mean:.4f}", f"{deviation:.4f}"] for name, (mean, deviation) in spread(study.found).items()]
    say(table([["sub-networks", "mean accuracy", "deviation"], *rows]))
    terms = study.found["terms"]
    say(f"FD/4 {terms['fd'] / 4:.3g} <= EL {terms['el']:.3g}: {terms['quarter_fd_at_most_el']}")
    for radius, holds in terms["el_at_most_add"].items():
        off = terms["units_off"][radius]
        say(f"EL {terms['el']:.3g} <= AdD {terms[radius]:.3g} with {off} units off: {holds}")
    say(f"Written to {output}: accuracies.png, {FILE}, mean_masks.png")


def _load(folder: Path) -> Any:
    """The network in a folder.

    Raises:
        ValueError: there is none, or none that reads pixels.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: it is no folder of a finished run of hf-rat mnist")
    problem = checkpoint_problem(folder) if (folder / "trainer_state.json").is_file() else None
    if problem is not None:
        raise ValueError(f"{folder}: {problem}")
    model = RNNForSequenceClassification.from_pretrained(folder)
    if not isinstance(getattr(model.config, "images", None), dict):
        raise ValueError(f"{folder} has a network that hf-rat mnist has not trained: its config.json has no images")
    return model


def _read(data_dir: str | None) -> Images:
    if data_dir is None:
        say(f"No --data_dir: {_MADE} made-up digits")
        return generated_digits(_MADE, seed=1)
    return read_mnist(Path(data_dir) / "mnist", "test")
