"""The workflow as Snakemake sees it: lint, formatting, dry runs, the plan, the profile."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RECIPES = ["config.yaml", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("config/*.yaml"))]
RECIPES = [name for name in RECIPES if "experiment:" in (ROOT / name).read_text()]
JOB_RULES = {
    *("download_dataset", "prepare_dataset", "train_candidate", "select_learning_rate"),
    *("train_model", "extract_features", "compute_statistics", "measure_robustness"),
    *("collect_tables", "plot_figures", "compare_with_paper"),
}


def run(*command, cwd=ROOT, **environment):
    return subprocess.run(
        [BIN / command[0], *map(str, command[1:])],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def dry_run(*arguments, folder):
    """A dry run that writes nothing into the checkout."""
    return run("snakemake", "-n", "--snakefile", ROOT / "Snakefile", *arguments, cwd=folder)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.yaml").symlink_to(ROOT / "config.yaml")
    return tmp_path


def job_counts(output: str) -> dict[str, int]:
    table = output.split("Job stats:")[1]
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_shipped_recipe_plans_every_rule(recipe, folder):
    done = dry_run("--cores", "1", "--configfile", ROOT / recipe, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = job_counts(done.stdout + done.stderr)
    swept = {"train_candidate", "select_learning_rate"}
    assert counts.keys() >= JOB_RULES - swept
    rates = counts.get("train_candidate", 0) + counts.get("take_candidate", 0)
    assert rates >= 2 * counts.get("select_learning_rate", 0)


def test_with_imagenet_it_is_the_papers_480_trainings(folder):
    done = dry_run("--cores", "1", "--config", "imagenet_folder=somewhere", folder=folder)
    counts = job_counts(done.stdout + done.stderr)
    assert counts["train_candidate"] == 18 * 25 + 3 * 10 == 480
    assert counts["train_model"] == counts["extract_features"] == 21


def test_a_config_file_on_the_command_line_stands_for_itself(folder):
    done = dry_run("--cores", "1", "--configfile", ROOT / "config/quickstart.yaml", folder=folder)
    assert "mnist_subset" in done.stdout + done.stderr
    assert "cifar10" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("datasets=[mnits]", "did you mean 'mnist'?"),
        ("sedes=[1]", "unknown key 'sedes'; did you mean 'seeds'?"),
        ("recipe={training: {epochs: 0}}", "recipe.training.epochs"),
        ("recipe={sweep: {learning_rate_min: 1.0}}", "learning_rate_min (1) is above"),
        ("recipe={measurement: {epochs: [1, 9999]}}", "measurement.epochs asks for epoch 9999"),
    ],
)
def test_a_wrong_config_is_one_sentence_before_any_job(change, sentence, folder):
    done = dry_run("--cores", "1", "--config", change, folder=folder)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert sentence in output
    assert "Traceback" not in output and "Job stats" not in output


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("datasets: [mnist]", "the key 'datasets' is given twice in line"),
        ("results_folder: /dev/null", "results_folder: /dev/null is a file, not a folder"),
        ("recipe: {sweep: {learning_rate: 0.1}}", "the key 'recipe' is given twice in line"),
    ],
)
@pytest.mark.parametrize("default", [False, True], ids=["--configfile", "config.yaml"])
def test_a_wrong_config_file_is_one_sentence_as_of_the_plan(line, sentence, default, tmp_path):
    path = tmp_path / ("config.yaml" if default else "other.yaml")
    path.write_text((ROOT / "config/tiny.yaml").read_text() + f"\n{line}\n")
    given = [] if default else ["--configfile", path]
    done = dry_run("--cores", "1", *given, folder=tmp_path)
    plan = run("neural-collapse", "plan", "--config", path)
    for output in (done.stdout + done.stderr, plan.stderr):
        assert sentence in output and path.name in output
        assert "Traceback" not in output and "Job stats" not in output


def test_overrides_without_effect_are_a_warning(folder):
    done = dry_run("--cores", "1", "--config", "architectures=[vgg]", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = re.findall(r"overrides [0-9, ]+ .*change nothing", done.stdout + done.stderr)
    assert line.startswith("overrides 2, 3, 4, 5, 11, 12 ")


def test_a_recipe_that_cannot_be_written_is_one_sentence_before_any_job(folder):
    (folder / "results/tiny").mkdir(parents=True)
    (folder / "results/tiny/digits").touch()
    tiny = ("--cores", "1", "--configfile", ROOT / "config/tiny.yaml")
    done = run("snakemake", "--snakefile", ROOT / "Snakefile", *tiny, cwd=folder)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "results/tiny/digits/resnet/recipe.json: cannot be written" in output
    assert "UserError" not in output and "files.py" not in output and "rule " not in output


def test_custom_datasets_of_one_name_are_kept_apart(folder):
    """Two experiments call different files "mine": neither overwrites the other's arrays."""
    prepared = set()
    for path in ("one.npz", "two.npz"):
        (folder / path).touch()
        mine = f"custom_datasets={{mine: {{label: Mine, path: {path}}}}}"
        network = "recipe={network: {name: resnet18}}"
        given = ("datasets=[mine]", "architectures=[resnet]", mine, network)
        done = dry_run("--cores", "1", "--config", *given, folder=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        found = r"resources/mine/(?:prepared/[^/]+/card|raw[^/]*/source)\.json"
        prepared |= set(re.findall(found, done.stdout + done.stderr))
    assert len(prepared) == 4


def test_plan_prints_jobs_epochs_checkpoints_and_disk():
    done = run("neural-collapse", "plan", "--config", "config/quickstart.yaml")
    assert done.returncode == 0, done.stderr
    words = ("trainings", "epochs", "checkpoints", "disk", "hours")
    assert all(word in done.stdout for word in words)
    # 60 epochs each for three candidates and the model of the swept cell; 50 + 40 + 40 + 36 + 30
    # for the others.
    assert re.search(r"^epochs +436$", done.stdout, re.MULTILINE)


def test_rules_pass_snakemakes_lint():
    done = run("snakemake", "--lint", "--configfile", "config/quickstart.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("snakefmt", "--check", "Snakefile", "workflow/rules"),
    ],
    ids=" ".join,
)
def test_rules_are_formatted_by_snakefmt(command):
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_default_profile_limits_gpu_jobs_and_is_loaded_by_itself(folder):
    profile = yaml.safe_load((ROOT / "workflow/profiles/default/config.yaml").read_text())
    assert profile["resources"] == {"gpu": 1}
    done = run("snakemake", "-n", "--cores", "1", "--configfile", "config/quickstart.yaml")
    assert "profiles/default" in done.stdout + done.stderr


