"""Subcommands that inspect an experiment, or measure saved features and models."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .parser import Commands, at_least, json_text, option, path


def plan(config: Path | None, config_json: Any) -> str:
    """Print the cost of a config, given as a file or as its content."""
    from ..experiment.config import check_config, load_config
    from ..experiment.plan import plan

    return plan(load_config(config) if config_json is None else check_config(config_json))


def check_gpu(config: Path, **options: Any) -> str:
    """Check and time this machine's GPU."""
    from ..experiment.config import load_config
    from ..inspect.check_gpu import check_gpu

    return check_gpu(load_config(config), **options)


def status(results: Path | None, config: Path | None) -> str:
    """Print the status of an experiment, given by its folder or by its config."""
    from ..experiment.config import load_config
    from ..inspect.status import status_text

    loaded = None if config is None else load_config(config)
    return status_text(results if loaded is None else Path(loaded.folder), loaded)


def statistics(output: Path | None, **arrays: Path | None) -> str:
    """Print every statistic of saved features."""
    from ..collapse.saved_features import measure_files

    return _result(measure_files, output, arrays)


def measure(output: Path | None, **options: Any) -> str:
    """Print every statistic of a saved model."""
    from ..collapse.saved_model import measure_saved_model

    return _result(measure_saved_model, output, options)


def _result(measure: Callable[..., Any], output: Path | None, options: dict[str, Any]) -> str:
    """Print a result as text, and write it as a table to the file `output`."""
    from ..collapse.saved_features import check_table_path, write_result

    if output is not None:
        check_table_path(output)
    result = measure(**options)
    if output is not None:
        write_result(result, output)
    return str(result)


def numbers(text: str) -> list[float]:
    """An argument of comma-separated numbers."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"is not comma-separated numbers: {text!r}") from None


EXPERIMENT = (
    option(
        "results", type=Path, nargs="?", metavar="RESULTS", help="a folder such as results/paper"
    ),
    path("config", "a config file; also counts jobs that have not started", required=False),
)


def add_to(cli: Commands) -> None:
    """Add these subcommands."""
    cli.group("inspection")
    cli.add(
        "plan", "print the cost of a config before it starts", plan,
        one_of=(
            path("config", "a config file", required=False),
            option("--config-json", type=json_text, metavar="JSON", help="a config"),
        ),
    )  # fmt: skip
    cli.add(
        "check-gpu", "check and time this machine's GPU; print recommended settings", check_gpu,
        path("config", "a config file, whose networks are timed (default: config.yaml)",
             required=False, default=Path("config.yaml")),
        option("--quick", action="store_true", help="each network once: a minute instead of four"),
        path("output", "the JSON file to write (default: results/check-gpu.json)", required=False),
    )  # fmt: skip
    cli.add(
        "status", "print finished, running and failed jobs, and the remaining time", status,
        one_of=EXPERIMENT,
    )  # fmt: skip
    cli.add(
        "watch", "show a running experiment, refreshed until it is done", "inspect.watch:watch",
        option("--interval", type=at_least(1), default=2, metavar="SECONDS",
               help="seconds between two refreshes (default: 2)"),
        one_of=EXPERIMENT,
    )  # fmt: skip
    cli.add(
        "show", "plot a training as text: loss, error, NC1 to NC4", "inspect.curves:show",
        option("path", type=Path, metavar="PATH",
               help="folder of a run, of an experiment or of tables"),
        option("--dataset", metavar="NAME", help="only trainings of this dataset"),
        option("--architecture", metavar="NAME", help="only trainings of this architecture"),
        option("--seed", type=int, metavar="N", help="only trainings of this seed"),
        option("--width", type=at_least(1), metavar="N",
               help="characters per line (default: the terminal's)"),
    )  # fmt: skip
    _add_own_model(cli)


def _add_own_model(cli: Commands) -> None:
    array = "a .npy, .npz, .pt, .safetensors, .csv or .parquet file"
    cli.group("your own model")
    cli.add(
        "statistics", "print every statistic of saved features", statistics,
        path("features", f"(N, d), the input of the last linear layer: {array}"),
        path("labels", f"(N,), classes from 0: {array}"),
        path("classifier", f"(C, d), the last layer's weight, for NC3, NC4 and all else of the "
             f"classifier: {array}", required=False),
        path("bias", f"(C,), its bias: {array}", required=False),
        path("test-features", f"(M, d), features of a test set, also measured: {array}",
             required=False),
        path("test-labels", f"(M,), labels of the test set: {array}", required=False),
        path("output", "also write the table to a .parquet or .csv file", required=False),
    )  # fmt: skip
    cli.add(
        "measure", "print every statistic of a saved model on your images", measure,
        option("--model", required=True, metavar="MODEL",
               help="torchvision:NAME, or MODULE:FUNCTION of your own code"),
        path("weights", "state dict of the model: a .safetensors or torch file "
             "(default: initial weights for torchvision, those of your function otherwise)",
             required=False),
        path("data", "a folder with train/<class>/ and test/<class>/ or val/<class>/, or a .npz "
             "file with train_images, train_labels, test_images and test_labels"),
        option("--layer", metavar="NAME",
               help="layer whose input is measured (default: the last nn.Linear)"),
        option("--mean", type=numbers, metavar="M,M,M",
               help="mean per channel of pixels scaled to 0..1 (default for torchvision: "
                    "ImageNet's)"),
        option("--std", type=numbers, metavar="S,S,S", help="standard deviation, likewise"),
        option("--resize-px", type=at_least(1), metavar="PX", help="resize the shorter side"),
        option("--crop-px", type=at_least(1), metavar="PX", help="then crop the centre square"),
        option("--batch-size", type=at_least(1), default=100, metavar="N",
               help="images per batch (default: 100)"),
        option("--device", default="cpu",
               help="device of the model: cpu, cuda or mps (default: cpu)"),
        option("--pool", choices=("mean", "flatten"), help="how feature maps become vectors"),
        path("output", "also write the table to a .parquet or .csv file", required=False),
    )  # fmt: skip
