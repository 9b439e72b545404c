"""Datasets: fetched and checked, then decoded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...data.download import download_dataset
from ...data.prepare import prepare_dataset
from ...data.recipe import DataRecipe
from ...data.registry import CustomDataset
from ...io.progress import Amounts
from ..messages import parse_model


def _custom_dataset(values: Any) -> CustomDataset | None:
    return None if values is None else parse_model(CustomDataset, values, "--custom")


def download(dataset: str, output_folder: Path, custom: Any, **sources: Any) -> None:
    """Fetch a dataset's files and check them."""
    progress = Amounts(dataset, unit="MB", divisor=1e6)
    download_dataset(
        dataset, output_folder, custom=_custom_dataset(custom), progress=progress, **sources
    )


def prepare(
    dataset: str, raw_folder: Path, output_folder: Path, data_recipe: Any, custom: Any, workers: int
) -> None:
    """Decode, balance and pad a dataset once."""
    prepare_dataset(
        dataset,
        raw_folder,
        output_folder,
        parse_model(DataRecipe, data_recipe, "--data-recipe"),
        custom=_custom_dataset(custom),
        workers=workers,
        progress=Amounts(dataset),
    )
