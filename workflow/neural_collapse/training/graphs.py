"""A whole training step as one CUDA graph, which launches hundreds of kernels at once.

It helps if a GPU waits for the CPU to launch kernels: narrow networks, small images.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import cuda

WARM_UP_STEPS = 3


class GraphedStep:
    """A step recorded once and replayed for every batch of the same shape.

    step: `step(inputs, labels, learning_rate)` -> loss; all its tensors on one GPU, the learning
    rate a tensor (). It must leave no gradients. state: what it changes, which recording leaves as
    it was.
    """

    def __init__(
        self,
        step: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
        state: Callable[[], dict[str, torch.Tensor]],
        inputs: torch.Tensor,
        labels: torch.Tensor,
    ):
        self.inputs, self.labels = inputs.clone(), labels.clone()
        self.learning_rate = torch.zeros((), device=inputs.device)
        before = {name: value.clone() for name, value in state().items()}
        # Libraries choose their kernels and set up their memory before anything is recorded.
        stream = cuda.Stream(inputs.device)
        stream.wait_stream(cuda.current_stream(inputs.device))
        with cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                step(self.inputs, self.labels, self.learning_rate)
            self.graph = cuda.CUDAGraph()
            # On the stream that warmed up, whose workspaces no other graph shares; other threads,
            # which read images, may go on. A recording that fails does not leave the stream itself.
            with cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
                self.loss = step(self.inputs, self.labels, self.learning_rate)
        cuda.current_stream(inputs.device).wait_stream(stream)
        for name, value in state().items():
            value.copy_(before[name])

    def fits(self, inputs: torch.Tensor) -> bool:
        """Whether it can be replayed for these inputs."""
        return inputs.shape == self.inputs.shape

    def __call__(
        self, inputs: torch.Tensor, labels: torch.Tensor, learning_rate: float
    ) -> torch.Tensor:
        """Take the step; its loss, good until the next call."""
        self.inputs.copy_(inputs)
        self.labels.copy_(labels)
        self.learning_rate.fill_(learning_rate)
        self.graph.replay()
        return self.loss
