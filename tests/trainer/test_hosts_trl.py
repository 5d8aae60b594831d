"""`class MySFT(RegularizationMixin, SFTTrainer)` with the real TRL: texts with masked prompts, steps by hand.

The oracles are those of test_problem_losses.py, weighted by the labels of each micro-batch; they never see TRL.
"""

from dataclasses import dataclass, fields

import pytest
import tiny
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from test_problem_losses import embed, rat_by_hand, rdrop_by_hand, run
from tiny_tasks import IGNORED, collate, task_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedTokenizerFast

trl = pytest.importorskip("trl")

from hf_rat import (  # noqa: E402
    RegularizationMixin,
    RegularizedTrainingArguments,
    adversarial_dropout,
    fgm,
    neftune,
    parse,
    plain,
    rat,
    rdrop,
)

TASK = "causal_lm_llama"
RATE = 0.1
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*has no dropout", "ignore:.*checkpointing", "ignore:.*label_smoothing_factor", "ignore:.*use_reentrant"
)


class MySFT(RegularizationMixin, trl.SFTTrainer):
    """What a user writes."""


class SeededSFT(MySFT):
    """The dropout masks of every micro-batch begin at the same place of torch's generator."""

    def training_step(self, *args, **kwargs):
        torch.manual_seed(1)
        return super().training_step(*args, **kwargs)


