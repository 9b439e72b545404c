"""The tiny recipe on a real SLURM cluster: every job, what it asks for, which GPU it gets."""

import pytest

GPU_RULES = {"train_candidate", "train_model", "extract_features", "measure_robustness"}
CPU_RULES = {"compute_statistics", "plot_figures"}


@pytest.fixture
def finished(cluster, make_experiment):
    experiment = make_experiment()
    experiment.finish(experiment.submit())
    return experiment


def test_every_rule_runs_with_its_own_resources_on_its_own_gpu(cluster, finished):
    # One cluster for all of it: to start another and run again would take a minute each.
    assert (finished.results / "report.html").stat().st_size > 0
    jobs = cluster.jobs()
    assert {job["rule"] for job in jobs} == GPU_RULES | CPU_RULES
    for job in jobs:
        assert job["JobState"] == "COMPLETED", job
        assert job["Restarts"] == "0"
        # squeue shows the job and its rule.
        assert job["JobName"].startswith("neural-collapse_")
        assert job["JOB_GRES"] == ("gpu:a100:1" if job["rule"] in GPU_RULES else "(null)"), job
        if job["rule"] in GPU_RULES:
            # From the recipe; the others from their rules.
            assert "mem=1500M" in job["TRES"], job
            assert job["TimeLimit"] == "00:10:00"
    names = {(job["rule"], job["wildcards"]) for job in jobs}
    assert ("train_model", "digits_resnet_0") in names
    assert ("compute_statistics", "digits_resnet_0") in names

    # What each job saw, from within.
    given = {}
    for line in finished.looks.read_text().splitlines():
        number, gpu, command = line.split("\t")
        if "-m neural_collapse " in command:
            given[number] = gpu
    assert set(given) == {job["JobId"] for job in jobs if job["rule"] in GPU_RULES}
    assert set(given.values()) <= {"0", "1"}
    first, second = cluster.jobs("train_candidate")
    assert {given[first["JobId"]], given[second["JobId"]]} == {"0", "1"}
    assert first["StartTime"] < second["EndTime"]
    assert second["StartTime"] < first["EndTime"], "both ran at once"

    # The rule's own line, and no GPU behind it: it went to the CPU.
    facts = finished.facts()
    assert facts["command"][facts["command"].index("--gpus") + 1] == "1"
    assert facts["machine"]["device"] == "cpu"
