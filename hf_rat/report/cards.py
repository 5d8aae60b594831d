"""The pictures of a run on its model card."""

from __future__ import annotations

from pathlib import Path

from hf_rat.data.whole_files import write_whole
from hf_rat.trainer.model_card import with_pictures

CARD = "README.md"


def show_pictures(folder: Path) -> bool:
    """Let a run's card show every PNG in its folder, by its name, so that both can be moved or uploaded together.

    Args:
        folder: of the run.

    Returns:
        Whether there was one that it had not shown.

    Raises:
        ValueError: there is no card, or it cannot be written.
    """
    path = folder / CARD
    try:
        text = path.read_text(encoding="utf-8")
        if (told := with_pictures(text, folder)) == text:
            return False
        write_whole(path, told.encode())
    except OSError as error:
        raise ValueError(f"--card: {path} cannot be read or written ({error.strerror})") from None
    return True
