"""Adding an experiment's runs to a set of reference results; see results.run_facts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..data.registry import DATASETS
from ..figures import NAMES
from ..io.errors import UserError
from ..io.files import read_json, write_text_atomically
from ..io.progress import say
from ..results import TABLES
from ..results.layout import Layout
from ..results.run_facts import ADDED_TO_RUNS, read_cards, read_run, read_tables, recipe_of
from ..results.tables import (
    OWN,
    REFERENCE,
    SCHEMAS,
    concat_tables,
    empty_table,
    read_table,
    recipe_values,
    write_table,
)
from .config import DEFAULT_ARCHITECTURES

BYTES_MAX = 5_000_000
"""What all tables of a set should stay below, since git keeps them for good."""


def export_reference(
    results_folder: str | Path,
    output_folder: str | Path,
    resources_folder: str | Path,
    figures: Sequence[str] = (),
) -> None:
    """Add the finished runs of an experiment to a set of reference results.

    Args:
        results_folder: of the experiment, with tables/ and <dataset>/<architecture>/seed-<n>/.
        output_folder: the set, e.g. results/reference/paper; made where it does not exist.
        resources_folder: where the prepared datasets lie, for their cards.
        figures: that the set's config draws; by default the paper's, without the sweep if no run
            had one.

    Raises:
        UserError: a run that is in the set already, one whose run.json or data card is missing,
            or tables of another training than run.json's.
    """
    results, output = Path(results_folder), Path(output_folder)
    new = {name: read_table(results / "tables" / f"{name}.parquet", name) for name in TABLES}
    new = {name: table[table["origin"] == OWN] for name, table in new.items()}
    if new["runs"].empty:
        raise UserError(f"{results}: its tables hold no run of its own, so there is none to add")
    facts = [_facts(results, row) for row in new["runs"].itertuples()]
    cards = _cards(Path(resources_folder), facts)
    exists = (output / "runs.json").exists()
    old = read_tables(output) if exists else {name: empty_table(name) for name in TABLES}
    old_facts = read_json(output / "runs.json", "a list of runs", list) if exists else []
    old_cards = read_cards(output) if exists else []
    _check_new(output, facts, old_facts)
    # Another seed of a cell brings the sweep that the set has of it.
    key = list(SCHEMAS["sweep"].key[1:])
    present = pd.MultiIndex.from_frame(old["sweep"][key])
    again = pd.MultiIndex.from_frame(new["sweep"][key]).isin(present)
    new["sweep"] = new["sweep"][~again]
    grown = {
        name: concat_tables([table.assign(origin=REFERENCE), old[name]], name)
        for name, table in new.items()
    }
    for name, table in grown.items():
        write_table(table, output / "tables" / f"{name}.parquet", name)
    known = {card["data_hash"] for card in old_cards}
    cards = [*old_cards, *(card for card in cards if card["data_hash"] not in known)]
    _write_json(output / "cards.json", cards)
    everything = sorted([*old_facts, *facts], key=_key)
    if not figures and grown["sweep"].empty:
        figures = [name for name in NAMES if name != "sweep"]
    write_text_atomically(output / "config.yaml", _config(output, grown["runs"], figures))
    # Last, since it is what says that the set is there.
    _write_json(output / "runs.json", everything)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    say(f"{output}: {len(everything)} runs, {size / 1e6:.2f} MB")
    if size > BYTES_MAX:
        say(f"warning: {output} is larger than {BYTES_MAX / 1e6:.0f} MB, much for git")


def _check_new(output: Path, facts: list[dict[str, Any]], old: list[dict[str, Any]]) -> None:
    """Raise UserError for a run that the set holds; warn of one made by uncommitted code."""
    present = {_key(run) for run in old}
    for run in facts:
        if _key(run) in present:
            dataset, architecture, seed = _key(run)
            raise UserError(
                f"{output}: holds {dataset} x {architecture}, seed {seed} already; reference "
                "results are never overwritten, so give another folder"
            )
        if run.get("commit") is None or run["commit"].endswith("+changes"):
            say(f"warning: {' x '.join(map(str, _key(run)))} was not made by committed code")


def _config(folder: Path, runs: pd.DataFrame, figures: Sequence[str]) -> str:
    """A config that draws the set and trains nothing."""
    import yaml

    layout = Layout.of(runs)
    values: dict[str, Any] = {
        "experiment": f"reference-{folder.name}",
        "datasets": list(layout.datasets),
        "architectures": list(layout.architectures),
        "seeds": sorted({int(seed) for seed in runs["seed"]}),
        "results_from": "reference",
        "reference_folder": str(folder),
        "figures": {"names": list(figures)} if figures else {},
        "custom_datasets": {
            # Nothing is read there, since nothing is trained.
            name: {"label": label, "path": "not-needed"}
            for name, label in layout.datasets.items()
            if name not in DATASETS
        },
        "custom_architectures": {
            name: {"label": label}
            for name, label in layout.architectures.items()
            if name not in DEFAULT_ARCHITECTURES
        },
    }
    values = {key: value for key, value in values.items() if value != {}}
    command = f"snakemake figures tables --cores 2 --configfile {folder}/config.yaml"
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return f"# Draws these reference runs: {command}\n{text}"


def _write_json(path: Path, values: list) -> None:
    write_text_atomically(path, json.dumps(values, indent=1) + "\n")


def _key(run: dict[str, Any]) -> tuple[str, str, int]:
    return run["dataset"], run["architecture"], run["seed"]


def _facts(results: Path, row: Any) -> dict[str, Any]:
    path = results / row.dataset / row.architecture / f"seed-{row.seed}" / "run.json"
    run = read_run(path)
    if not isinstance(run.get("data_hash"), str):
        raise UserError(f"{path}: does not say which data it was trained on; train it again")
    names = set(SCHEMAS["runs"].names) - {*ADDED_TO_RUNS, "dataset_label"}
    ours = {name: getattr(row, name) for name in names} | recipe_values(json.loads(row.recipe))
    theirs = run | recipe_values(recipe_of(run))
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name] != theirs[name]:
            raise UserError(
                f"{results / 'tables'}: the tables are of an earlier training than {path}, whose "
                f"{name} is {theirs[name]}, not {ours[name]}; run snakemake tables first"
            )
    return run


def _cards(resources: Path, facts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The card of each dataset that a run was trained on, by its data's hash."""
    wanted = {run["data_hash"]: run["dataset"] for run in facts}
    cards = {}
    for dataset in sorted(set(wanted.values())):
        for path in sorted((resources / dataset / "prepared").glob("*/card.json")):
            card = read_json(path, "a data card")
            cards[card.get("data_hash")] = card
    for data_hash, dataset in wanted.items():
        if data_hash not in cards:
            raise UserError(
                f"{resources / dataset}: the data card of {dataset} used in training is "
                "missing; give the folder of downloads as --resources-folder"
            )
    return [_without_places(cards[data_hash]) for data_hash in wanted]


def _without_places(value: Any) -> Any:
    """A card without the paths of the machine that it was made on; its checksums say what it is."""
    if isinstance(value, dict):
        return {key: _without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return "a local file"
    return value