def tokenizer():
    """Word `w7` is token 7."""
    words = {"<pad>": tiny.PAD, "<unk>": 1, "<eos>": tiny.EOS}
    words |= {f"w{number}": number for number in range(tiny.FIRST, tiny.VOCABULARY)}
    text = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    text.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=text, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def texts(count=8):
    """(prompt, completion) in tokens; the micro-batches of four have 10 and 14 labels with their ends of text."""
    generator = torch.Generator().manual_seed(0)

    def draw(length):
        return torch.randint(tiny.FIRST, tiny.VOCABULARY, (length,), generator=generator).tolist()

    return [(draw(2 + number % 3), draw(1 + number % 2 + number // 4)) for number in range(count)]


def dataset(count=8):
    rows = [[" ".join(f"w{token}" for token in part) for part in text] for text in texts(count)]
    return Dataset.from_list([{"prompt": prompt, "completion": f" {completion}"} for prompt, completion in rows])


def micro_batches(count=8):
    """What the texts are to a model, made without TRL."""
    rows = [
        {"input_ids": [*prompt, *completion, tiny.EOS], "labels": [IGNORED] * len(prompt) + [*completion, tiny.EOS]}
        for prompt, completion in texts(count)
    ]
    return [collate(rows[at : at + 4]) for at in range(0, count, 4)]


def trainer(folder, regularizer=None, kind=SeededSFT, model=None, dropout=0.0, options=None, **settings):
    simple = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    step = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1, "logging_steps": 1}
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "bf16": False}
    order = {"train_sampling_strategy": "sequential", "output_dir": str(folder)}
    given = {} if regularizer is None else {"regularizer": regularizer}
    return kind(
        model=task_model(TASK, dropout) if model is None else model,
        args=trl.SFTConfig(**{**simple, **step, **quiet, **order, **settings}),
        train_dataset=dataset(),
        processing_class=tokenizer(),
        **{**given, **(options or {})},
    )


def logged(one):
    one.train()
    return next(log for log in one.state.log_history if "loss" in log)


def test_an_average_of_the_weights(tmp_path):
    """Saved as the model and resumed from, as with the Trainer itself."""
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "options": {"average": "ema(0.5)"}}
    one = trainer(tmp_path / "a", parse("rat(epsilon=0.3)"), **settings)
    expected = {name: value.clone() for name, value in one.model.named_parameters()}
    one.train()
    for step in (1, 2, 3):
        raw = load_file(tmp_path / "a" / f"checkpoint-{step}" / "raw_model.safetensors")
        expected = {name: 0.5 * value + 0.5 * raw[name] for name, value in expected.items() if name in raw}
    for name, value in expected.items():
        torch.testing.assert_close(dict(one.model.named_parameters())[name], value)
    again = trainer(tmp_path / "b", parse("rat(epsilon=0.3)"), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1"))
    for name, value in one.model.named_parameters():
        assert torch.equal(dict(again.model.named_parameters())[name], value), name


def trained(*args, **kwargs):
    """(log of the step, gradient of each weight)."""
    one = trainer(*args, **kwargs)
    before = {name: p.detach().clone() for name, p in one.model.named_parameters() if p.requires_grad}
    log = logged(one)
    after = dict(one.model.named_parameters())
    return log, {name: (weight - after[name].detach()) / 0.1 for name, weight in before.items()}


# -- an optimizer step by hand ---------------------------------------------------------------------------------------


def plain_by_hand(task, model, batch):
    return {"task": run(task, model, batch, embed(model, batch))[0]}


def fgm_by_hand(task, model, batch):
    x = embed(model, batch)
    clean, _ = run(task, model, batch, x)
    (g,) = torch.autograd.grad(clean, x, retain_graph=True)
    move = 0.5 * g / g.flatten(1).norm(dim=1).view(-1, 1, 1)
    return {"task": clean, "adversarial_task": run(task, model, batch, x + move)[0]}


ORACLES = {
    "plain": (plain(), plain_by_hand),
    "fgm": (fgm(epsilon=0.5), fgm_by_hand),
    "rdrop": (rdrop(alpha=0.7), rdrop_by_hand),
    "rat": (rat(epsilon=0.3, alpha=0.7), rat_by_hand),
}


def step_by_hand(by_hand, model):
    """(losses, as means over the labels of both micro-batches; gradients)."""
    batches = micro_batches()
    counts = [int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches]
    assert counts[0] != counts[1], "a mean of means would be the same"
    total: dict[str, torch.Tensor] = {}
    for batch, count in zip(batches, counts, strict=True):
        torch.manual_seed(1)
        for name, value in by_hand(TASK, model, batch).items():
            total[name] = total.get(name, 0.0) + count / sum(counts) * value
    sum(total.values()).backward()
    grown = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {name: float(value.detach()) for name, value in total.items()}, grown


def assert_same_step(log, gradients, losses, expected):
    assert log["loss"] == pytest.approx(sum(losses.values()), rel=1e-4)
    if len(losses) > 1:
        assert {f"loss_{name}" for name in losses} == {name for name in log if name.startswith("loss_")}
        for name, value in losses.items():
            assert value > 1e-3, f"{name} proves nothing"
            assert log[f"loss_{name}"] == pytest.approx(value, rel=1e-4), name
    expected = {name: expected[name] for name in gradients}
    norm = torch.stack([g.norm() for g in expected.values() if g is not None]).norm().item()
    assert log["grad_norm"] == pytest.approx(norm, rel=1e-3)
    scale = max(float(g.abs().max()) for g in expected.values() if g is not None)
    for name, gradient in gradients.items():
        theirs = torch.zeros_like(gradient) if expected[name] is None else expected[name]
        torch.testing.assert_close(gradient, theirs, rtol=1e-3, atol=1e-4 * scale, msg=name)


@pytest.mark.parametrize("name", ORACLES)
def test_a_step_is_the_mean_over_all_unmasked_next_tokens(name, tmp_path):
    regularizer, by_hand = ORACLES[name]
    ours = trained(tmp_path, regularizer, dropout=RATE)
    assert_same_step(*ours, *step_by_hand(by_hand, task_model(TASK, RATE)))


@pytest.mark.parametrize("name", ORACLES)
def test_adapters(name, tmp_path):
    regularizer, by_hand = ORACLES[name]
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    one = trainer(tmp_path, regularizer, dropout=RATE, options={"peft_config": config})
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in one.model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape))  # B begins at 0
    theirs = get_peft_model(task_model(TASK, RATE), config)
    theirs.load_state_dict(one.model.state_dict())
    theirs.get_input_embeddings().weight.requires_grad_()  # for the slope
    before = {name: p.detach().clone() for name, p in one.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in before)
    log, after = logged(one), dict(one.model.named_parameters())
    gradients = {name: (weight - after[name].detach()) / 0.1 for name, weight in before.items()}
    assert_same_step(log, gradients, *step_by_hand(by_hand, theirs))


