"""The optimisers that a recipe names: SGD and Adam, with coupled or decoupled weight decay.

They call the kernels of ``torch.optim``'s fused optimisers, hence the same bits; torch.optim itself
takes three seconds to start, since its first use loads torch's compiler.
"""

from __future__ import annotations

import torch
from torch import nn

from .recipe import TrainingRecipe


class Optimiser:
    """The recipe's optimiser for all parameters of a network.

    Every parameter decays, batch normalisation's and biases included, as in the authors' notebook.
    One without a gradient takes no step: user-defined networks may have frozen or unused ones.

    SGD has momentum, no Nesterov. Coupled decay, the paper's: g = grad + weight_decay * w;
    v = momentum * v + g; w = w - learning_rate * v. Decoupled, SGDW: w first shrinks to
    (1 - learning_rate * weight_decay) * w, and g = grad (Loshchilov and Hutter 2019,
    arXiv:1711.05101, with the current learning rate as the schedule).

    Adam (Kingma and Ba 2015, arXiv:1412.6980) has bias correction, no AMSGrad; after t steps
    m = b1 * m + (1 - b1) * g;  u = b2 * u + (1 - b2) * g^2;
    w = w - learning_rate * (m / (1 - b1^t)) / (sqrt(u / (1 - b2^t)) + epsilon).
    Decoupled it is AdamW, which shrinks w as SGDW does.
    """

    def __init__(self, training: TrainingRecipe, network: nn.Module):
        self.training = training
        name = training.optimizer.name
        self.adam, self.decoupled = name.startswith("adam"), name.endswith("w")
        self.named = dict(network.named_parameters())
        self.parameters = list(self.named.values())
        # Zeros make SGD's first step v = g, as torch.optim's does.
        self.kept = {
            kind: [
                torch.zeros_like(parameter, memory_format=torch.preserve_format)
                for parameter in self.parameters
            ]
            for kind in (("adam_mean", "adam_square") if self.adam else ("momentum",))
        }
        # Of each parameter, as in torch.optim.
        self.adam_steps = torch.zeros(len(self.parameters), device=self.parameters[0].device)

    @torch.no_grad()
    def step(self, learning_rate: float | torch.Tensor) -> None:
        """Update every parameter from its gradient, and clear the gradients.

        learning_rate: a number, or a float32 tensor () on the parameters' device.
        """
        used = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        parameters = [self.parameters[i] for i in used]
        gradients = [parameter.grad for parameter in parameters]
        kept = [[tensors[i] for i in used] for tensors in self.kept.values()]
        decay = self.training.weight_decay
        if self.adam:
            update = torch._fused_adamw_ if self.decoupled else torch._fused_adam_
            beta1, beta2 = self.training.optimizer.betas
            steps = [self.adam_steps[i] for i in used]
            torch._foreach_add_(steps, 1)
            update(
                parameters,
                gradients,
                *kept,
                [],
                steps,
                lr=learning_rate,
                beta1=beta1,
                beta2=beta2,
                weight_decay=decay,
                eps=self.training.optimizer.epsilon,
                amsgrad=False,
                maximize=False,
            )
        else:
            if self.decoupled:
                torch._foreach_mul_(parameters, 1 - learning_rate * decay)
            torch._fused_sgd_(
                parameters,
                gradients,
                kept[0] if self.training.momentum else [],
                weight_decay=0.0 if self.decoupled else decay,
                momentum=self.training.momentum,
                lr=learning_rate,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> dict[str, torch.Tensor]:
        """All that the next step depends on besides weights and gradients, by name; the tensors
        themselves, so that copying into them restores it."""
        state = {
            f"{kind}.{name}": tensor
            for kind, tensors in self.kept.items()
            for name, tensor in zip(self.named, tensors, strict=True)
        }
        return state | {"adam_steps": self.adam_steps} if self.adam else state
