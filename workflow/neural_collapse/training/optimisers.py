"""Stochastic gradient descent with momentum and coupled weight decay, as in the paper."""

from __future__ import annotations

import torch
from torch import nn


class SGD:
    """g = grad + weight_decay * w;  v = momentum * v + g;  w = w - learning_rate * v.

    The same kernel that ``torch.optim.SGD(fused=True)`` calls, hence the same bits; but
    torch.optim takes three seconds to start, since its first use loads torch's compiler.

    network: every parameter of it is trained, batch normalisation's and biases included, as in
    the authors' notebook. `momentum_buffers` are by the parameters' names.
    """

    def __init__(self, network: nn.Module, momentum: float, weight_decay: float):
        self.momentum, self.weight_decay = momentum, weight_decay
        named = dict(network.named_parameters())
        self.parameters = list(named.values())
        # Zeros make the first step v = g, as torch.optim's does.
        self.momentum_buffers = {
            name: torch.zeros_like(parameter, memory_format=torch.preserve_format)
            for name, parameter in named.items()
        }
        self._buffers = list(self.momentum_buffers.values())

    @torch.no_grad()
    def step(self, learning_rate: float | torch.Tensor) -> None:
        """Update every parameter from its gradient, and forget the gradients.

        learning_rate: a number, or a float32 tensor () on the parameters' device.
        """
        # Of a user-defined network some parameters may be frozen or unused.
        used = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        torch._fused_sgd_(
            [self.parameters[i] for i in used],
            [self.parameters[i].grad for i in used],
            [self._buffers[i] for i in used] if self.momentum else [],
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )
        for parameter in self.parameters:
            parameter.grad = None
