"""The workflow as Snakemake sees it: dry runs, the plan, the profiles, the shipped schema."""

import os
import re
import subprocess

import pytest
import yaml
from experiments import ROOT, job_counts, snakemake

from neural_collapse.cli.main import main
from neural_collapse.experiment.generated import config_page, json_schema

RECIPES = ["config.yaml", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("config/*.yaml"))]
RECIPES = [name for name in RECIPES if "experiment:" in (ROOT / name).read_text()]
JOB_RULES = {
    *("download_dataset", "prepare_dataset", "train_candidate", "select_learning_rate"),
    *("train_model", "extract_features", "compute_statistics", "measure_robustness"),
    *("collect_tables", "plot_figures", "compare_with_paper"),
}
RULES = "".join(path.read_text() for path in sorted(ROOT.glob("workflow/rules/*.smk")))
BLOCKS = dict(re.findall(r"^(?:rule|checkpoint) (\w+):\n(.*?)(?=^\S|\Z)", RULES, re.M | re.S))


@pytest.fixture
def folder(tmp_path):
    """A place for dry runs, which write nothing into the checkout."""
    (tmp_path / "config.yaml").symlink_to(ROOT / "config.yaml")
    return tmp_path


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_shipped_recipe_plans_every_rule(recipe, folder):
    done = snakemake("-n", "--configfile", ROOT / recipe, folder=folder)
    assert done.returncode == 0, done.stdout
    counts = job_counts(done.stdout)
    swept = {"train_candidate", "select_learning_rate"}
    assert counts.keys() >= JOB_RULES - swept
    rates = counts.get("train_candidate", 0) + counts.get("take_candidate", 0)
    assert rates >= 2 * counts.get("select_learning_rate", 0)
    assert "profiles/default" in done.stdout, "the default profile is loaded by itself"
    if recipe == "config/quickstart.yaml":
        # It stands for itself: nothing of config.yaml is merged into it.
        assert "mnist_subset" in done.stdout and "cifar10" not in done.stdout


def test_with_imagenet_it_is_the_papers_480_trainings(folder):
    counts = job_counts(
        snakemake("-n", "--config", "imagenet_folder=somewhere", folder=folder).stdout
    )
    assert counts["train_candidate"] == 18 * 25 + 3 * 10 == 480
    assert counts["train_model"] == counts["extract_features"] == 21


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("sedes=[1]", "unknown key 'sedes'; did you mean 'seeds'?"),
        ("recipe={measurement: {epochs: [1, 9999]}}", "measurement.epochs asks for epoch 9999"),
        (
            "overrides=[{recipe: {network: {family: custom, function: 'textwrap:dednet'}}}]",
            "function 'textwrap:dednet': module 'textwrap' has no attribute 'dednet'",
        ),
    ],
)
def test_a_wrong_config_is_one_sentence_before_any_job(change, sentence, folder):
    done = snakemake("-n", "--config", change, folder=folder)
    assert done.returncode != 0 and sentence in done.stdout
    assert "Traceback" not in done.stdout and "Job stats" not in done.stdout


@pytest.mark.parametrize(
    ("name", "line", "sentence"),
    [
        ("other.yaml", "datasets: [mnist]", "the key 'datasets' is given twice in line"),
        ("config.yaml", "datasets: [mnist]", "the key 'datasets' is given twice in line"),
        ("config.yaml", "results_folder: /dev/null", "/dev/null is a file, not a folder"),
    ],
)
def test_a_wrong_config_file_is_one_sentence_as_of_the_plan(name, line, sentence, tmp_path, capsys):
    path = tmp_path / name
    path.write_text((ROOT / "config/tiny.yaml").read_text() + f"\n{line}\n")
    given = [] if name == "config.yaml" else ["--configfile", path]
    done = snakemake("-n", *given, folder=tmp_path)
    assert main(["plan", "--config", str(path)]) == 2
    for output in (done.stdout, capsys.readouterr().err):
        assert sentence in output and name in output
        assert "Traceback" not in output and "Job stats" not in output


def test_overrides_without_effect_are_a_warning(folder):
    done = snakemake("-n", "--config", "architectures=[vgg]", folder=folder)
    assert done.returncode == 0, done.stdout
    (line,) = re.findall(r"overrides [0-9, ]+ .*change nothing", done.stdout)
    assert line.startswith("overrides 2, 3, 4, 5, 11, 12 ")


