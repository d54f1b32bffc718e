# SPDX-License-Identifier: Apache-2.0
"""Per-example gradients of one call of one layer, from what went in and the gradient of what came out.

Linear maps, embeddings and norms are written here, straight into kept buffers; a layer that Opacus has a sampler for goes
through its registry; any other layer is run again, one example at a time. The weight of an embedding's padding place has no
gradient, as in autograd. Whether a rule fits the layer it was chosen for is not trusted: `trial` compares every one with
autograd on the model that is to be trained. What voids the guarantee: a rule that gives one example a share of another's
gradient, which is what the trial looks for.

Shapes: n examples; what has n T rows is taken as n blocks of T; what has one row (positions, say) belongs to every example.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

Call = tuple[tuple[Any, ...], Mapping[str, Any]]  # arguments of the layer's forward
OUT = "train LoRA adapters on its linear layers instead of these parameters, or give another model"


class MixedRowsError(Exception):
    """A layer does not keep the examples apart."""


class Slots:
    """Where the per-example gradients of n examples go: float32 [n, *shape] a trained parameter, by id.

    fresh: the ids of those not written to yet; what was written to before (tied weights, a layer called twice) is added to.
    """

    def __init__(self, n: int, buffers: Mapping[int, Any]) -> None:
        self.n, self._buffers, self.fresh = n, buffers, set(buffers)

    def __contains__(self, parameter: Any) -> bool:
        return id(parameter) in self._buffers

    def blocks(self, tensor: Any) -> Any:
        """[n, ...] of what has n rows, n T rows, or one row for all. Raises MixedRowsError for anything else."""
        rows = tensor.shape[0] if tensor.dim() else 0
        if rows == self.n:
            return tensor
        if rows == 1:
            return tensor.expand(self.n, *tensor.shape[1:])
        if not rows or rows % self.n:
            raise MixedRowsError(f"it was called with {rows} rows for {self.n} examples")
        return tensor.reshape(self.n, rows // self.n, *tensor.shape[1:])

    def put(self, parameter: Any, value: Any) -> None:
        """value: [n, *shape]."""
        buffer = self._buffers[id(parameter)]
        if id(parameter) in self.fresh:
            self.fresh.discard(id(parameter))
            buffer.copy_(value)
        else:
            buffer.add_(value)

    def product(self, parameter: Any, left: Any, right: Any) -> None:
        """The matrix products left @ right of [n, a, T] and [n, T, b]."""
        import torch

        buffer = self._buffers[id(parameter)]
        left, right = left.to(buffer.dtype), right.to(buffer.dtype)
        if id(parameter) in self.fresh:
            self.fresh.discard(id(parameter))
            torch.bmm(left, right, out=buffer)
        else:
            buffer.baddbmm_(left, right)

    def rows(self, parameter: Any, places: Any, values: Any) -> None:
        """Values [n, T, d] are added to the rows `places` [n, T]."""
        import torch

        buffer = self._buffers[id(parameter)]
        if id(parameter) in self.fresh:
            self.fresh.discard(id(parameter))
            buffer.zero_()
        height = buffer.shape[1]
        at = places + torch.arange(self.n, device=places.device).unsqueeze(1) * height
        buffer.view(self.n * height, -1).index_add_(0, at.reshape(-1), values.reshape(at.numel(), -1).to(buffer.dtype))


Rule = Callable[[Any, Call, Any, Slots], None]  # layer, its arguments, gradient of its output


def rule_for(layer: Any) -> Rule:
    """The rule by which a layer's own parameters get their gradients."""
    from torch import nn

    forward, name = type(layer).forward, type(layer).__name__
    if forward is nn.Linear.forward:
        return _linear
    if forward is nn.Embedding.forward and layer.max_norm is None and not layer.scale_grad_by_freq:
        return _embedding
    if forward is nn.LayerNorm.forward:
        return _layer_norm
    if name == "Conv1D" and hasattr(layer, "nf") and hasattr(layer, "nx"):
        return _transposed
    if name.endswith("RMSNorm") and hasattr(layer, "variance_epsilon"):
        return _rms_norm
    return _opacus if type(layer) in _registry() else _one_by_one


def _linear(layer: Any, call: Call, gradient: Any, slots: Slots) -> None:
    gradient = _tokens(slots.blocks(gradient))
    if layer.weight in slots:
        slots.product(layer.weight, gradient.transpose(1, 2), _tokens(slots.blocks(_first(call))))
    if layer.bias in slots:
        slots.put(layer.bias, gradient.float().sum(1))


