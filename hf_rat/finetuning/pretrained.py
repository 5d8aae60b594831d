"""The model and the tokenizer that the flags ask for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_rat import models  # noqa: F401 (the Auto classes find the companion models)
from hf_rat.data.encoding import Labels
from hf_rat.data.files import one_line
from hf_rat.data.hub import require_hub
from hf_rat.data.task import Task
from hf_rat.finetuning.flags import ModelArguments
from hf_rat.trainer.dropout_schedule import is_dropout_rate

logger = logging.getLogger(__name__)


def source_of_model(flags: ModelArguments) -> dict[str, Any]:
    """Where `from_pretrained` finds a model, as its arguments."""
    return {
        "cache_dir": flags.cache_dir,
        "revision": flags.model_revision,
        "token": flags.token,
        "trust_remote_code": flags.trust_remote_code,
    }


def load_model(
    flags: ModelArguments, labels: Labels, task_name: str | None, auto: Any = AutoModelForSequenceClassification
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Labels]:
    """The classifier, its tokenizer, and the labels in the order that the model numbers them.

    Args:
        flags: which model; `model_name_or_path` is set.
        labels: of the data set. A pretrained classifier of the same label names keeps its own order.
        task_name: written into the model's configuration.
        auto: the Auto class of its head. A tokenizer of tagged words is told that they are apart, where it needs that.

    Raises:
        ValueError: the Hub does not answer, or a model, configuration or tokenizer cannot be loaded.
    """
    name = flags.model_name_or_path
    assert name is not None
    shared = source_of_model(flags)
    count = 1 if labels.regression else len(labels.names)
    config = load_pretrained(
        AutoConfig,
        "--config_name" if flags.config_name else "--model_name_or_path",
        flags.config_name or name,
        num_labels=count,
        finetuning_task=task_name,
        **shared,
    )
    if flags.dropout is not None:
        set_dropout(config, flags.dropout)
    named = "--tokenizer_name" if flags.tokenizer_name else "--model_name_or_path"
    tokenizer = load_pretrained(AutoTokenizer, named, flags.tokenizer_name or name, **shared)
    if auto is AutoModelForTokenClassification and getattr(tokenizer, "add_prefix_space", None) is False:
        tokenizer = load_pretrained(
            AutoTokenizer, named, flags.tokenizer_name or name, add_prefix_space=True, **shared
        )
    labels = number_labels(config, labels)
    model = load_pretrained(
        auto,
        "--model_name_or_path",
        name,
        config=config,
        ignore_mismatched_sizes=flags.ignore_mismatched_sizes,
        **shared,
    )
    embeddings = model.get_input_embeddings()
    if isinstance(embeddings, nn.Embedding) and len(tokenizer) > embeddings.num_embeddings:
        raise ValueError(
            f"--tokenizer_name {tokenizer.name_or_path!r}: it has {len(tokenizer)} tokens, the model of "
            f"--model_name_or_path {name!r} only {embeddings.num_embeddings}; they do not belong together"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"{named} {tokenizer.name_or_path!r}: the tokenizer has neither a padding nor an end token"
            )
        logger.warning("The tokenizer has no padding token: its end token %r pads.", tokenizer.eos_token)
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer, labels


def load_pretrained(kind: Any, flag: str, name: str, **options: Any) -> Any:
    """What an Auto class finds under a name on the Hub or in a folder.

    Raises:
        ValueError: in one line with the flag, why it cannot be loaded.
    """
    if not Path(name).exists():
        require_hub(f"{flag} {name!r}", "give a local folder")
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        hint = "; --ignore_mismatched_sizes makes a new head" if "mismatch" in str(error) else ""
        raise ValueError(f"{flag} {name!r} cannot be loaded ({one_line(error)}){hint}") from error


def number_labels(config: PretrainedConfig, labels: Labels) -> Labels:
    """Write the label names and the problem type into the configuration; the labels as it numbers them.

    Args:
        config: changed in place. If it names the same labels already, in its own order, that order stays.
        labels: of the data set.
    """
    if labels.regression:
        config.problem_type = "regression"
        return labels
    config.problem_type = "single_label_classification"
    own = {str(name): int(number) for name, number in (config.label2id or {}).items()}
    named = own != {f"LABEL_{number}": number for number in range(len(labels.names))}
    in_order = labels.in_order_of(own) if named else labels
    if in_order is None:
        logger.warning(
            "The model's labels %s are not those of the data, %s: the data's are used.",
            sorted(own),
            sorted(labels.names),
        )
    labels = in_order or labels
    config.id2label = labels.id2label
    config.label2id = {name: number for number, name in labels.id2label.items()}
    return labels


def set_dropout(config: PretrainedConfig, rate: float) -> list[str]:
    """Set every dropout rate of a configuration, whatever the architecture calls it, and return their names.

    Args:
        config: changed in place.
        rate: 0 to 1.

    Raises:
        ValueError: the configuration has no dropout rate.
    """
    names = [name for name, value in config.to_dict().items() if is_dropout_rate(name, value)]
    if not names:
        raise ValueError(f"--dropout {rate}: the configuration of a {config.model_type} has no dropout rate")
    for name in names:
        setattr(config, name, rate)
    return names


def add_lora(model: PreTrainedModel, flags: ModelArguments, task: Task) -> Any:
    """The model with a LoRA adapter: only the adapter and the classification head are trained and saved.

    Args:
        model: of a name or folder that the adapter can refer to.
        flags: rank, scale, dropout and target modules.
        task: whether each word has a label of its own.

    Raises:
        ValueError: PEFT is not installed, or it finds none of the target modules.
    """
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise ValueError(f"--lora_r {flags.lora_r} needs PEFT: pip install 'hf-rat[lora]'") from error
    named = flags.lora_target_modules
    modules = named if named in (None, "all-linear") else [module.strip() for module in named.split(",")]
    config = LoraConfig(
        task_type=TaskType.TOKEN_CLS if task.tagged else TaskType.SEQ_CLS,
        r=flags.lora_r or 0,
        lora_alpha=flags.lora_alpha,
        lora_dropout=flags.lora_dropout,
        target_modules=modules,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ValueError(f"--lora_target_modules {flags.lora_target_modules!r}: {one_line(error)}") from error