def test_a_recipe_that_cannot_be_written_is_one_sentence_before_any_job(folder):
    (folder / "results/tiny").mkdir(parents=True)
    (folder / "results/tiny/digits").touch()
    done = snakemake("--configfile", ROOT / "config/tiny.yaml", folder=folder)
    assert done.returncode != 0
    assert "results/tiny/digits/resnet/recipe.json: cannot be written" in done.stdout
    assert not re.search("UserError|files.py|rule ", done.stdout)


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_gpus_are_looked_for_only_with_device_auto(folder, monkeypatch, device):
    program = folder / "nvidia-smi"  # which may hang, as its driver does
    program.write_text(f"#!/bin/sh\ntouch '{folder}/asked'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    config = ("--configfile", ROOT / "config/tiny.yaml", "--config", f"device={device}")
    done = snakemake("-n", *config, folder=folder)
    assert done.returncode == 0, done.stdout
    assert (folder / "asked").exists() == (device == "auto")


def test_custom_datasets_of_one_name_are_kept_apart(folder):
    """Two experiments call different files "mine": neither overwrites the other's arrays."""
    prepared = set()
    for path in ("one.npz", "two.npz"):
        (folder / path).touch()
        mine = f"custom_datasets={{mine: {{label: Mine, path: {path}}}}}"
        network = "recipe={network: {name: resnet18}}"
        given = ("datasets=[mine]", "architectures=[resnet]", mine, network)
        done = snakemake("-n", "--config", *given, folder=folder)
        assert done.returncode == 0, done.stdout
        found = r"resources/mine/(?:prepared/[^/]+/card|raw[^/]*/source)\.json"
        prepared |= set(re.findall(found, done.stdout))
    assert len(prepared) == 4


def test_plan_prints_jobs_epochs_checkpoints_and_disk(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["plan", "--config", "config/quickstart.yaml"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("trainings", "epochs", "checkpoints", "disk", "hours"))
    # 60 epochs each for three candidates and the model of the swept cell; 50 + 40 + 40 + 36 + 30
    # for the others.
    assert re.search(r"^epochs +436$", said, re.MULTILINE)


def test_the_default_profile_limits_gpu_jobs():
    profile = yaml.safe_load((ROOT / "workflow/profiles/default/config.yaml").read_text())
    assert profile["resources"] == {"gpu": 1}


def test_no_profile_trains_again_when_a_rule_is_edited():
    profiles = (ROOT / "workflow/profiles").glob("*/config.yaml")
    triggers = [yaml.safe_load(path.read_text())["rerun-triggers"] for path in profiles]
    assert triggers == 2 * [["mtime", "params", "input"]]


def test_the_slurm_profile_offers_gres_to_every_rule_that_takes_a_gpu():
    profile = (ROOT / "workflow/profiles/slurm/config.yaml").read_text()
    offered = set(re.findall(r"^#   (\w+): \{gres:", profile, re.MULTILINE))
    assert offered == {
        name for name, text in BLOCKS.items() if "**TRAINING" in text or "**MEASURING" in text
    }


def test_every_job_rule_is_complete():
    keys = ("output", "log", "benchmark", "conda", "message", "shell", "threads", "resources")
    for name in JOB_RULES:
        missing = [key for key in keys if not re.search(rf"^    {key}:", BLOCKS[name], re.M)]
        assert not missing, name


def test_the_shipped_schema_is_the_models():
    shipped = (ROOT / "workflow/schemas/config.schema.json").read_text()
    assert shipped == json_schema(), "run `make schema`"


def test_the_shipped_config_page_is_the_models():
    shipped = (ROOT / "config/README.md").read_text()
    assert shipped == config_page(), "run `make config-page`"


def test_every_caption_of_snakemakes_own_report_is_there():
    named = {ROOT / "workflow/rules" / name for name in re.findall(r'caption="([^"]+)"', RULES)}
    assert len(named) == 3
    assert not [caption for caption in named if not caption.is_file()]


@pytest.mark.parametrize("target", ["quickstart", "figures", "report"])
def test_make_config_that_does_not_exist_is_one_sentence(target):
    command = ["make", "--no-print-directory", "-o", ".venv/.made", target, "CONFIG=config/no.yaml"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode and done.stdout == "there is no config config/no.yaml\n"
