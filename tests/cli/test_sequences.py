"""`hf-rat mnist`, `hf-rat temporal-order` and `hf-rat masks` end to end."""

import gzip
import json
import math
import shlex
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hf_rat.cli import compare, masks, mnist, temporal_order
from hf_rat.cli.main import main
from hf_rat.data.generated_digits import generated_digits
from hf_rat.experiments.records import read
from hf_rat.finetuning.sequence_model import begin_uniformly
from hf_rat.models import RNNForSequenceClassification

ROOT = Path(__file__).resolve().parents[2]
TRAIN, HELD, TEST = 40, 20, 30


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The four files of MNIST, with made-up digits."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "mnist").mkdir()
    for name, count in (("train", TRAIN + HELD), ("t10k", TEST)):
        images = generated_digits(count, seed=count)
        for kind, array in (("images-idx3", images.pixels), ("labels-idx1", images.labels.astype(np.uint8))):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / "mnist" / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return str(folder)


@pytest.fixture
def common(data, tmp_path):
    words = ["--data_dir", data, "--side", "7", "--validation_size", str(HELD), "--hidden_size", "6"]
    words += ["--per_device_train_batch_size", "5", "--num_train_epochs", "2", "--use_cpu", "--no_price"]
    return [*words, "--disable_tqdm", "True", "--output_dir", str(tmp_path / "out")]


WORK = ["--do_train", "--do_eval", "--do_predict"]


def test_a_run_has_the_settings_of_the_paper(common, tmp_path, capsys):
    words = [*common, *WORK, "--logging_steps", "1", "--permutation_seed", "3", "--train_size", "35"]
    assert mnist.main(words) == 0
    out = tmp_path / "out"
    results = json.loads((out / "all_results.json").read_text())
    assert [results[f"{name}_samples"] for name in ("train", "eval", "test")] == [35, HELD, TEST]
    assert {"eval_accuracy", "test_accuracy"} <= results.keys()
    state = torch.load(out / "checkpoint-14" / "optimizer.pt", weights_only=True)
    assert state["param_groups"][0]["alpha"] == 0.5
    arguments = torch.load(out / "training_args.bin", weights_only=False)
    assert arguments.max_grad_norm == 1.0
    # 14 steps: the last quarter, rounded up, are 4, of which each begins lower than the one before.
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    rates = [log["learning_rate"] for log in history if "learning_rate" in log]
    np.testing.assert_allclose(rates, [1e-3] * 11 + [0.75e-3, 0.5e-3, 0.25e-3], rtol=1e-6)
    model = RNNForSequenceClassification.from_pretrained(out)
    assert model.config.images == {"side": 7, "permutation_seed": 3}
    assert "20 images, 7 x 7 pixels" in capsys.readouterr().out
    # Its own scores, from the saved model and the files, by hand.
    images = generated_digits(TEST, seed=TEST)
    pixels = torch.from_numpy(images.pixels.astype(np.float32) / 255)
    pooled = nn.functional.avg_pool2d(pixels.unsqueeze(1), 4).flatten(1)
    order = torch.from_numpy(np.random.RandomState(3).permutation(49))
    with torch.no_grad():
        logits = model.eval()(inputs_embeds=pooled[:, order].unsqueeze(2)).logits
    accuracy = (logits.argmax(1).numpy() == images.labels).mean()
    assert results["test_accuracy"] == pytest.approx(accuracy)
    np.testing.assert_allclose(np.load(out / "test_predictions.npz")["logits"], logits, atol=1e-5)


def test_recurrent_weights_begin_orthogonal_and_the_table_that_nothing_reads_stays(common, tmp_path):
    assert mnist.main([*common, "--do_train"]) == 0
    trained = RNNForSequenceClassification.from_pretrained(tmp_path / "out")
    job = mnist.sequence_job(mnist._MNIST, 1, mnist.PixelArguments(hidden_size=6), forget_bias=1.0)
    mnist.begin_orthogonally(job.model)
    layer = job.model.rnn.layers[0]
    for gate in layer.weight_hh_l0.split(6):
        torch.testing.assert_close(gate @ gate.T, torch.eye(6))
    assert (layer.bias_ih_l0[6:12] + layer.bias_hh_l0[6:12]).tolist() == [1.0] * 6
    assert not job.model.get_input_embeddings().weight.requires_grad
    assert trained.get_input_embeddings().weight.shape == (1, 1)


