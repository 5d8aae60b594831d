"""`hf-rat lm` end to end, on generated texts in the form of its data sets."""

import json
import math
import random
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_rat.cli import compare, lm
from hf_rat.cli import main as cli
from hf_rat.data.tasks import LANGUAGE
from hf_rat.experiments.scores import score_of, sign_of
from hf_rat.finetuning.flags import given_flags
from hf_rat.trainer.carried_state import CarriedStateTrainer

pytestmark = pytest.mark.filterwarnings("ignore:.*(has no dropout|teaches nothing|flips none)")
NEXT = {
    "the": ["cat", "dog", "<unk>"],
    "cat": ["sat", "ran"],
    "dog": ["ran"],
    "<unk>": ["sat"],
    "sat": ["."],
    "ran": ["."],
}


def lines(count, seed=0, gap=" "):
    """Sentences whose next word often follows from the last one."""
    rng, found = random.Random(seed), []
    for _ in range(count):
        words = ["the"]
        while words[-1] != ".":
            words.append(rng.choice(NEXT[words[-1]]))
        text = " ".join(words)
        found.append(text if gap == " " else " ".join(text.replace(" ", "_")))
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The known texts as parquet files, and one of the user's own."""
    folder = tmp_path_factory.mktemp("texts")
    for name, column in [*((task.name, task.text_columns[0]) for task in LANGUAGE), ("own", "text")]:
        (folder / name).mkdir()
        for seed, (split, count) in enumerate({"train": 60, "validation": 20, "test": 20}.items()):
            rows = {column: lines(count, seed, "_" if name == "ptb_char" else " ")}
            Dataset.from_dict(rows).to_parquet(folder / name / f"{split}.parquet")
    return folder


SHAPE = ["--embedding_size", "8", "--hidden_size", "8"]
SHORT = ["--per_device_train_batch_size", "4", "--bptt", "12", "--num_train_epochs", "2", "--use_cpu", "--no_price"]


@pytest.fixture
def common(tmp_path):
    return ["--disable_tqdm", "True", "--output_dir", str(tmp_path / "out"), *SHORT]


def test_numbers_that_vanish_are_zero_in_training(data, common, monkeypatch):
    """A unit whose updates stay dropped for a window leaves states and gradients of 1e-40: ten times the time."""
    products, step = [], CarriedStateTrainer.training_step

    def watched(*args, **kwargs):
        products.append(float(torch.tensor(1e-30) * torch.tensor(1e-10)))
        return step(*args, **kwargs)

    monkeypatch.setattr(CarriedStateTrainer, "training_step", watched)
    words = ["--dataset_name", "own", "--data_dir", str(data), "--do_train", "--max_steps", "2", *SHAPE, *common]
    lm.run([*words, "--text_column_names", "text"])
    assert products == [0, 0]


@pytest.mark.parametrize("name", [*(task.name for task in LANGUAGE), "own"])
def test_every_text_is_trained_selected_and_tested(name, data, common, tmp_path):
    words = [
        "--dataset_name",
        name,
        "--data_dir",
        str(data),
        "--do_train",
        "--do_eval",
        "--do_predict",
        *SHAPE,
        *common,
    ]
    recipe = [
        "--reg",
        "fraternal",
        "--logging_steps",
        "1",
        "--dropout_kind",
        "input=0.2,dropconnect=0.2",
        "--learning_rate",
        "0.02",
    ]
    results = lm.run([*words, *recipe, "--tie_weights", "--ar", "2", "--tar", "1", "--variable_bptt"])
    tokens = sum(len(line.split()) + 1 for line in lines(20, 1, "_" if name == "ptb_char" else " "))
    assert results["eval_samples"] == tokens - 1
    for prefix in ("eval", "test"):
        assert results[f"{prefix}_perplexity"] == pytest.approx(math.exp(results[f"{prefix}_loss"]))
    score = "bits_per_character" if name == "ptb_char" else "perplexity"
    if name == "ptb_char":
        assert results["test_bits_per_character"] == pytest.approx(results["test_loss"] / math.log(2))
    out = tmp_path / "out"
    state = json.loads((out / "trainer_state.json").read_text())
    scores = [log[f"eval_{score}"] for log in state["log_history"] if f"eval_{score}" in log]
    assert state["best_metric"] == min(scores) == results[f"eval_{score}"]
    assert any("loss_consistency" in log for log in state["log_history"])
    card = (out / "README.md").read_text()
    assert "fraternal" in card
    assert score.replace("_", " ") in card.lower()
    assert json.loads((out / "all_results.json").read_text())[f"test_{score}"] == results[f"test_{score}"]


