"""Outputs of inner layers, collected by hooks while the network computes its features."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..io.errors import UserError

INPUT = "input"
"""Name of the images in a list of layers."""
Pool = Literal["mean", "flatten"]
LISTED = 40
"""Maximum number of names in an error message."""


def layer_names(network: nn.Module) -> list[str]:
    """Names of the layers that can be measured, in the order in which the network holds them."""
    modules = [name for name, _ in network.named_modules() if name not in ("", "classifier")]
    return [INPUT, *modules]


class LayerOutputs:
    """A context manager that collects the outputs of chosen layers during a forward pass, as rows.

    Args:
        names: names of modules, or :data:`INPUT` for the images.
        pool: how a feature map (B, d, H, W) becomes rows: "mean" over the image, or "flatten".
            Images are always flattened.

    Raises:
        UserError: the network has no such layer, or the layer has no single output.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], pool: Pool = "mean"):
        known = layer_names(network)
        for name in names:
            if name not in known:
                outer = sorted(known, key=lambda layer: layer.count("."))[:LISTED]
                more = f" and {len(known) - LISTED} more" * (len(known) > LISTED)
                raise UserError(
                    f"measurement.layers: the network has no layer {name!r}; it has "
                    f"{', '.join(outer)}{more}"
                )
        self.network, self.names, self.pool = network, tuple(names), pool
        self._taken: dict[str, Tensor] = {}
        self._hooks = ExitStack()

    def __enter__(self) -> LayerOutputs:
        for name in self.names:
            if name != INPUT:
                module = self.network.get_submodule(name)
                self._hooks.callback(module.register_forward_hook(self._hook(name)).remove)
        return self

    def __exit__(self, *_: Any) -> None:
        self._hooks.close()

    def _hook(self, name: str):
        def take(module: nn.Module, _: Any, output: Any) -> None:
            if name in self._taken:
                raise UserError(
                    f"measurement.layers: the network uses the layer {name!r} more than once in a "
                    "pass, so it has no single output; choose another"
                )
            if not isinstance(output, Tensor) or output.ndim not in (2, 4):
                found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise UserError(
                    f"measurement.layers: the layer {name!r} gives {found}, neither rows (B, d) "
                    "nor maps (B, d, height, width); choose another"
                )
            pooled = output.ndim == 4 and self.pool == "mean"
            # A copy, since a layer that works in place may follow.
            self._taken[name] = (output.mean((2, 3)) if pooled else output.flatten(1)).clone()

        return take

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features of images (B, C, P, P), and (B, d) of each layer in the order of `names`."""
        self._taken = {}
        features = self.network.features(images)
        unused = [name for name in self.names if name not in self._taken and name != INPUT]
        if unused:
            raise UserError(
                f"measurement.layers: the network does not call the layer {unused[0]!r} as a "
                "module when it computes its features; choose another"
            )
        taken = self._taken | {INPUT: images.flatten(1)}
        self._taken = {}
        return features, [taken[name] for name in self.names]


@torch.inference_mode()
def layer_dimensions(
    network: nn.Module, names: Sequence[str], pool: Pool, image_shape: Sequence[int]
) -> list[int]:
    """The dimension d of each layer for images (C, P, P).

    The network must be in eval mode; it may be on any device, including meta.

    Raises:
        UserError: a layer cannot be measured.
    """
    device = next(network.parameters()).device
    with LayerOutputs(network, names, pool) as outputs:
        _, rows = outputs.features(torch.zeros(1, *image_shape, device=device))
    return [row.shape[1] for row in rows]
