"""Closed form of the sum of the classifier's rows during training, independent of the data.

The gradient of a loss of softmax(z) with respect to the logits z sums to zero over the classes, so
the gradient of the last layer's weight W (C, d) does not change s = W^T 1; only weight decay does.
"""

from __future__ import annotations

import numpy as np

from .recipe import TrainingRecipe

SOFTMAX_LOSSES = frozenset({"cross_entropy", "label_smoothing", "focal"})


def sum_of_rows_factors(
    training: TrainingRecipe, learning_rate: float, examples: int
) -> list[float] | None:
    """s(epoch) / s(0) after each epoch, starting with epoch 0, with s = W^T 1.

    With `sgd`, momentum beta, coupled decay lambda and learning rate eta, each step is
    v <- beta v + lambda s, s <- s - eta v, from v = 0 (after Zhao et al. 2026, arXiv:2602.16642);
    with `sgdw` it is s <- (1 - eta lambda) s.

    Args:
        training: the recipe.
        learning_rate: the initial learning rate.
        examples: size of the train set.

    Returns:
        epochs + 1 factors; None for MSE, which is not a function of softmax(z), and for Adam, whose
        step is not linear in the gradient.
    """
    name = training.optimizer.name
    if name not in ("sgd", "sgdw") or training.loss not in SOFTMAX_LOSSES:
        return None
    steps, decay, momentum = training.steps(examples), training.weight_decay, training.momentum
    state, factors = np.array([0.0, 1.0]), [1.0]
    for epoch in range(1, training.epochs + 1):
        rate = training.learning_rate_at(learning_rate, epoch)
        if name == "sgd":
            step = np.array([[momentum, decay], [-rate * momentum, 1 - rate * decay]])
        else:
            step = np.array([[0.0, 0.0], [0.0, 1 - rate * decay]])
        state = np.linalg.matrix_power(step, steps) @ state
        factors.append(float(state[1]))
    return factors
