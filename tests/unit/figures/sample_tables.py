"""Plausible tables for the tests: decaying curves with noise, no network behind them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd

from neural_collapse.collapse.projection import project_three_classes
from neural_collapse.figures import plot
from neural_collapse.results.tables import check_frame, empty_table, write_table

LABELS = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "svhn": "SVHN",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "stl10": "STL10",
    "imagenet": "ImageNet",
    "digits": "Digits",
    "mnist_subset": "MNIST subset",
    "vgg": "VGG",
    "resnet": "ResNet",
    "densenet": "DenseNet",
}
NETWORKS = {"vgg": "VGG11", "resnet": "ResNet18", "densenet": "DenseNet40"}
# start, end, share of the decay that is left to the terminal phase
SHAPES = {
    "nc1_within_class_variability": (30.0, 2e-3),
    "nc2_equinorm_means": (0.45, 0.03),
    "nc2_equinorm_classifier": (0.12, 0.02),
    "nc2_equiangularity_means": (0.5, 0.04),
    "nc2_equiangularity_classifier": (0.1, 0.03),
    "nc2_maximal_angle_means": (0.4, 0.03),
    "nc2_maximal_angle_classifier": (0.11, 0.04),
    "nc3_self_duality": (1.9, 0.05),
    "nc4_ncc_mismatch": (0.7, 0.004),
    "cdnv": (5.0, 1e-3),
    "network_accuracy": (0.1, 0.98),
    "ncc_accuracy": (0.2, 0.98),
}
DATASETS_2 = ("digits", "mnist_subset")
DATASETS_7 = ("mnist", "fashion_mnist", "svhn", "cifar10", "cifar100", "stl10", "imagenet")
ARCHITECTURES = ("vgg", "resnet", "densenet")

RUN = {
    "dataset": "mnist",
    "architecture": "resnet",
    "seed": 0,
    "dataset_label": "MNIST",
    "architecture_label": "ResNet",
    "network": "ResNet18",
    "learning_rate": 0.05,
    "learning_rate_origin": "pinned",
    "epochs": 350,
    "terminal_phase_accuracy": 0.999,
    "terminal_phase_epoch": 40,
    "diverged": False,
    "num_classes": 10,
    "train_examples": 50_000,
    "test_examples": 10_000,
}
"""A row of the table `runs`."""


def run_row(architecture, seed=0, recipe=None, **columns):
    row = RUN | {"architecture": architecture, "architecture_label": architecture, "seed": seed}
    return row | {"recipe": json.dumps(recipe or {})} | columns


def decay(epochs, start, end, last, generator, noise=0.12):
    progress = 1 - np.exp(-5 * np.asarray(epochs) / last)
    values = start * (end / start) ** (progress / progress.max())
    return values * np.exp(noise * generator.standard_normal(len(values)))


def make_tables(
    datasets=DATASETS_2,
    architectures=ARCHITECTURES,
    seeds=(0,),
    last=350,
    missing=(),
    without_terminal_phase=(),
):
    """{name: table} of measurements, runs, sweep and activations; `missing` cells are not run."""
    measured, runs, sweep, activations = [], [], [], []
    epochs = np.unique(np.r_[0, np.round(np.geomspace(1, last, min(50, last)))].astype(int))
    everything = np.arange(last + 1)
    for d, dataset in enumerate(datasets):
        for a, architecture in enumerate(architectures):
            if (dataset, architecture) in missing:
                continue
            cell = {"dataset": dataset, "architecture": architecture}
            for seed in seeds:
                generator = np.random.default_rng([d, a, seed])
                hardness = 1 + 1.2 * d
                for statistic, (start, end) in SHAPES.items():
                    for split, worse in [("train", 1.0), ("test", 3.0)]:
                        grows = end > start
                        values = decay(
                            epochs, start, end if grows else end * hardness * worse, last, generator
                        )
                        measured.append(_rows(cell, seed, epochs, split, statistic, values))
                robustness = (0.02 + 0.25 * (1 - np.exp(-3 * epochs / last))) / hardness
                measured.append(_rows(cell, seed, epochs, "test", "robustness", robustness))
                train = np.maximum(0.9 * np.exp(-everything / last * 16 / hardness**0.5) - 2e-4, 0)
                test = np.maximum(train, 0.02 * hardness) * np.exp(
                    0.02 * generator.standard_normal(last + 1)
                )
                for split, error in [("train", train), ("test", test)]:
                    measured.append(
                        _rows(cell, seed, everything, split, "error", np.minimum(error, 1))
                    )
                    measured.append(_rows(cell, seed, everything, split, "loss", 2.3 * error))
                reached = np.flatnonzero(1 - train >= 0.999)
                if cell_of(cell) in without_terminal_phase or not len(reached):
                    start_epoch = pd.NA
                else:
                    start_epoch = min(int(reached[0]) + 3 * int(seed), last)
                runs.append(
                    cell
                    | {
                        "seed": seed,
                        "dataset_label": LABELS.get(dataset, dataset),
                        "architecture_label": LABELS.get(architecture, architecture),
                        "network": NETWORKS.get(architecture, architecture),
                        "learning_rate": 0.05,
                        "learning_rate_origin": "sweep" if a else "pinned",
                        "epochs": last,
                        "terminal_phase_accuracy": 0.999,
                        "terminal_phase_epoch": start_epoch,
                        "diverged": False,
                        "num_classes": 10,
                        "train_examples": 1500,
                        "test_examples": 297,
                    }
                )
            if a:
                sweep.append(_sweep_rows(cell, np.random.default_rng([d, a]), last, hardness))
            activations.append(
                _activation_rows(cell, seeds[0], last, np.random.default_rng([d, a, 7]))
            )
    frame = pd.DataFrame(runs)
    frame["terminal_phase_epoch"] = frame["terminal_phase_epoch"].astype("Int64")
    tables = {
        "measurements": pd.concat(measured, ignore_index=True),
        "runs": frame,
        "sweep": pd.concat(sweep, ignore_index=True) if sweep else empty_table("sweep"),
        "activations": pd.concat(activations, ignore_index=True),
    }
    return {name: check_frame(table, name) for name, table in tables.items()}


def write_experiment(
    root, experiment, datasets, architectures, last=6, seeds=(0,), commit="0" * 40
):
    """Its tables, each run's facts and the data cards, where the workflow leaves them."""
    tables = make_tables(datasets, architectures, seeds, last=last)
    results = root / "results" / experiment
    for name, table in tables.items():
        write_table(table, results / "tables" / f"{name}.parquet", name)
    for facts in tables["runs"].to_dict("records"):
        dataset, data_hash = facts["dataset"], f"hash-{facts['dataset']}"
        facts |= {"terminal_phase_epoch": None, "seconds": 60.0}
        facts |= {"data_hash": data_hash, "commit": commit}
        run = results / dataset / facts["architecture"] / f"seed-{facts['seed']}/run.json"
        card = root / "resources" / dataset / "prepared/p/card.json"
        for path, content in (run, facts), (card, {"name": dataset, "data_hash": data_hash}):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
    return results


