"""What the pipeline itself costs: planning, seeing that nothing is to be done, the command line."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ..harness import Goal, Results, Settings, Variant, case, cores, interleave
from ..worker import environment

ROOT = Path(__file__).parents[2]
DRY_RUN, NOTHING_TO_DO, HELP = (Goal(seconds, at_most=True) for seconds in (6, 5, 0.3))
MTIME = 1_600_000_000.0


def snakemake(folder: Path, *arguments: str, config: str = "config.yaml") -> str:
    """Run this checkout's workflow in a folder of its own; what it printed."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--cores", str(cores()), "--configfile", str(ROOT / config)]
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout + done.stderr


def seconds(run, settings: Settings) -> float:
    return interleave({"it": Variant(run)}, settings.rounds, minimum_seconds=0)["it"].best


@case("pipeline")
def pipeline(settings: Settings, results: Results) -> None:
    def called_for_help() -> None:
        subprocess.run(
            [sys.executable, "-m", "neural_collapse", "--help"],
            env=environment(),
            stdout=subprocess.DEVNULL,
            check=True,
        )

    found = seconds(called_for_help, settings)
    results.value("python -m neural_collapse --help", found, unit="s", goal=HELP)
    if importlib.util.find_spec("snakemake") is None:
        results.skip("Snakemake is not installed here, so that the workflow is not timed.")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = seconds(lambda: snakemake(folder, "--dry-run", "--quiet"), settings)
        results.value("dry run of config.yaml", found, unit="s", goal=DRY_RUN)

        files = finish_without_work(folder)
        said = snakemake(folder, "--dry-run")
        if "Nothing to be done" not in said:
            raise RuntimeError(f"the made-up results of the paper are not complete: {said[-2000:]}")
        found = seconds(lambda: snakemake(folder), settings)
        results.value(
            "nothing to do, config.yaml",
            found,
            unit="s",
            goal=NOTHING_TO_DO,
            note=f"{files} made-up files, without records of their params",
        )
        if settings.full:
            snakemake(folder, "--touch", "--forceall")
            found = seconds(lambda: snakemake(folder), settings)
            results.value(
                "nothing to do, config.yaml, with Snakemake's records of every file",
                found,
                unit="s",
                goal=NOTHING_TO_DO,
            )
    if not settings.full:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        snakemake(folder, config="config/tiny.yaml")
        found = seconds(lambda: snakemake(folder, config="config/tiny.yaml"), settings)
        results.value("nothing to do, config/tiny.yaml", found, unit="s", goal=NOTHING_TO_DO)


def finish_without_work(folder: Path) -> int:
    """Make empty files of all that config.yaml's jobs would; returns how many there are.

    Twice, since what a sweep's winner leads to is known only once there is a selection.
    """
    for _ in range(2):
        lines = snakemake(folder, "--summary").splitlines()
        table = [line.split("\t") for line in lines if "\t" in line]
        column = table[0].index("output_file")
        outputs = [folder / row[column] for row in table[1:]]
        for path in outputs:
            is_folder = not path.suffix
            file = path / ".snakemake_timestamp" if is_folder else path
            if file.exists():
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            if path.name == "selection.json":
                curve = min(p for p in outputs if p.match(f"{path.parent}/learning-rate-*"))
                rate = curve.stem.removeprefix("learning-rate-")
                path.write_text(json.dumps({"learning_rate": float(rate)}), encoding="utf-8")
            else:
                file.touch()
        for path in outputs:  # of one age: none is newer than what was made of it
            for file in (path, path / ".snakemake_timestamp") if path.is_dir() else (path,):
                os.utime(file, (MTIME, MTIME))
    return len(outputs)
