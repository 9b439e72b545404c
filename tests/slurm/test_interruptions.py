"""Trainings that a cluster interrupts: each goes on where it was and ends with the same bits.

A training is stopped with SIGSTOP once some epochs are done, so that the interruption always
meets it at work, on a fast machine and on a slow one.
"""

import os
import signal
from pathlib import Path

import pytest
from experiments import wait_until

from neural_collapse.io.locks import clear_finished

pytestmark = pytest.mark.slow

LONG = {"training": {"epochs": 150}, "sweep": {"learning_rate": 0.05}}


@pytest.fixture(scope="module")
def uninterrupted(make_experiment):
    """The bits of a run on this machine, without a cluster."""
    experiment = make_experiment(**LONG)
    experiment.run("models", "--config", "device=cpu")
    assert experiment.facts()["resumed_after"] == 0
    return experiment.bits()


@pytest.fixture
def run(make_experiment):
    """The same, nothing trained yet."""
    return make_experiment(**LONG)


def check_resumed(experiment, uninterrupted):
    assert experiment.facts()["resumed_after"] >= 3
    assert experiment.bits() == uninterrupted
    left = experiment.results / ".state"
    assert len(list(left.glob("*/*/state-*"))) == 1, "the last state, for the next job to delete"
    for root in left.iterdir():
        clear_finished(root)
    assert not list(left.glob("*/*/*")), "states of finished runs"


def states(cluster) -> list[str]:
    return [job["JobState"] for job in cluster.jobs("train_model")]


def test_a_cancelled_training_is_retried_and_resumes(cluster, run, uninterrupted):
    snakemake = run.submit("models")
    run.hold()
    cluster.ask("scancel", cluster.job("train_model")["JobId"])
    run.finish(snakemake)
    assert states(cluster) == ["CANCELLED", "COMPLETED"]
    check_resumed(run, uninterrupted)


def test_a_training_past_its_time_limit_is_retried_and_resumes(cluster, run, uninterrupted):
    run.values["recipe"]["resources"]["runtime_minutes"] = 1
    run.write_config()
    snakemake = run.submit("models")
    run.hold()
    # SLURM looks for jobs past their limit every half minute.
    cluster.job("train_model", "TIMEOUT")
    run.finish(snakemake)
    assert states(cluster)[0] == "TIMEOUT"
    assert states(cluster)[-1] == "COMPLETED"
    check_resumed(run, uninterrupted)


def test_a_preempted_training_is_requeued_and_resumes(cluster, run, uninterrupted):
    snakemake = run.submit("models")
    run.hold()
    # Another user's, on a partition of higher priority: it takes the whole node.
    cluster.ask("sbatch", "-p", "urgent", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    said = run.finish(snakemake)
    # The same job twice: Snakemake neither saw a failure nor submitted again.
    (job,) = cluster.jobs("train_model")
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    assert "Error in rule" not in said
    check_resumed(run, uninterrupted)


def test_a_restarted_controller_is_survived(cluster, run, uninterrupted):
    snakemake = run.submit("models")
    worker = run.hold()
    job = cluster.job("train_model")["JobId"]
    # Not by a kill: what it had not saved yet, a job's start perhaps, would be lost, and the
    # job held as one that failed to start.
    cluster.daemons["slurmctld"].terminate()
    cluster.daemons["slurmctld"].wait()

    def asked():
        """Whether Snakemake's question waits for an answer just now."""
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0].endswith(b"squeue") and any(b"neural-collapse_" in w for w in words):
                return True
        return False

    wait_until(asked, "Snakemake asks while the controller is away", 300)
    os.kill(worker, signal.SIGCONT)
    # The job ends while nobody listens.
    wait_until(lambda: run.worker() is None, "the training ends", 300)
    cluster.daemon("slurmctld", "-D")
    said = run.finish(snakemake)
    (finished,) = cluster.jobs("train_model")
    assert (finished["JobId"], finished["JobState"]) == (job, "COMPLETED")
    assert "Error in rule" not in said
    assert run.bits() == uninterrupted


def test_ctrl_c_cancels_the_jobs_and_a_rerun_resumes(cluster, run, uninterrupted):
    snakemake = run.submit("models")
    run.hold()
    snakemake.send_signal(signal.SIGINT)
    assert snakemake.wait(300) != 0
    wait_until(lambda: states(cluster) == ["CANCELLED"], "the job is cancelled", 120)
    run.finish(run.submit("models"))
    assert states(cluster) == ["CANCELLED", "COMPLETED"]
    check_resumed(run, uninterrupted)


def test_an_orphan_of_a_killed_snakemake_keeps_its_run(cluster, run, uninterrupted):
    snakemake = run.submit("models")
    worker = run.hold()
    orphan = cluster.job("train_model")["JobId"]
    snakemake.kill()
    snakemake.wait()
    run.run("--unlock")
    # The job lives on; a second one must not work in the same place.
    second = run.submit("models", "--retries", "0")
    assert second.wait(300) != 0
    log = (run.results / "logs" / "train_model" / "digits-resnet-seed-0.log").read_text()
    assert f"is in use by process {worker} on " in log
    assert states(cluster) == ["RUNNING", "FAILED"]
    cluster.ask("scancel", orphan)
    wait_until(lambda: states(cluster)[0] == "CANCELLED", "the orphan is gone", 120)
    run.finish(run.submit("models"))
    check_resumed(run, uninterrupted)
