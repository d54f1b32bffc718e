# SPDX-License-Identifier: Apache-2.0
"""Per-example gradients of a module by hooks, and the sum of them clipped.

While it is open, the trained parameters do not ask autograd for a gradient, so the batch's own is never computed: a hook on
each layer's output gives the layer's rule (`layers`) what it needs. The gradient of every example is there in full, float32,
when its norm is taken, and what is clipped is what is summed: no norm is estimated. One that is not finite counts as zero.

What float32 adds: within the examples that are in memory together (`chunk`), another neighbour's row, or its length, can move
the last bits of a gradient. Whose places are together depends on the draw alone, never on which records exist: a place without
an example is filled by a public dummy that counts as zero. `noise.MARGIN` keeps 1e-3 of the clip norm free. Half is for that:
`trial` measures the share by which company moves a gradient, and as many are together as `together` says, so that all of them
moved four times as far, in one direction, stay within it. Sums of float32 are over 32 examples at most (1.3e-4 in the worst
case); those go into float64, where the rest is below 1e-10. With bfloat16, in which company moves a gradient by 1e-2, examples
are taken one at a time. Void when: a layer's rule is wrong (see `trial`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from osmotic.plugins.dp_sgd.layers import OUT, MixedRowsError, Rule, Slots, rule_for
from osmotic.schemas.errors import ConfigError, Problem

MOST = 256  # examples in memory at a time
ADDED = 32  # gradients summed in float32: two such sums differ by at most 2 x 32^2 x 2^-24 clip norms more than they should
SHARE = 1.25e-4  # of the clip norm, a quarter of half the margin: what company may move of all gradients in memory
FURTHEST = 1e30  # clip norms; of a longer gradient float32 has no exact share, so it counts as no number
WIDEST = 1 << 14  # numbers in a sum of float32
BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}  # of per-example gradients in memory at a time
FEW, LARGE = 4, 1 << 31  # so many at least, while they fit into this
Losses = Callable[[Any, Sequence[Any]], Any]


class Gradients:
    """Per-example gradients of the parameters of a module that are trained. Open it by `with`; hooks and flags go afterwards.

    trained: parameter name -> parameter, in the module's order. chunk: examples at a time, with bfloat16 one.
    """

    def __init__(self, module: Any, at_once: int, dtype: Literal["float32", "bfloat16"] = "float32") -> None:
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not self.trained:
            raise ConfigError(Problem("no parameter of the model is to be trained", fix="check the adapters' target modules"))
        self.size = sum(p.numel() for p in self.trained.values())
        self.device = next(iter(self.trained.values())).device
        self.chunk = 1 if dtype == "bfloat16" else min(at_once, MOST, _room(4 * self.size, self.device.type))
        self._module, self._dtype = module, dtype
        self._slots: Slots | None = None
        self._kept: dict[int, Any] = {}
        self._handles: list[Any] = []
        self._quiet = False

    def __enter__(self) -> "Gradients":
        trained = {id(p) for p in self.trained.values()}
        for name, layer in self._module.named_modules():
            if any(id(p) in trained for p in layer.parameters(recurse=False)):
                said = f"{name or 'the model'} ({type(layer).__name__})"
                self._handles.append(layer.register_forward_hook(self._hook(rule_for(layer), said), with_kwargs=True))
        self._training = {m: m.training for m in self._module.modules()}
        self._module.eval()
        for parameter in self.trained.values():
            parameter.requires_grad_(False)
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
        for module, training in self._training.items():
            module.training = training
        self._handles, self._kept = [], {}

    def of(self, losses: Losses, examples: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
        """(float32 [n] losses, name -> float32 [n, *shape] gradients of at most `chunk` examples); good until the next call."""
        import torch

        n = len(examples)
        found = {name: self._buffer(p, n) for name, p in self.trained.items()}
        slots = Slots(n, {id(p): found[name] for name, p in self.trained.items()})
        self._slots = slots
        try:
            with torch.enable_grad(), self._autocast():
                values = losses(self._module, examples)
            _check(values, n)
            if values.requires_grad:
                values.float().sum().backward()
        finally:
            self._slots = None
        for name, parameter in self.trained.items():
            if id(parameter) in slots.fresh:
                found[name].zero_()
        return values.detach().float(), found

    def _buffer(self, parameter: Any, n: int) -> Any:
        import torch

        if id(parameter) not in self._kept or len(self._kept[id(parameter)]) < n:
            rows = max(n, self.chunk)
            self._kept[id(parameter)] = torch.empty((rows, *parameter.shape), dtype=torch.float32, device=self.device)
        return self._kept[id(parameter)][:n]

    def _autocast(self) -> Any:
        import torch

        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._dtype == "bfloat16")

    def _hook(self, rule: Rule, said: str) -> Callable[..., Any]:
        def forward(layer: Any, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
            import torch

            slots = self._slots
            if slots is None or self._quiet or not torch.is_grad_enabled():
                return None
            if not isinstance(output, torch.Tensor):
                raise _unsupported(said, "it gives no single tensor")
            if output.shape[0] == 1 != slots.n:  # positions, say: one row for all, of which everybody has a gradient
                output = output.expand(slots.n, *output.shape[1:])
            if not output.requires_grad:
                output = output.detach().requires_grad_(True)
            call = ([_detached(v) for v in args], {key: _detached(v) for key, v in options.items()})

            def backward(gradient: Any) -> None:
                try:
                    with torch.no_grad(), self._silent():
                        rule(layer, (tuple(call[0]), call[1]), gradient, slots)
                except MixedRowsError as error:
                    raise _unsupported(said, str(error)) from error

            output.register_hook(backward)
            return output

        return forward

    @contextmanager
    def _silent(self) -> Iterator[None]:
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False


def together(off: float) -> int:
    """How many examples may be in memory together, where company moves a gradient by a share `off` of it; 1 or more."""
    return 1 + int(min(SHARE / off, MOST)) if off > 0 else MOST


def _room(each: int, device: str) -> int:
    """How many gradients of `each` bytes there is room for; a few at least, where they are not huge."""
    room = BYTES.get(device, BYTES["cpu"]) // each
    return max(1, room if room >= FEW else min(FEW, LARGE // each))


def norms(gradients: dict[str, Any]) -> Any:
    """float64 [n]: the L2 norm of each example's whole gradient; may be infinite or NaN.

    Row by row, and the rows in float64: one float32 sum over millions of squares comes out too small, by 0.4% at 50 million.
    """
    import torch

    parts = []
    for gradient in gradients.values():
        wide = {"dtype": torch.float64} if gradient.shape[-1] > WIDEST else {}
        rows = torch.linalg.vector_norm(gradient.flatten(1, -2) if gradient.dim() > 2 else gradient[:, None], dim=2, **wide)
        parts.append(torch.linalg.vector_norm(rows.double(), dim=1))
    return torch.linalg.vector_norm(torch.stack(parts), dim=0)


def add_clipped(total: Any, gradients: dict[str, Any], counted: Any, limit: float) -> Any:
    """Add each counted example's gradient, held to an L2 norm of `limit`, to `total`; returns the norms as they were.

    total: float64 [size], the parameters one after the other. counted: bool [n]. What is not finite is not added, nor what is
    longer than 1e30 limits, whose norm is given as infinite.
    """
    import torch

    found = norms(gradients)
    found = torch.where(found > FURTHEST * limit, math.inf, found)
    usable = torch.isfinite(found) & counted
    factors = torch.where(usable, (limit / found.clamp_min(limit)), torch.zeros_like(found)).float()
    lost = (~torch.isfinite(found)).nonzero().flatten()
    at = 0
    for gradient in gradients.values():
        if len(lost):
            gradient[lost] = 0.0  # zero times infinity is no number
        rows = gradient.flatten(1)
        for some, weights in zip(rows.split(ADDED), factors.split(ADDED), strict=True):
            total[at : at + rows.shape[1]] += torch.mv(some.t(), weights)
        at += rows.shape[1]
    return found


def _check(values: Any, n: int) -> None:
    if tuple(values.shape) != (n,):
        what = f"the losses of {n} examples came in the shape {tuple(values.shape)}"
        raise ConfigError(Problem(what, why="one loss an example is needed, none may be shared", fix="give a tensor [n]"))


def _unsupported(said: str, why: str) -> ConfigError:
    return ConfigError(Problem(f"per-example gradients cannot be told for {said}", why=why, fix=OUT))


def _detached(value: Any) -> Any:
    return value.detach() if hasattr(value, "detach") else value