def test_lean_memory_is_the_same(tmp_path):
    @dataclass
    class Arguments(trl.SFTConfig, RegularizedTrainingArguments):
        pass

    logs = [
        logged(
            SeededSFT(
                model=task_model(TASK),
                args=Arguments(
                    reg="rat(epsilon=0.5)",
                    reg_memory=memory,
                    output_dir=str(tmp_path),
                    use_cpu=True,
                    bf16=False,
                    max_steps=1,
                    logging_steps=1,
                    save_strategy="no",
                    train_sampling_strategy="sequential",
                ),
                train_dataset=dataset(),
                processing_class=tokenizer(),
            )
        )
        for memory in ("fast", "lean")
    ]
    for name in ("loss", "loss_task", "loss_adversarial_task", "grad_norm"):
        assert logs[0][name] == pytest.approx(logs[1][name], rel=1e-5)


# -- what TRL does beside --------------------------------------------------------------------------------------------

METRICS = ("entropy", "mean_token_accuracy", "num_tokens")
SETTINGS = {
    "nll": {},
    "dft": {"loss_type": "dft"},
    "label smoothing": {"label_smoothing_factor": 0.2},
    "whole texts": {"completion_only_loss": False},
    "packing, wrapped": {"packing": True, "packing_strategy": "wrapped", "max_length": 9},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(
    "regularizer",
    [fgm(epsilon=0.5), rdrop(), adversarial_dropout(rate=0.2)],
    ids=lambda term: repr(term).split("(")[0],
)
def test_task_loss_and_metrics_are_those_of_trl(regularizer, settings, tmp_path):
    stock = logged(trainer(tmp_path, kind=trl.SFTTrainer, **settings))
    ours = logged(trainer(tmp_path, regularizer, **settings))
    assert ours["loss_task"] == pytest.approx(stock["loss"], rel=1e-4)
    for name in METRICS:
        assert ours[name] == pytest.approx(stock[name], rel=1e-4), name


@pytest.mark.parametrize("settings", [*SETTINGS.values(), {"packing": True, "max_length": 16}], ids=[*SETTINGS, "bfd"])
def test_plain_is_trl(settings, tmp_path):
    stock = logged(trainer(tmp_path, kind=trl.SFTTrainer, **settings))
    ours = logged(trainer(tmp_path, plain(), **settings))
    for name in ("loss", "grad_norm", *METRICS):
        assert ours[name] == pytest.approx(stock[name], rel=1e-4), name


def mixture():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    special = {"vocab_size": tiny.VOCABULARY, "pad_token_id": tiny.PAD, "eos_token_id": tiny.EOS}
    experts = {"num_local_experts": 4, "router_aux_loss_coef": 0.5, "num_key_value_heads": 2}
    return AutoModelForCausalLM.from_config(MixtralConfig(**sizes, **special, **experts))


def test_the_load_balancing_loss_of_a_mixture_of_experts(tmp_path):
    alone = {"gradient_accumulation_steps": 1}
    stock = logged(trainer(tmp_path, kind=trl.SFTTrainer, model=mixture(), **alone))
    ours = logged(trainer(tmp_path, fgm(epsilon=0.5), model=mixture(), **alone))
    without = logged(trainer(tmp_path, kind=trl.SFTTrainer, model=mixture(), router_aux_loss_coef=0.0, **alone))
    assert ours["loss_task"] == pytest.approx(stock["loss"], rel=1e-4)
    assert ours["aux_loss"] == pytest.approx(stock["aux_loss"], rel=1e-4)
    assert stock["loss"] > without["loss"] + 0.1


def test_evaluation_is_that_of_trl(tmp_path):
    held_back = {"eval_dataset": dataset(4)}
    ours = trainer(tmp_path, rat(epsilon=0.3), options=held_back, eval_strategy="steps", eval_steps=1)
    ours.train()
    (log,) = (log for log in ours.state.log_history if "eval_loss" in log)
    model = task_model(TASK)
    model.load_state_dict(ours.model.state_dict())
    stock = trainer(tmp_path, kind=trl.SFTTrainer, model=model, options=held_back).evaluate()
    for name in ("eval_loss", "eval_entropy", "eval_mean_token_accuracy"):
        assert log[name] == pytest.approx(stock[name], rel=1e-5), name  # nothing of the training passes is among them


@pytest.mark.parametrize(
    ("regularizer", "fused"), [(fgm(epsilon=0.5), True), (neftune(), True), (rat(epsilon=0.5), False)], ids=str
)
def test_logits_are_built_only_where_they_are_compared(regularizer, fused, tmp_path):
    one, built = trainer(tmp_path, regularizer), []
    one.model.lm_head.register_forward_hook(lambda *_: built.append(True))
    one.train()
    assert bool(built) != fused


def test_a_checkpoint_has_a_card_of_both(tmp_path):
    one = trainer(tmp_path, rat(epsilon=0.3), save_strategy="steps", save_steps=1)
    one.train()
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert repr(parse("rat(epsilon=0.3)")) in card
    assert "- hf-rat" in card
    assert "- sft" in card
    assert (tmp_path / "checkpoint-1").is_dir()


def test_arguments_of_both():
    @dataclass
    class Arguments(trl.SFTConfig, RegularizedTrainingArguments):
        pass

    names = {field.name for field in fields(Arguments)}
    assert {"reg", "reg_epsilon", "packing", "loss_type"} <= names
    both = Arguments(output_dir="out", use_cpu=True, bf16=False, reg="rat", reg_epsilon=0.3)
    assert both.regularizer() == rat(epsilon=0.3)
    assert both.learning_rate == trl.SFTConfig(output_dir="out", use_cpu=True, bf16=False).learning_rate


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"packing": True, "max_length": 16}, "rat.*packing.*'bfd'.*packing=False"),
        ({"padding_free": True, "max_length": None}, "rat.*padding_free.*padding_free=False"),
        ({"options": {"compute_loss_func": lambda *a, **k: None}}, "compute_loss_func.*override compute_loss"),
    ],
    ids=["packing", "padding_free", "compute_loss_func"],
)
@pytest.mark.filterwarnings("ignore:.*compute_loss_func")
def test_refused_in_one_line(settings, named, tmp_path):
    with pytest.raises(ValueError, match=named) as error:
        trainer(tmp_path, rat(epsilon=0.3), **settings)
    assert "\n" not in str(error.value)


def test_activations_offloaded_for_one_backward_are_refused(tmp_path):
    one = trainer(tmp_path)
    one.args.activation_offloading = True
    one._given_regularizer = rat(epsilon=0.3)
    with pytest.raises(ValueError, match=r"activation_offloading=True.*one backward"):
        one.train()


def test_other_trainers_of_trl_are_refused(tmp_path):
    class MyDPO(RegularizationMixin, trl.DPOTrainer):
        pass

    rows = [{"prompt": "w4 w5", "chosen": " w6", "rejected": " w7"}] * 2
    arguments = trl.DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    settings = {"args": arguments, "train_dataset": Dataset.from_list(rows), "processing_class": tokenizer()}
    with pytest.raises(ValueError, match=r"fgm.* with MyDPO: of TRL's trainers only SFTTrainer") as error:
        MyDPO(task_model(TASK), task_model(TASK), regularizer=fgm(epsilon=0.5), **settings)
    assert "\n" not in str(error.value)