def test_it_learns_and_goes_on_from_a_checkpoint(data, common, tmp_path):
    words = ["--dataset_name", "own", "--data_dir", str(data), "--do_eval"]
    learned = lm.run([*words, "--do_train", *SHAPE, *common, "--num_train_epochs", "12", "--learning_rate", "0.03"])
    assert learned["eval_perplexity"] < 2  # of eight words; after "the", "cat" and the like there is a choice
    out = tmp_path / "out"
    scored = lm.run([*words, "--model_name_or_path", str(out), *common, "--output_dir", str(tmp_path / "scored")])
    assert scored["eval_loss"] == pytest.approx(learned["eval_loss"], rel=1e-5)
    further = lm.run(
        [*words, "--do_train", "--model_name_or_path", str(out), *common, "--output_dir", str(tmp_path / "further")]
    )
    assert further["eval_perplexity"] < 2

    # A prompt goes on with the most probable token, one full forward for each.
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out).eval()
    prompt = tokenizer("the dog", return_tensors="pt")["input_ids"]
    found, ids = model.generate(prompt, max_new_tokens=9, do_sample=False, eos_token_id=None), prompt
    with torch.no_grad():
        for _ in range(9):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    assert found.equal(ids)
    assert tokenizer.decode(found[0]).startswith("the dog ran . <eos> the")


def test_characters_of_a_file_of_lines(common, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(lines(60)).replace("<unk>", "fox") + "\n", encoding="utf-8")
    files = ["--train_file", str(tmp_path / "text.txt"), "--validation_from_train", "0.25", "--tokens", "characters"]
    results = lm.run([*files, "--do_train", "--do_eval", *SHAPE, *common, "--reg", "fgm"])
    held_back = (tmp_path / "text.txt").read_text().splitlines()[-15:]
    assert results["eval_samples"] == sum(len(line) + 1 for line in held_back) - 1
    assert results["eval_bits_per_character"] == pytest.approx(results["eval_loss"] / math.log(2))
    assert (
        len(AutoTokenizer.from_pretrained(tmp_path / "out")) == len({*" ".join(lines(60)).replace("<unk>", "fox")}) + 2
    )


def test_a_run_that_was_cut_goes_on(data, common, tmp_path):
    words = ["--dataset_name", "own", "--data_dir", str(data), "--do_train", *SHAPE, "--max_steps", "9"]
    words += ["--dropout_kind", "input=0.3", "--variable_bptt", "--save_strategy", "steps", "--save_steps", "5"]
    lm.run([*words, *common])
    whole = load_file(tmp_path / "out" / "model.safetensors")
    (tmp_path / "cut").mkdir()
    (tmp_path / "out" / "checkpoint-5").rename(tmp_path / "cut" / "checkpoint-5")
    lm.run([*words, *common, "--output_dir", str(tmp_path / "cut"), "--resume_from_checkpoint"])
    for name, weight in load_file(tmp_path / "cut" / "model.safetensors").items():
        assert weight.equal(whole[name])


def test_compare_takes_perplexity_as_a_score_that_is_better_when_lower(data, common):
    words = ["--dataset_name", "own", "--data_dir", str(data), "--do_train", "--do_eval", *SHAPE, *common]
    results = lm.run(words)
    record = {"method": "plain", "seed": 1, "finished": True, "results": results}
    assert score_of(record, None) == ("eval_perplexity", results["eval_perplexity"])
    assert sign_of("eval_perplexity") == sign_of("test_bits_per_character") == -1
    many = ["--methods", "plain", "fraternal", "--seeds", "1", "2", "--output_dir", "o"]
    cells = ["--models", "gru", "lstm --hidden_size 4", "--datasets", "ptb_word", "own"]
    plan = compare.parse([*many, *cells, "--", "lm", "--do_train", "--bptt", "9"]).plan()
    assert len(plan) == 16
    for run in plan:
        assert run.command[0] == "lm"
        assert {"--model", "--dataset_name"} <= set(run.command)


