"""Snakemake itself and its workers killed at random; the results are those of one quiet run."""

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from experiments import BIN, CHANGES, ROOT, Experiment, children

KILLS = 10


def descendants(pid: int) -> list[int]:
    return [found for child in children(pid) for found in (child, *descendants(child))]


def is_worker(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[1:3] == [b"-m", b"neural_collapse"]


def written(experiment: Experiment) -> set:
    """What has been made so far: states, and files of finished jobs."""
    return {
        os.path.join(folder, name)
        for folder, _, names in os.walk(experiment.results)  # bears folders that vanish meanwhile
        for name in names
        if not name.endswith(".log")
    }


def kill_once(experiment: Experiment, chance: random.Random) -> bool:
    """Start Snakemake, kill it or a worker after some new files; whether it ended by itself."""
    before = written(experiment)
    wanted = chance.randrange(1, 12)
    experiment.write_config()
    command = [BIN / "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "2", "tables"]
    with subprocess.Popen(command, cwd=experiment.folder, stderr=subprocess.DEVNULL) as running:
        while running.poll() is None and len(written(experiment) - before) < wanted:
            time.sleep(0.02)  # a polling interval; what decides is the number of files
        if running.poll() is not None:
            return running.returncode == 0
        workers = [pid for pid in descendants(running.pid) if is_worker(pid)]
        # Without a worker Snakemake goes on and fails at the end; without Snakemake its workers
        # are orphans and go on, which the next try must bear.
        hit_worker = workers and chance.random() < 0.5
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(workers) if hit_worker else running.pid, signal.SIGKILL)
        running.wait()
    return False


@pytest.mark.slow
def test_killed_at_random_it_ends_with_the_same_bits(experiment, tmp_path):
    chance, again = random.Random(0), Experiment(tmp_path / "killed", **CHANGES)
    for _ in range(KILLS):
        if kill_once(again, chance):
            break
        again.snakemake("--unlock")
    for _ in range(20):  # a lock that an orphan holds fails a job with a sentence; then again
        done = again.snakemake("tables")
        if done.returncode == 0:
            break
        assert "is in use by process" in done.stdout, done.stdout[-4000:]
    assert done.returncode == 0, done.stdout[-4000:]
    compared = 0
    for path in experiment.results.rglob("*"):
        if path.suffix in {".parquet", ".safetensors"}:
            twin = again.results / path.relative_to(experiment.results)
            assert twin.read_bytes() == path.read_bytes(), path.name
            compared += 1
    assert compared >= 2 * 2 * (4 + 4) + 8
    assert not list((again.results / ".state").rglob("*.safetensors"))
