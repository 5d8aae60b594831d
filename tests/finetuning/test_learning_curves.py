"""The picture of the learning curves: what it holds, read back from the axes, and when there is none."""

import matplotlib.figure
import pytest

from hf_rat.finetuning.learning_curves import draw_learning_curves

HISTORY = [
    {"step": 2, "loss": 3.0, "loss_task": 1.0, "loss_consistency": 2.0},
    {"step": 2, "eval_loss": 0.9, "eval_f1": 0.5},
    {"step": 4, "loss": 2.0, "loss_task": 0.5, "loss_consistency": 1.5},
    {"step": 4, "eval_loss": 0.8, "eval_f1": 0.6},
    {"step": 4, "eval_loss": 0.1, "eval_f1": 1.0},  # the training split, scored at the end under the same name
    {"step": 4, "train_loss": 2.5},
]


@pytest.fixture
def drawn(monkeypatch):
    """The lines of each panel: label -> points."""
    panels = {}
    save = matplotlib.figure.Figure.savefig

    def keep(figure, *args, **options):
        for axis in figure.axes:
            lines = {line.get_label(): list(map(tuple, line.get_xydata().tolist())) for line in axis.get_lines()}
            panels[axis.get_title()] = lines
        return save(figure, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return panels


def test_every_part_of_the_loss_and_the_score_against_steps(tmp_path, drawn):
    path = tmp_path / "curves.png"
    plain = [{"step": 2, "loss": 1.1}, {"step": 4, "loss": 0.4}, {"step": 4, "eval_loss": 1.0, "eval_f1": 0.4}]
    assert draw_learning_curves(path, {"plain": plain, "rdrop": HISTORY}, "f1")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert drawn == {
        "training loss": {
            "plain: the sum": [(2, 1.1), (4, 0.4)],
            "rdrop: the sum": [(2, 3.0), (4, 2.0)],
            "rdrop: consistency": [(2, 2.0), (4, 1.5)],
            "rdrop: task": [(2, 1.0), (4, 0.5)],
        },
        "f1": {"plain": [(4, 0.4)], "rdrop": [(2, 0.5), (4, 0.6)]},
        "evaluation loss (task loss alone)": {"plain": [(4, 1.0)], "rdrop": [(2, 0.9), (4, 0.8)]},
    }


def test_a_run_without_evaluations_has_the_loss_alone(tmp_path, drawn):
    assert draw_learning_curves(tmp_path / "curves.png", {"plain": [{"step": 5, "loss": 1.0}]}, "accuracy")
    assert drawn == {"training loss": {"plain: the sum": [(5, 1.0)]}}


def test_a_run_that_logged_nothing_has_no_picture(tmp_path):
    assert not draw_learning_curves(tmp_path / "curves.png", {"plain": [{"step": 5, "train_loss": 1.0}]}, "accuracy")
    assert not (tmp_path / "curves.png").exists()