def _transposed(layer: Any, call: Call, gradient: Any, slots: Slots) -> None:
    """transformers' Conv1D: a linear map whose weight is [in, out]."""
    gradient = _tokens(slots.blocks(gradient))
    if layer.weight in slots:
        slots.product(layer.weight, _tokens(slots.blocks(_first(call))).transpose(1, 2), gradient)
    if layer.bias in slots:
        slots.put(layer.bias, gradient.float().sum(1))


def _embedding(layer: Any, call: Call, gradient: Any, slots: Slots) -> None:
    gradient = _tokens(slots.blocks(gradient))
    places = slots.blocks(_first(call)).reshape(slots.n, -1)
    if layer.padding_idx is not None:
        gradient = gradient * (places != layer.padding_idx).unsqueeze(-1)
    slots.rows(layer.weight, places, gradient)


def _layer_norm(layer: Any, call: Call, gradient: Any, slots: Slots) -> None:
    from torch.nn import functional

    if layer.weight in slots:
        normed = functional.layer_norm(_first(call).float(), layer.normalized_shape, eps=layer.eps)
        slots.put(layer.weight, _summed(gradient * normed, layer.weight, slots))
    if layer.bias in slots:
        slots.put(layer.bias, _summed(gradient.float(), layer.bias, slots))


def _rms_norm(layer: Any, call: Call, gradient: Any, slots: Slots) -> None:
    from torch.nn import functional

    inputs = _first(call).float()
    normed = functional.rms_norm(inputs, inputs.shape[-1:], eps=layer.variance_epsilon)
    slots.put(layer.weight, _summed(gradient * normed, layer.weight, slots))


def _opacus(layer: Any, call: Call, gradient: Any, slots: Slots) -> None:
    """A layer that Opacus knows. Its samplers ask the parameters whether they are trained."""
    own = [p for p in layer.parameters(recurse=False) if p in slots]
    for parameter in own:
        parameter.requires_grad_(True)
    try:
        given = _registry()[type(layer)](layer, [slots.blocks(t) for t in call[0]], slots.blocks(gradient))
    finally:
        for parameter in own:
            parameter.requires_grad_(False)
    for parameter in own:
        slots.put(parameter, given[parameter])


def _one_by_one(layer: Any, call: Call, gradient: Any, slots: Slots) -> None:
    """Run the layer again for one example after the other, and differentiate by its own parameters."""
    import torch

    own = {name: p for name, p in layer.named_parameters(recurse=False) if p in slots}
    gradient, rows = slots.blocks(gradient), []
    for i in range(slots.n):
        leaves = {name: p.detach().clone().requires_grad_(True) for name, p in own.items()}
        args, options = [_one(v, i, slots.n) for v in call[0]], {k: _one(v, i, slots.n) for k, v in call[1].items()}
        with torch.enable_grad():
            output = torch.func.functional_call(layer, leaves, tuple(args), options)
        given = torch.autograd.grad(output, list(leaves.values()), gradient[i].reshape(output.shape), allow_unused=True)
        rows.append([torch.zeros_like(p) if g is None else g for p, g in zip(own.values(), given, strict=True)])
    for parameter, values in zip(own.values(), zip(*rows, strict=True), strict=True):
        slots.put(parameter, torch.stack(values))


def _one(value: Any, i: int, n: int) -> Any:
    """The part of an argument that is example i's; what has no row an example is everybody's."""
    import torch

    if not isinstance(value, torch.Tensor) or not value.dim() or value.shape[0] == 1 or value.shape[0] % n:
        return value
    each = value.shape[0] // n
    return value[i * each : (i + 1) * each]


def _first(call: Call) -> Any:
    """The layer's input, however it was passed."""
    return call[0][0] if call[0] else next(iter(call[1].values()))


def _tokens(tensor: Any) -> Any:
    """[n, ..., d] as [n, T, d]."""
    return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1])


def _summed(tensor: Any, parameter: Any, slots: Slots) -> Any:
    """[n, ..., *shape] summed to [n, *shape]."""
    return slots.blocks(tensor).reshape(slots.n, -1, *parameter.shape).sum(1)


@functools.lru_cache(maxsize=1)
def _registry() -> Mapping[type, Any]:
    """Opacus's samplers: layer class -> function."""
    try:
        from opacus.grad_sample import GradSampleModule
    except ImportError:
        return {}
    return dict(GradSampleModule.GRAD_SAMPLERS)
