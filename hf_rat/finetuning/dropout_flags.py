"""The flags of recurrent dropouts, which every command that trains a recurrent layer from scratch has."""

from dataclasses import dataclass, field, fields
from typing import Any

from hf_rat.models.recurrent_dropouts import FORWARD, PER_STEP, Dropouts

DROPOUTS = {f.name: f.type for f in fields(Dropouts) if f.name != "per_step"}
"""The words of `--dropout_kind`: rates, and ways in which they drop."""


# No postponed annotations in this module: HfArgumentParser reads the types of the fields.
@dataclass
class DropoutArguments:
    """Which recurrent dropouts a model has, and at which rates."""

    dropout_kind: str | None = field(
        default=None,
        metadata={
            "help": "Recurrent dropouts, comma separated, each with its rate or --recurrent_dropout: "
            '"variational", "recurrent=0.25,dropconnect=0.5". Kinds: variational, variational_x, recurrent, rnndrop, '
            "zoneout, zoneout_cell, dropconnect, input, hidden, output, layers. And how: variational_per=batch, "
            "per_gate, dropconnect_per=example, dropconnect_bias."
        },
    )
    recurrent_dropout: float = field(default=0.25, metadata={"help": "Rate of the kinds that name none."})
    dropout_per_step: str | None = field(
        default=None,
        metadata={
            "help": "New masks at each step for these kinds, comma separated: variational, recurrent, rnndrop, input, "
            "hidden, output. Alone: for the first three.",
            "nargs": "?",
            "const": ",".join(PER_STEP),
        },
    )

    def __post_init__(self) -> None:
        if str(self.dropout_per_step).lower() == "true":  # as a file of flags may say
            self.dropout_per_step = ",".join(PER_STEP)
        if self.recurrent_dropout != type(self).recurrent_dropout and not self.dropout_kind:
            raise ValueError(f"--recurrent_dropout {self.recurrent_dropout} needs --dropout_kind")

    def recurrent_dropouts(self) -> dict[str, Any]:
        """The dropouts of `--dropout_kind`, as the models' configurations take them.

        Raises:
            ValueError: an unknown kind, or a rate that is no number; the configuration checks the rest.
        """
        found: dict[str, Any] = {}
        for part in _words(self.dropout_kind):
            kind, given, value = (word.strip() for word in part.partition("="))
            if kind not in DROPOUTS:
                raise ValueError(f"--dropout_kind {kind!r} is not known; there are {', '.join(DROPOUTS)}")
            if DROPOUTS[kind] == "str":
                found[kind] = value
            elif DROPOUTS[kind] == "bool":
                if given:
                    raise ValueError(f"--dropout_kind {part!r}: {kind} stands alone")
                found[kind] = True
            else:
                try:
                    found[kind] = float(value) if given else self.recurrent_dropout
                except ValueError:
                    raise ValueError(f"--dropout_kind {part!r}: the rate {value!r} is not a number") from None
        asked, known = _words(self.dropout_per_step), PER_STEP + FORWARD
        if unknown := [kind for kind in asked if kind not in known]:
            raise ValueError(f"--dropout_per_step {unknown[0]!r} is not known; there are {', '.join(known)}")
        steps = [kind for kind in asked if found.get(kind)]
        named = self.dropout_per_step != ",".join(PER_STEP)  # which stands for the flag alone: those that are on
        if asked and (not steps or (named and steps != asked)):
            missing = [kind for kind in asked if kind not in steps]
            either = ", ".join(missing[:-1]) + (" or " if missing[:-1] else "") + missing[-1]
            raise ValueError(f"--dropout_per_step needs --dropout_kind {either}")
        return found | ({"per_step": steps} if steps else {})


def _words(text: str | None) -> list[str]:
    """The parts between commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]