def rule_texts() -> dict[str, str]:
    text = "".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
    return dict(re.findall(r"^(?:rule|checkpoint) (\w+):\n(.*?)(?=^\S|\Z)", text, re.M | re.S))


def test_the_slurm_profile_offers_gres_to_every_rule_that_takes_a_gpu():
    profile = (ROOT / "workflow/profiles/slurm/config.yaml").read_text()
    offered = set(re.findall(r"^#   (\w+): \{gres:", profile, re.MULTILINE))
    assert offered == {
        name for name, text in rule_texts().items() if "**TRAINING" in text or "**MEASURING" in text
    }


def test_every_job_rule_is_complete():
    blocks = rule_texts()
    assert blocks.keys() >= JOB_RULES
    for name in JOB_RULES:
        for key in ("output", "log", "benchmark", "conda", "message", "shell", "threads"):
            assert re.search(rf"^    {key}:", blocks[name], re.M), f"{name} has no {key}"
        assert re.search(r"^    resources:", blocks[name], re.M), f"{name} has no resources"


def test_the_shipped_schema_is_the_models():
    from neural_collapse.experiment.generated import json_schema

    shipped = (ROOT / "workflow/schemas/config.schema.json").read_text()
    assert shipped == json_schema(), "run `make schema`"


def test_the_shipped_config_page_is_the_models():
    from neural_collapse.experiment.generated import config_page

    shipped = (ROOT / "config/README.md").read_text()
    assert shipped == config_page(), "run `make config-page`"


def test_every_caption_of_snakemakes_own_report_is_there():
    named = {
        (file.parent / caption).resolve()
        for file in (ROOT / "workflow/rules").glob("*.smk")
        for caption in re.findall(r'caption="([^"]+)"', file.read_text())
    }
    assert len(named) == 3
    assert not [caption for caption in named if not caption.is_file()]
