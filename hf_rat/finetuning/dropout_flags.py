"""The flags of recurrent dropouts, which every command that trains a recurrent layer from scratch has."""

from dataclasses import dataclass, field, fields
from typing import Any

from hf_rat.models.recurrent_dropouts import PER_STEP, Dropouts

DROPOUTS = tuple(f.name for f in fields(Dropouts) if f.type == "float")


# No postponed annotations in this module: HfArgumentParser reads the types of the fields.
@dataclass
class DropoutArguments:
    """Which recurrent dropouts a model has, and at which rates."""

    dropout_kind: str | None = field(
        default=None,
        metadata={
            "help": "Recurrent dropouts, comma separated, each with its rate or --recurrent_dropout: "
            '"variational", "recurrent=0.25,dropconnect=0.5". Kinds: variational, variational_x, recurrent, rnndrop, '
            "zoneout, zoneout_cell, dropconnect, input, hidden, output, layers."
        },
    )
    recurrent_dropout: float = field(default=0.25, metadata={"help": "Rate of the kinds that name none."})
    dropout_per_step: bool = field(
        default=False, metadata={"help": "New masks at each step for variational, recurrent and rnndrop."}
    )

    def __post_init__(self) -> None:
        if self.recurrent_dropout != type(self).recurrent_dropout and not self.dropout_kind:
            raise ValueError(f"--recurrent_dropout {self.recurrent_dropout} needs --dropout_kind")

    def recurrent_dropouts(self) -> dict[str, Any]:
        """The dropouts of `--dropout_kind`, as the models' configurations take them.

        Raises:
            ValueError: an unknown kind, or a rate that is no number; the configuration checks the rest.
        """
        rates: dict[str, Any] = {}
        for part in (self.dropout_kind or "").split(","):
            if not part.strip():
                continue
            kind, given, rate = (word.strip() for word in part.partition("="))
            if kind not in DROPOUTS:
                raise ValueError(f"--dropout_kind {kind!r} is not known; there are {', '.join(DROPOUTS)}")
            try:
                rates[kind] = float(rate) if given else self.recurrent_dropout
            except ValueError:
                raise ValueError(f"--dropout_kind {part.strip()!r}: the rate {rate!r} is not a number") from None
        if self.dropout_per_step:
            steps = [kind for kind in PER_STEP if rates.get(kind)]
            if not steps:
                raise ValueError(
                    f"--dropout_per_step needs --dropout_kind {', '.join(PER_STEP[:-1])} or {PER_STEP[-1]}"
                )
            rates["per_step"] = steps
        return rates