@pytest.mark.parametrize(
    "method",
    [
        ["--reg", "fraternal", "--dropout_kind", "variational=0.3"],
        ["--reg", "expectation_linear", "--dropout_kind", "variational=0.3"],
        ["--reg", "adversarial_dropout(site='recurrent', rate=0.34, steps=2)"],
    ],
)
def test_every_method_of_the_study_runs_and_adds_something(common, method, tmp_path):
    assert mnist.main([*common, *method, "--do_train"]) == 0
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    parts = {name: value for name, value in results.items() if name.startswith("train_loss_")}
    assert len(parts) == 2
    assert all(math.isfinite(value) and value > 0 for value in parts.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task_name", "rte"], "--task_name"),
        (["--side", "5"], "--side"),
        (["--do_eval"], "--do_train is missing"),
        ([*WORK, "--validation_size", "60"], "--validation_size 60 leaves 0 of the 60 images"),
        ([*WORK, "--train_size", "41"], "--validation_size 20 leaves 40 of the 60 images to train on, 41 are needed"),
        ([*WORK, "--dropout_kind", "zoneou=0.1"], "--dropout_kind 'zoneou'"),
        ([*WORK, "--dropout_kind", "hidden=0.1"], "--dropout_kind 'hidden=0.1'"),
        ([*WORK, "--data_dir", "/nowhere"], "/nowhere/mnist/train-images-idx3-ubyte.gz: no such file"),
        ([*WORK, "--reg", "vat"], "embeddings"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_no_folder(common, words, said, capsys, tmp_path):
    assert main(["mnist", *common, *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line
    assert not (tmp_path / "out").exists()


def test_without_data_digits_are_made_up(tmp_path, capsys):
    words = ["--side", "7", "--max_steps", "2", "--hidden_size", "4", "--no_price", "--use_cpu"]
    assert mnist.main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    assert "made-up digits" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["eval_samples"] == 1000


def test_masks_of_a_run_and_its_checkpoints_are_studied(common, data, tmp_path, capsys):
    assert mnist.main([*common, "--do_train", "--do_eval"]) == 0
    words = [str(tmp_path / "out"), "--data_dir", data, "--images", "20", "--masks", "4", "--draws", "2"]
    words += ["--rate", "0.34", "--output_dir", str(tmp_path / "study")]
    assert masks.main(words) == 0
    written = {path.name for path in (tmp_path / "study").iterdir()}
    assert written == {"masks.json", "accuracies.png", "mean_masks.png"}
    found = json.loads((tmp_path / "study" / "masks.json").read_text())
    assert list(found["mean_masks"]) == ["checkpoint-8", "checkpoint-16", "at the end"]
    assert found["mean_masks"]["checkpoint-16"] == found["mean_masks"]["at the end"]
    assert found["terms"]["quarter_fd_at_most_el"]
    assert "EL" in capsys.readouterr().out
    before = (tmp_path / "study" / "masks.json").stat().st_mtime_ns
    assert masks.main(words) == 0
    assert (tmp_path / "study" / "masks.json").stat().st_mtime_ns == before  # nothing was left to do
    for wrong, said in (
        ([*words, "--masks", "6"], "another study"),
        ([*words, "--masks", "22"], "--masks 22: each is the worst for another image, and there are 20"),
        ([*words, "--masks", "5"], "--masks 5: an even number"),
        ([str(tmp_path), *words[1:]], "has no config.json"),
    ):
        assert masks.main(wrong) == 2
        assert said in capsys.readouterr().err
    config = tmp_path / "out" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "images": None}))
    assert masks.main(words) == 2
    assert "has a network that hf-rat mnist has not trained" in capsys.readouterr().err


@pytest.fixture
def small(tmp_path):
    words = ["--hidden_size", "8", "--train_batches", "3", "--test_size", "60", "--use_cpu", "--no_price"]
    return [*words, "--output_dir", str(tmp_path / "out")]


def test_temporal_order_stops_when_it_is_right_enough_and_tells_both_accuracies(small, tmp_path):
    assert temporal_order.main([*small, "--stop_at", "0.05", "--num_train_epochs", "5"]) == 0
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["epoch"] == 1
    assert results["train_samples"] == 96
    assert {"eval_accuracy", "eval_train_accuracy"} <= results.keys()


def test_temporal_order_that_is_not_right_goes_on_to_its_last_epoch(small, tmp_path):
    words = [*small, "--num_train_epochs", "2", "--dropout_kind", "rnndrop=0.5", "--dropout_per_step"]
    assert temporal_order.main([*words, "--length", "6"]) == 0
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["epoch"] == 2
    assert 0 < results["eval_train_accuracy"] < 1
    model = RNNForSequenceClassification.from_pretrained(tmp_path / "out")
    assert max(float(p.detach().abs().max()) for p in model.parameters() if p.requires_grad) < 0.06  # began below 0.05
    assert temporal_order.main([*small, "--do_predict"]) == 2


def test_forget_gates_begin_as_open_as_is_asked(small, tmp_path):
    """Seen in the trained model, since a rate of 1e-9 moves nothing; all else begins as without the flag."""
    words = [*small, "--num_train_epochs", "1", "--learning_rate", "1e-9"]
    models = []
    for name, flags in (("closed", []), ("open", ["--forget_bias", "1.5"])):
        assert temporal_order.main([*words, *flags, "--output_dir", str(tmp_path / name)]) == 0
        models.append(RNNForSequenceClassification.from_pretrained(tmp_path / name))
    moved = {
        name: (there - here).detach()
        for (name, here), there in zip(models[0].named_parameters(), models[1].parameters(), strict=True)
    }
    (bias,) = [name for name in moved if "bias_ih" in name]
    expected = torch.zeros(32)
    expected[8:16] = 1.5  # of input, forget, cell and output, 8 units each
    torch.testing.assert_close(moved.pop(bias), expected)
    assert not any(move.abs().max() > 1e-6 for move in moved.values())


def test_every_forget_gate_of_a_model_begins_open():
    """Of both directions and layers of a user's LSTM; a GRU has none."""
    model = nn.ModuleList([nn.LSTM(3, 4, num_layers=2, bidirectional=True), nn.LSTM(3, 4, bias=False), nn.GRU(3, 4)])
    begin_uniformly(model, 0.1, forget_bias=2.0)
    biases = [bias for name, bias in model.named_parameters() if "bias_ih" in name]
    assert [int((bias > 1.8).sum()) for bias in biases] == [4, 4, 4, 4, 0]
    assert all((bias[4:8] > 1.8).all() for bias in biases[:4])


def test_a_forget_bias_that_is_no_number_is_refused(small, capsys):
    assert temporal_order.main([*small, "--forget_bias", "nan"]) == 2
    assert "--forget_bias nan: a finite number is needed" in capsys.readouterr().err


def test_temporal_order_is_learned(tmp_path):
    """Three symbols, one marker each in the first two: a short memory is enough."""
    words = ["--length", "3", "--hidden_size", "16", "--train_batches", "30", "--test_size", "100", "--use_cpu"]
    words += ["--learning_rate", "2", "--num_train_epochs", "30", "--no_price", "--save_strategy", "no"]
    assert temporal_order.main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["eval_accuracy"] == results["eval_train_accuracy"] == 1
    assert results["epoch"] < 30


@pytest.mark.parametrize(("name", "runs"), [("pmnist", 6 * 3), ("smnist", 6), ("temporal_order", 12 * 2)])
def test_the_experiment_files_are_read(name, runs):
    plan = compare.parse([str(ROOT / "configs" / "experiments" / f"{name}.yaml")]).plan()
    assert len({run.folder for run in plan}) == runs


def test_they_are_compared(data, tmp_path):
    """By the command line, in this process: what each run writes is what a verdict reads."""
    words = ["--methods", "plain", "plain --dropout_kind variational=0.3", "--seeds", "1"]
    words += ["--output_dir", str(tmp_path / "all"), "--", "mnist", "--do_train", "--do_eval", "--side", "7"]
    words += ["--data_dir", data, "--validation_size", str(HELD), "--hidden_size", "4", "--max_steps", "2"]
    experiment = compare.parse([*words, "--use_cpu"])

    class Here:
        def __call__(self, command, log):
            return main(list(command))

        def stop(self):
            pass

    compare.compare(experiment, shlex.join(words), Here())
    records = read([tmp_path / "all"])
    assert len(records) == 2
    assert all("eval_accuracy" in record.scores for record in records)
    with pytest.raises(ValueError, match="hf-rat mnist has no --model_name_or_path"):
        compare.parse([*words[:5], "--models", "bert", *words[5:]])