def test_the_example(tmp_path, capsys):
    quick = ["--max_steps", "4", "--output_dir", str(tmp_path / "out"), "--no_price"]
    results = lm.run([*quick, "--reg", "fraternal"])
    printed = capsys.readouterr().out
    assert "Trained plainly for as many steps" in printed
    assert results["eval_perplexity"] < 150
    assert (tmp_path / "out" / "plain" / "model.safetensors").is_file()
    lm.run([*quick[:2], "--output_dir", str(tmp_path / "alone"), "--alone", "--reg", "fraternal", "--no_price"])
    assert not (tmp_path / "alone" / "plain").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--train_file {d}/empty.txt", ["--train_file", "empty.txt': the file is empty"]),
        ("--train_file {d}/short.txt", ["--bptt 12: the training text of 7 tokens has 1 steps in each of 4 columns"]),
        ("--train_file {d}/one.txt", ["1 are known beside <unk> and <eos>"]),
        ("--train_file {d}/none.txt", ["no such file"]),
        ("--train_file {d}/one.txt --do_eval", ["--validation_file is missing"]),
        ("--train_file {d}/text.txt --bptt 0", ["--bptt 0: at least 1 is needed"]),
        ("--train_file {d}/text.txt --model bilstm", ["--model 'bilstm' is no language model; there are lstm"]),
        ("--train_file {d}/text.txt --streaming", ["--streaming True: hf-rat lm has no use for it"]),
        ("--train_file {d}/text.txt --pooling max", ["--pooling max: hf-rat lm has no use for it"]),
        ("--train_file {d}/text.txt --label_smoothing_factor 0.1", ["--label_smoothing_factor 0.1: hf-rat lm"]),
        ("--train_file {d}/text.txt --dropout 0", ["--dropout 0.0: a language model has several rates"]),
        ("--train_file {d}/text.txt --train_sampling_strategy random", ["--train_sampling_strategy random: hf-rat"]),
        ("--train_file {d}/text.txt --dropout_kind hidden=0.2", ["acts between layers"]),
        ("--dataset_name ptb_word", ["--data_dir DIR with DIR/ptb_word/<split>.parquet, or --train_file"]),
        ("--dataset_name ptb_word --data_dir {d}", ["ptb_word/train.parquet, which is not there"]),
        ("--dataset_name some/text", ["'some/text' could not be loaded", "--train_file", "--data_dir DIR"]),
        ("--model_name_or_path {d}/nothing --train_file {d}/text.txt", ["cannot be loaded"]),
        ("--model_name_or_path {d}/m --train_file {d}/text.txt --ar 2", ["--ar 2.0 is for a model from scratch"]),
    ],
)
def test_bad_input_is_one_line(words, parts, tmp_path, capsys):
    contents = {"empty": "", "short": "a b c\nd e\n", "one": "a a a a\n" * 50, "text": "a b c d\n" * 50}
    for name, text in contents.items():
        (tmp_path / f"{name}.txt").write_text(text)
    given = words.format(d=tmp_path).split()
    assert cli.main(["lm", *SHORT, "--do_train", "--output_dir", str(tmp_path / "out"), *given]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in error if line.startswith("error: ")]) == 1
    for part in parts:
        assert part in error[-1]
    assert not (tmp_path / "out").exists()


def test_checkpoints_of_another_vocabulary(data, common, tmp_path, capsys):
    (tmp_path / "other.txt").write_text("lo que no se sabe\n" * 60)
    other = ["--train_file", str(tmp_path / "other.txt"), "--do_train", *common]
    lm.run(["--dataset_name", "own", "--data_dir", str(data), "--do_train", *SHAPE, *common])
    out = str(tmp_path / "out")
    with pytest.raises(ValueError, match="is of another vocabulary: 8 tokens, this text has 7"):
        lm.run([*other, *SHAPE, "--resume_from_checkpoint"])
    with pytest.raises(ValueError, match=r"'.*out' is of another vocabulary: 83% of the tokens of the train text"):
        lm.run([*other, "--model_name_or_path", out, "--output_dir", str(tmp_path / "new")])


def test_several_processes_are_refused(data, common, monkeypatch):
    words = ["--dataset_name", "own", "--data_dir", str(data), "--do_train", *SHAPE, *common]
    given = given_flags(words, "hf-rat lm", (lm.WordModelArguments, lm.LanguageModelArguments))
    training = SimpleNamespace(world_size=2, n_gpu=0)
    flags = SimpleNamespace(training=training, model=SimpleNamespace(model_name_or_path=None))
    with pytest.raises(
        ValueError, match="in one process, on one device, and there are 2: start it without a launcher"
    ):
        lm._check(flags, given, lm.WordModelArguments(), lm.LanguageModelArguments())
