"""The interface of all networks for the training loop and the statistics."""

from abc import abstractmethod

from torch import Tensor, nn


class Network(nn.Module):
    """A classifier whose last step is linear: logits = W h + b.

    Shapes: B images in a batch, C channels, P px high and wide, d features, K classes.
    """

    classifier: nn.Linear
    """The last layer, d -> K; its weight is W (K, d), its bias b (K)."""

    def normed_convolutions(self) -> list[tuple[str, str]]:
        """Names of convolutions and of the norms that alone see their outputs."""
        return []

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Activations h of the images ``x``, (B, C, P, P) -> (B, d): what the classifier sees."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the images ``x``, (B, C, P, P) -> (B, K)."""
        return self.classifier(self.features(x))


def mean_over_image(x: Tensor) -> Tensor:
    """(B, C, P, P) -> (B, C), pooled over the image as adaptive average pooling to 1 px.

    By way of the pixels' own axis, so that the gradient is channels-last, as this project's maps
    are. Pooling's is not, and what mixes the two is many times slower.
    """
    return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)