def of(frame, **values):
    """Its rows with these values in these columns."""
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def draw(name, tables_folder, output_base, formats=("png",), **options):
    """A figure in these formats; the paths."""
    paths = [Path(f"{output_base}.{suffix}") for suffix in formats]
    plot(tables_folder, {name: paths}, **options)
    return paths


def cell_of(cell):
    return cell["dataset"], cell["architecture"]


def _rows(cell, seed, epochs, split, statistic, values):
    return pd.DataFrame(
        cell
        | {"seed": seed, "epoch": epochs, "split": split, "statistic": statistic, "value": values}
    )


def _sweep_rows(cell, generator, last, hardness):
    rates = np.geomspace(1e-4, 0.25, 25)
    final = 0.02 * hardness * np.exp(0.35 * (np.log10(rates / 0.05)) ** 2 * 3)
    final = np.minimum(final * np.exp(0.05 * generator.standard_normal(25)), 0.9)
    diverged = rates > 0.15
    final[diverged] = 1.0
    best = np.argmin(final)
    parts = []
    for index, rate in enumerate(rates):
        end = 3 if diverged[index] else last
        for statistic in ("error", "loss"):
            for split in ("train", "test"):
                values = np.linspace(0.9, final[index], end + 1)
                rows = _rows(cell, 0, np.arange(end + 1), split, statistic, values)
                parts.append(
                    rows.assign(
                        learning_rate=rate, diverged=bool(diverged[index]), selected=index == best
                    )
                )
    return pd.concat(parts, ignore_index=True)


def _activation_rows(cell, seed, last, generator, classes=10, width=64):
    """Features that collapse on an ETF as epochs pass."""
    etf = np.linalg.qr(generator.standard_normal((width, classes)))[0].T
    etf = 3 * (etf - etf.mean(axis=0))
    start = generator.standard_normal((classes, width)) * 0.6
    weight_start = generator.standard_normal((classes, width))
    noise = generator.standard_normal((3, 100, width))
    parts = []
    for epoch in sorted({0, last // 20, last // 4, last}):
        share = math.sqrt(epoch / last)
        means = share * etf + (1 - share) * start + 1.0
        weight = share * etf / 3 + (1 - share) * weight_start * 0.3
        spread = 1.2 * (0.02 / 1.2) ** share
        features = [means[k] + spread * noise[k] for k in range(3)]
        rows = project_three_classes(features, means, weight, [0, 1, 2])
        parts.append(rows.assign(**cell, seed=seed, epoch=epoch))
    return pd.concat(parts, ignore_index=True)
