"""The interface of all networks for the training loop and the statistics."""

from abc import abstractmethod

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """A classifier whose last step is linear: logits = W h + b.

    Shapes: B images in a batch, C channels, P px high and wide, d features, K classes.
    """

    classifier: nn.Linear
    """The last layer, d -> K, with weight W (K, d) and bias b (K,)."""
    memory_format = torch.channels_last
    """The layout of its weights while it computes, in which it is fastest."""

    def normed_convolutions(self) -> list[tuple[str, str]]:
        """Pairs of names: a convolution, and the batch normalisation that is the only consumer of
        its output."""
        return []

    def learns_classifier(self) -> bool:
        """Whether the classifier's weight is trained, and is a parameter of no other layer; that of
        a weight norm is computed."""
        weight = self.classifier._parameters.get("weight")
        holders = [m for m in self.modules() if any(p is weight for p in m._parameters.values())]
        return weight is not None and weight.requires_grad and holders == [self.classifier]

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Features h of the images ``x``, the input of the classifier: (B, C, P, P) -> (B, d)."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the images ``x``, (B, C, P, P) -> (B, K)."""
        return self.classifier(self.features(x))


def mean_over_image(x: Tensor) -> Tensor:
    """(B, C, P, P) -> (B, C), the same as adaptive average pooling to 1 px.

    The permutation makes the gradient channels-last, like the feature maps; that of torch's pooling
    is not, and mixing the two layouts is many times slower.
    """
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)
