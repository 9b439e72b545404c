"""The optimisers that a recipe names: SGD and Adam, with coupled or decoupled weight decay.

They call the kernels of ``torch.optim``'s fused optimisers, hence the same bits; torch.optim itself
takes three seconds to start, since its first use loads torch's compiler. Every parameter of a
network is trained and decays, batch normalisation's and biases included, as in the authors'
notebook.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from .recipe import TrainingRecipe


class Optimiser(Protocol):
    """What a training asks of an optimiser."""

    def step(self, learning_rate: float | torch.Tensor) -> None:
        """Update every parameter from its gradient, and forget the gradients.

        learning_rate: a number, or a float32 tensor () on the parameters' device.
        """

    def state(self) -> dict[str, torch.Tensor]:
        """All that the next step depends on besides weights and gradients, by name; the tensors
        themselves, so that copying into them restores it."""


class _Parameters:
    """A network's parameters, and what an optimiser keeps for each of them."""

    def __init__(self, network: nn.Module):
        self.named = dict(network.named_parameters())
        self.parameters = list(self.named.values())

    def zeros(self) -> dict[str, torch.Tensor]:
        """A zero tensor for each parameter, by its name, laid out as it is."""
        return {
            name: torch.zeros_like(parameter, memory_format=torch.preserve_format)
            for name, parameter in self.named.items()
        }

    def used(self) -> list[int]:
        """Those with a gradient: a user-defined network may have frozen or unused ones."""
        return [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]

    def forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


class SGD:
    """Stochastic gradient descent with momentum, no Nesterov.

    Coupled decay, the paper's: g = grad + weight_decay * w;  v = momentum * v + g;
    w = w - learning_rate * v. Decoupled, SGDW (Loshchilov and Hutter 2019, arXiv:1711.05101, with
    the learning rate of the moment as the schedule): w = (1 - learning_rate * weight_decay) * w,
    then the same with g = grad.

    network: whose parameters are trained. `momentum_buffers`, v, are by the parameters' names.
    """

    def __init__(
        self, network: nn.Module, momentum: float, weight_decay: float, decoupled: bool = False
    ):
        self.momentum, self.weight_decay, self.decoupled = momentum, weight_decay, decoupled
        self._of = _Parameters(network)
        # Zeros make the first step v = g, as torch.optim's does.
        self.momentum_buffers = self._of.zeros()
        self._buffers = list(self.momentum_buffers.values())

    @torch.no_grad()
    def step(self, learning_rate: float | torch.Tensor) -> None:
        """See :class:`Optimiser`."""
        used = self._of.used()
        parameters = [self._of.parameters[i] for i in used]
        if self.decoupled:
            torch._foreach_mul_(parameters, 1 - learning_rate * self.weight_decay)
        torch._fused_sgd_(
            parameters,
            [parameter.grad for parameter in parameters],
            [self._buffers[i] for i in used] if self.momentum else [],
            weight_decay=0.0 if self.decoupled else self.weight_decay,
            momentum=self.momentum,
            lr=learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )
        self._of.forget_gradients()

    def state(self) -> dict[str, torch.Tensor]:
        """See :class:`Optimiser`."""
        return {f"momentum.{name}": buffer for name, buffer in self.momentum_buffers.items()}


class Adam:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) with bias correction, no AMSGrad.

    m = b1 * m + (1 - b1) * g;  u = b2 * u + (1 - b2) * g^2;
    w = w - learning_rate * (m / (1 - b1^t)) / (sqrt(u / (1 - b2^t)) + epsilon) after t steps.
    Coupled decay: g = grad + weight_decay * w. Decoupled, AdamW (Loshchilov and Hutter 2019,
    arXiv:1711.05101): w = (1 - learning_rate * weight_decay) * w first, and g = grad.

    network: whose parameters are trained; betas: (b1, b2).
    """

    def __init__(
        self,
        network: nn.Module,
        betas: tuple[float, float],
        epsilon: float,
        weight_decay: float,
        decoupled: bool = False,
    ):
        self.betas, self.epsilon, self.weight_decay = betas, epsilon, weight_decay
        self._update = torch._fused_adamw_ if decoupled else torch._fused_adam_
        self._of = _Parameters(network)
        self.moments = {"mean": self._of.zeros(), "square": self._of.zeros()}
        device = self._of.parameters[0].device
        # Of each parameter, as in torch.optim: one without a gradient takes no step.
        self.steps = torch.zeros(len(self._of.parameters), device=device)

    @torch.no_grad()
    def step(self, learning_rate: float | torch.Tensor) -> None:
        """See :class:`Optimiser`."""
        used = self._of.used()
        means, squares = (list(kept.values()) for kept in self.moments.values())
        steps = [self.steps[i] for i in used]
        torch._foreach_add_(steps, 1)
        self._update(
            [self._of.parameters[i] for i in used],
            [self._of.parameters[i].grad for i in used],
            [means[i] for i in used],
            [squares[i] for i in used],
            [],
            steps,
            lr=learning_rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.weight_decay,
            eps=self.epsilon,
            amsgrad=False,
            maximize=False,
        )
        self._of.forget_gradients()

    def state(self) -> dict[str, torch.Tensor]:
        """See :class:`Optimiser`."""
        state = {
            f"adam_{kind}.{name}": tensor
            for kind, kept in self.moments.items()
            for name, tensor in kept.items()
        }
        return state | {"adam_steps": self.steps}


def _sgd(decoupled: bool) -> Callable[[nn.Module, TrainingRecipe], Optimiser]:
    return lambda network, training: SGD(
        network, training.momentum, training.weight_decay, decoupled
    )


def _adam(decoupled: bool) -> Callable[[nn.Module, TrainingRecipe], Optimiser]:
    return lambda network, training: Adam(
        network,
        training.optimizer.betas,
        training.optimizer.epsilon,
        training.weight_decay,
        decoupled,
    )


OPTIMISERS: dict[str, Callable[[nn.Module, TrainingRecipe], Optimiser]] = {
    "sgd": _sgd(decoupled=False),
    "sgdw": _sgd(decoupled=True),
    "adam": _adam(decoupled=False),
    "adamw": _adam(decoupled=True),
}
"""How each optimiser that a recipe may name is made for a network."""


def optimiser_of(training: TrainingRecipe, network: nn.Module) -> Optimiser:
    """The recipe's optimiser for the parameters of a network."""
    return OPTIMISERS[training.optimizer.name](network, training)
