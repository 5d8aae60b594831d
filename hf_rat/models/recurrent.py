"""RNN, LSTM and GRU of torch with every recurrent dropout. On torch alone: it travels with a checkpoint.

The layers are torch's own classes: same weights, names, shapes and results. Without dropout they call torch's layer
(but for padded batches on a CPU); with it they run here, on the valid steps only, packed step by step with the longest
examples first, so that padding costs nothing and reaches nothing. GRU gates follow torch: z keeps the old state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .padding import Rows, check_lengths
from .recurrence import Recurrence
from .recurrence_in_autograd import run_in_autograd
from .recurrent_dropouts import Dropouts, draw_masks, drop_between, drop_forward, drop_parameter, multiply_input


class _Torch(nn.Module):
    """A handle on torch's own forward, for `functional_call` with other weights."""

    def __init__(self, layer: _Recurrent) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any) -> Any:
        return self.layer.torch_forward(*args)


class _Recurrent(nn.RNNBase):
    """A layer of torch with recurrent dropout; mixed into torch's class of the cell.

    Args:
        input_size, hidden_size: widths of input and state.
        num_layers: stacked layers.
        dropout: a `Dropouts`, a mapping of its fields, or one rate between layers as in torch. Default 0: none.
        bias, bidirectional: as in torch.
        batch_first: (batch, time, width) tensors; True, unlike torch's default.
        double_backward: take the plain autograd loop, which has second derivatives; without it they raise.
        device, dtype: of the weights.
        torch_options: `nonlinearity` of an RNN, "tanh" (default) or "relu".

    Raises:
        ValueError: a rate outside [0, 1), a dropout that the cell does not define, or `proj_size`.
    """

    reset_after = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        dropout: Dropouts | Mapping[str, Any] | float = 0.0,
        bias: bool = True,
        batch_first: bool = True,
        bidirectional: bool = False,
        double_backward: bool = False,
        device: Any = None,
        dtype: Any = None,
        **torch_options: Any,
    ) -> None:
        if torch_options.get("proj_size"):
            raise ValueError(f"proj_size={torch_options['proj_size']} is not supported; leave it out")
        super().__init__(
            input_size,  # type: ignore[arg-type]  # the next class is that of the cell, which names its mode itself
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
            **torch_options,
        )
        self.dropouts = Dropouts.of(dropout)
        self.double_backward = double_backward
        wrong = ["zoneout_cell"] if self.mode == "GRU" else ["zoneout_cell", "rnndrop"]
        if self.mode != "LSTM" and (found := [name for name in wrong if getattr(self.dropouts, name)]):
            raise ValueError(f"dropout {', '.join(found)} is not defined for {self.mode}")

    def extra_repr(self) -> str:
        return ", ".join([super().extra_repr(), *(f"{key}={value}" for key, value in self.dropouts.set().items())])

    def forward(
        self,
        input: Tensor,
        hx: Tensor | tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        recurrent_mask: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Run the layers.

        Under autocast the inputs' products and the results take the low precision, the recursion that of the weights.
        torch.compile breaks its graph at the recursion (loops over time take half a minute to compile for nothing).

        Args:
            input: (batch, time, input_size), or (time, batch, input_size) without batch_first.
            hx: the initial state (layers * directions, batch, hidden); of an LSTM a pair, h and c. Default: zeros.
            lengths: (batch,) valid steps of each example, 0..time; the rest is padding, of which nothing is read.
            recurrent_mask: multiplies h_{t-1} where it enters the gates, at all steps; differentiable. (batch, hidden)
                acts in the last layer (in each direction), (layers * directions, batch, hidden) everywhere.

        Returns:
            The last layer's output (batch, time, directions * hidden), zero at padding, and the state after each
            example's last valid step, shaped like hx.

        Raises:
            ValueError: wrong shapes, or lengths outside 0..time.
            TypeError: a PackedSequence, or hx of the wrong kind.
        """
        if isinstance(input, PackedSequence):
            raise TypeError("input is a PackedSequence; pass the padded tensor and lengths=")
        if input.dim() != 3 or input.size(2) != self.input_size or input.size(1) * input.size(0) == 0:
            wanted = f"({'batch, time' if self.batch_first else 'time, batch'}, {self.input_size})"
            raise ValueError(f"input has shape {tuple(input.shape)}, expected {wanted}, not empty")
        time, batch = (input.size(1), input.size(0)) if self.batch_first else (input.size(0), input.size(1))
        lengths = check_lengths(lengths, batch, time)
        states = (hx,) if isinstance(hx, Tensor) else hx
        count = 2 if self.mode == "LSTM" else 1
        expected = (self._directions * self.num_layers, batch, self.hidden_size)
        if states is not None and (isinstance(hx, Tensor) != (count == 1) or len(states) != count):
            raise TypeError(f"hx of {self.mode} is {'a pair (h, c)' if count == 2 else 'a tensor'}")
        for state in states or ():
            if tuple(state.shape) != expected:
                raise ValueError(f"hx has shape {tuple(state.shape)}, expected {expected}")
        if recurrent_mask is not None and tuple(recurrent_mask.shape) not in (expected, expected[1:]):
            got = tuple(recurrent_mask.shape)
            raise ValueError(f"recurrent_mask has shape {got}, expected {expected[1:]} or {expected}")
        return self._run(input, hx, lengths, recurrent_mask)

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _run(
        self, input: Tensor, hx: Any, lengths: Tensor | None, recurrent_mask: Tensor | None
    ) -> tuple[Tensor, Any]:
        p, time_dim = self.dropouts, 1 if self.batch_first else 0
        input = drop_forward(input, p, "input", self.training, time_dim)
        own = recurrent_mask is not None or self._needs_own() or (lengths is not None and int(lengths.min()) == 0)
        # On a CPU torch takes three times as long for packed batches.
        own = own or (lengths is not None and not input.is_cuda)
        # cuDNN has no backward in evaluation, and no second derivatives.
        own = own or self.double_backward or (input.is_cuda and not self.training and torch.is_grad_enabled())
        if own:
            output, state = self._own(input, hx, lengths, recurrent_mask)
        else:
            output, state = self._torch(input, hx, lengths)
        return drop_forward(output, p, "output", self.training, time_dim), state

    def _needs_own(self) -> bool:
        """Whether torch's layer cannot do it: a dropout, the other GRU, or a weight that is made of others.

        Torch's layer keeps a list of its weights, and so misses what weight normalisation or pruning makes of them.
        """
        p = self.dropouts
        if not self.reset_after or any(name not in self._parameters for name in self._flat_weights_names):
            return True
        if p.recurrent or p.rnndrop or p.zoneout or p.zoneout_cell:
            return True
        stacked = self.num_layers > 1 and (p.hidden or p.layers)
        masked = p.variational_per == "example" and (p.variational or p.variational_x)
        connected = p.dropconnect_per == "example" and p.dropconnect
        return self.training and bool(masked or connected or stacked)

    def _torch(self, input: Tensor, hx: Any, lengths: Tensor | None) -> tuple[Tensor, Any]:
        time = input.size(1 if self.batch_first else 0)
        packed: Any = input
        if lengths is not None:
            packed = pack_padded_sequence(input, lengths, self.batch_first, enforce_sorted=False)
        p = self.dropouts
        if self.training and (p.dropconnect or p.variational or p.variational_x):
            names = [name for name, _ in self.named_parameters(recurse=False)]
            weights = {f"layer.{name}": self._dropped(name) for name in names}
            output, state = torch.func.functional_call(_Torch(self), weights, (packed, hx))
            self._init_flat_weights()  # torch's layer keeps a list of its weights: put the parameters back
        else:
            output, state = self.torch_forward(packed, hx)
        if lengths is not None:
            output, _ = pad_packed_sequence(output, self.batch_first, total_length=time)
        return output, state

    def torch_forward(self, *args: Any) -> Any:
        """The forward of torch's class, without any dropout."""
        return super().forward(*args)

    def _dropped(self, name: str, batch: int | None = None) -> Tensor:
        """A weight or bias as this forward uses it; see `drop_parameter`."""
        value = getattr(self, name)
        return drop_parameter(value, name, self.dropouts, self.hidden_size, batch) if self.training else value

    @torch.compiler.disable
    def _own(
        self, input: Tensor, hx: Any, lengths: Tensor | None, recurrent_mask: Tensor | None
    ) -> tuple[Tensor, Any]:
        """All layers on the packed rows."""
        p, directions = self.dropouts, self._directions
        x = input.transpose(0, 1) if self.batch_first else input
        rows = Rows(x.size(1), x.size(0), lengths, x.device)
        x = rows.pack(x)
        states = (hx,) if isinstance(hx, Tensor) else hx
        h_last, c_last = [], []
        for layer in range(self.num_layers):
            if layer:
                x = drop_between(x, p, self.training, rows)
            outputs = []
            for direction in range(directions):
                place = layer * directions + direction
                mask = None
                if recurrent_mask is not None and (recurrent_mask.dim() == 3 or layer == self.num_layers - 1):
                    mask = recurrent_mask[place] if recurrent_mask.dim() == 3 else recurrent_mask
                h0, c0 = ([state[place] for state in states] + [None])[:2] if states is not None else (None, None)
                hs, h, c = self._direction(rows, x, layer, direction == 1, h0, c0, mask)
                outputs.append(hs)
                h_last.append(h)
                c_last.append(c)
            x = torch.cat(outputs, 1) if directions == 2 else outputs[0]
        output = rows.unpack(x)
        output = output.transpose(0, 1) if self.batch_first else output
        state: Any = torch.stack(h_last)
        return output, (state, torch.stack(c_last)) if self.mode == "LSTM" else state  # type: ignore[arg-type]

    def _direction(
        self,
        rows: Rows,
        x: Tensor,
        layer: int,
        backwards: bool,
        h0: Tensor | None,
        c0: Tensor | None,
        recurrent_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """One layer in one direction: its output (rows, hidden), and its last h and c (batch, hidden)."""
        p, suffix = self.dropouts, f"_l{layer}{'_reverse' if backwards else ''}"
        own = rows.batch if p.dropconnect_per == "example" else None
        w_ih = self._dropped(f"weight_ih{suffix}")
        b_ih = getattr(self, f"bias_ih{suffix}") if self.bias else None
        b = self._dropped(f"bias_hh{suffix}", own) if self.bias else None
        gates = w_ih.size(0) // self.hidden_size
        if b_ih is not None and b is not None and self.mode != "GRU" and b.dim() == 1:
            b_ih, b = b_ih + b, None
        x = multiply_input(x, w_ih, b_ih, p, rows, self.hidden_size, self.training)
        if backwards:
            x = rows.reverse(x)
        with torch.autocast(x.device.type, enabled=False):
            w = self._dropped(f"weight_hh{suffix}", own)
            low, x = x.dtype, x.to(w.dtype)
            zeros = x.new_zeros(rows.batch, self.hidden_size)
            h0 = zeros if h0 is None else rows.sort(h0.to(x.dtype))
            c0 = (zeros if c0 is None else rows.sort(c0.to(x.dtype))) if self.mode == "LSTM" else None
            masks, gated = draw_masks(p, rows, x, self.hidden_size, gates, self.training, recurrent_mask)
            if self.double_backward or gated or w.dim() == 3 or not self.reset_after:
                hs, cs = run_in_autograd(self.mode, rows, x, w, b, h0, c0, masks, gated, self.reset_after)
            else:
                hs, cs = Recurrence.apply(self.mode, rows, x, w, b, h0, c0, *masks)
            h, c = rows.final(h0, hs), None if c0 is None or cs is None else rows.final(c0, cs)
        return (rows.reverse(hs) if backwards else hs).to(low), h.to(low), None if c is None else c.to(low)


class RNN(_Recurrent, nn.RNN):  # type: ignore[misc]
    """`torch.nn.RNN` with dropout: h_t = tanh(W x_t + b + U (m_h * h_{t-1})); see `Dropouts` for what it defines."""


class LSTM(_Recurrent, nn.LSTM):  # type: ignore[misc]
    """`torch.nn.LSTM` with dropout: c_t = m_c * (f * c_{t-1} + i * m_g * g), h_t = o * tanh(c_t), then zoneout.

    The gates i, f, g, o see m_h * h_{t-1}; see `Dropouts` for the masks.
    """


class GRU(_Recurrent, nn.GRU):  # type: ignore[misc]
    """`torch.nn.GRU` with dropout: h_t = m_c * ((1 - z) * m_g * g + z * h_{t-1}), then zoneout.

    The gates see m_h * h_{t-1}, with g = tanh(W x + b + r * (U (m_h * h_{t-1}) + b')); see `Dropouts` for the masks.

    Args:
        reset_after: False lets r act before the product, g = tanh(W x + b + U (r * m_h * h_{t-1}) + b'), as Cho et al.
            2014 and Semeniuta et al. 2016 do, in the slower loop of `double_backward`. Default True, as torch.
        options: of `_Recurrent`.
    """

    def __init__(self, *sizes: int, reset_after: bool = True, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.reset_after = reset_after

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.reset_after else ", reset_after=False")
