"""Subcommands that look at an experiment, or measure saved features of any model."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .parser import Commands, at_least, json_text, option, path


def plan(config: Path | None, config_json: Any) -> str:
    """What a config, given as a file or as its content, will cost."""
    from ..experiment.config import check_config, load_config
    from ..experiment.plan import plan

    return plan(load_config(config) if config_json is None else check_config(config_json))


def check_gpu(config: Path, **options: Any) -> str:
    """Whether this machine's GPU is right, and how fast."""
    from ..experiment.config import load_config
    from ..inspect.check_gpu import check_gpu

    return check_gpu(load_config(config), **options)


def status(results: Path | None, config: Path | None) -> str:
    """How far an experiment is, given by its folder or by its config."""
    from ..experiment.config import load_config
    from ..inspect.status import status_text

    loaded = None if config is None else load_config(config)
    return status_text(results if loaded is None else Path(loaded.folder), loaded)


def statistics(output: Path | None, **arrays: Path | None) -> str:
    """NC1 to NC4 of saved features."""
    from ..collapse.saved_features import measure_files

    return _result(measure_files, output, arrays)


def measure(output: Path | None, **options: Any) -> str:
    """NC1 to NC4 of a saved model."""
    from ..collapse.saved_model import measure_saved_model

    return _result(measure_saved_model, output, options)


def _result(measure: Callable[..., Any], output: Path | None, options: dict[str, Any]) -> str:
    """A result as text, and as a table in the file `output`."""
    from ..collapse.saved_features import check_table_path, write_result

    if output is not None:
        check_table_path(output)
    result = measure(**options)
    if output is not None:
        write_result(result, output)
    return str(result)


def numbers(text: str) -> list[float]:
    """An argument of numbers, with commas between."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"is not numbers with commas between: {text!r}") from None


EXPERIMENT = (
    option(
        "results",
        type=Path,
        nargs="?",
        metavar="RESULTS",
        help="a folder such as results/paper",
    ),
    option(
        "--config",
        type=Path,
        metavar="PATH",
        help="a config file; counts what was not begun, too",
    ),
)


def add_to(cli: Commands) -> None:
    """Add these subcommands."""
    cli.group("look")
    cli.add(
        "plan", "say what a config will cost before it starts", plan,
        one_of=(
            option("--config", type=Path, metavar="PATH", help="a config file"),
            option("--config-json", type=json_text, help="a config, as JSON"),
        ),
    )  # fmt: skip
    cli.add(
        "check-gpu", "check and time this machine's GPU; say what to set for it", check_gpu,
        option("--config", type=Path, default=Path("config.yaml"), metavar="PATH",
               help="a config file, whose networks are timed; by default config.yaml"),
        option("--quick", action="store_true", help="each network once: a minute instead of four"),
        path("output", "the JSON file to write; by default results/check-gpu.json", required=False),
    )  # fmt: skip
    cli.add(
        "status", "what is done, running or failed, and the time left", status,
        one_of=EXPERIMENT,
    )  # fmt: skip
    cli.add(
        "watch", "an experiment while it runs, redrawn until it is done", "inspect.watch:watch",
        option("--interval", type=at_least(1), default=2, metavar="SECONDS",
               help="between two looks"),
        one_of=EXPERIMENT,
    )  # fmt: skip
    cli.add(
        "show", "a training's curves as text: loss, error, NC1 to NC4", "inspect.curves:show",
        option("path", type=Path, metavar="PATH",
               help="a run's folder, an experiment's, or of tables"),
        option("--dataset", metavar="NAME", help="trainings of this dataset alone"),
        option("--architecture", metavar="NAME", help="trainings of this architecture alone"),
        option("--seed", type=int, metavar="N", help="trainings of this seed alone"),
        option("--width", type=at_least(1), help="characters a line; by default the terminal's"),
    )  # fmt: skip
    _add_own_model(cli)


def _add_own_model(cli: Commands) -> None:
    array = "a .npy, .npz, .pt, .safetensors, .csv or .parquet file"
    cli.group("your own model")
    cli.add(
        "statistics", "NC1 to NC4 of features that you have saved", statistics,
        path("features", f"(N, d), the input of the last linear layer: {array}"),
        path("labels", f"(N,), classes from 0: {array}"),
        path("classifier", f"(C, d), the last layer's weight: {array}"),
        path("bias", f"(C,), its bias: {array}", required=False),
        path("test-features", "measures a test set as well", required=False),
        path("test-labels", f"their labels: {array}", required=False),
        path("output", "write the table as .parquet or .csv", required=False),
    )  # fmt: skip
    cli.add(
        "measure", "NC1 to NC4 of a saved model on your images", measure,
        option("--model", required=True, metavar="MODEL",
               help="torchvision:NAME, or MODULE:FUNCTION of your own code"),
        path("weights", "its state dict, .safetensors or a torch file", required=False),
        path("data", "a folder with train/ and test/ or val/, or a .npz file"),
        option("--layer", metavar="NAME",
               help="measure this layer's input; by default the last nn.Linear's"),
        option("--mean", type=numbers, metavar="M,M,M",
               help="of pixels scaled to 0..1; ImageNet's by default for torchvision's models"),
        option("--std", type=numbers, metavar="S,S,S", help="likewise"),
        option("--resize-px", type=at_least(1), metavar="PX", help="a folder's images: short side"),
        option("--crop-px", type=at_least(1), metavar="PX", help="then the centre square"),
        option("--batch-size", type=at_least(1), default=100, metavar="N", help="images at a time"),
        option("--device", default="cpu", help="where the model runs: cpu, cuda, mps"),
        option("--pool", choices=("mean", "flatten"), help="how feature maps become vectors"),
        path("output", "write the table as .parquet or .csv", required=False),
    )  # fmt: skip
