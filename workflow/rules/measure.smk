# Measuring the checkpoints: features, statistics, robustness.


rule extract_features:
    input:
        card=EXPERIMENT.card,
        other=EXPERIMENT.other_cards,
        checkpoints=PATHS.run("checkpoints"),
        winner=winner,
    output:
        features=directory(PATHS.run("features")),
    log:
        PATHS.log("extract_features", run_job()),
    benchmark:
        PATHS.benchmark("extract_features", run_job())
    conda:
        "../../envs/neural_collapse.yaml"
    threads: EXPERIMENT.threads
    resources:
        **MEASURING,
    params:
        recipe=PATHS.recipe(),
        depends_on=EXPERIMENT.recipe_slice("network", "measurement"),
        version=versions.MEASUREMENT,
        data=subpath(input.card, parent=True),
        state=PATHS.state(run_job(), "features"),
        done=PATHS.state(run_job()),
    message:
        "Extract features of {wildcards.dataset} x {wildcards.architecture}, seed {wildcards.seed}"
    shell:
        "python -m neural_collapse extract-features --recipe {params.recipe:q}"
        " --data-folder {params.data:q} --checkpoint-folder {input.checkpoints:q}"
        " --other-card {input.other:q}"
        " --output-folder {output.features:q} --seed {wildcards.seed} --state-root {params.state:q}"
        " --gpus {resources.gpu} --gpu-slots {resources.gpu_slots} --done-states {params.done:q}"
        " --log {log:q}"


rule compute_statistics:
    input:
        features=PATHS.run("features"),
        winner=winner,
    output:
        statistics=PATHS.run("statistics.parquet"),
        activations=PATHS.run("activations.parquet"),
    log:
        PATHS.log("compute_statistics", run_job()),
    benchmark:
        PATHS.benchmark("compute_statistics", run_job())
    conda:
        "../../envs/neural_collapse.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        recipe=PATHS.recipe(),
        depends_on=EXPERIMENT.recipe_slice("measurement", "training"),
        code=code_hash(
            "collapse",
            "experiment/stages/measure.py",
            "experiment/stages/other.py",
            "training/recipe.py",
        ),
        done=PATHS.state(run_job(), "features"),
    message:
        "Compute statistics of {wildcards.dataset} x {wildcards.architecture}, seed {wildcards.seed}"
    shell:
        "python -m neural_collapse compute-statistics --recipe {params.recipe:q}"
        " --features-folder {input.features:q} --seed {wildcards.seed}"
        " --statistics {output.statistics:q} --activations {output.activations:q}"
        " --done-states {params.done:q} --log {log:q}"


rule measure_robustness:
    input:
        card=EXPERIMENT.card,
        checkpoints=PATHS.run("checkpoints"),
        winner=winner,
    output:
        robustness=PATHS.run("robustness.parquet"),
    log:
        PATHS.log("measure_robustness", run_job()),
    benchmark:
        PATHS.benchmark("measure_robustness", run_job())
    conda:
        "../../envs/neural_collapse.yaml"
    threads: EXPERIMENT.threads
    resources:
        **MEASURING,
    params:
        recipe=PATHS.recipe(),
        depends_on=EXPERIMENT.recipe_slice("network", "robustness"),
        version=versions.MEASUREMENT,
        data=subpath(input.card, parent=True),
        state=PATHS.state(run_job(), "robustness"),
    message:
        "Attack {wildcards.dataset} x {wildcards.architecture}, seed {wildcards.seed}"
    shell:
        "python -m neural_collapse measure-robustness --recipe {params.recipe:q}"
        " --data-folder {params.data:q} --checkpoint-folder {input.checkpoints:q}"
        " --output {output.robustness:q} --seed {wildcards.seed} --state-root {params.state:q}"
        " --gpus {resources.gpu} --gpu-slots {resources.gpu_slots} --log {log:q}"
