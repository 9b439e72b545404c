# Measuring the checkpoints: features, statistics, robustness.


rule extract_features:
    input:
        card=prepared("card.json"),
        checkpoints="<run>/checkpoints",
        winner=winner,
    output:
        features=directory("<run>/features"),
    log:
        "<logs>/extract_features/{dataset}-{architecture}-seed-{seed}.log",
    benchmark:
        "<logs>/extract_features/{dataset}-{architecture}-seed-{seed}.tsv"
    conda:
        "../../envs/neural_collapse.yaml"
    threads: threads_of
    resources:
        gpu=one_gpu,
        gpu_slots=recipe_resource("gpu_slots"),
        mem_mb=recipe_resource("memory_mb"),
        runtime=recipe_resource("runtime_minutes"),
    params:
        recipe=recipe_file,
        depends_on=recipe_slice("network", "measurement"),
        version=versions.MEASUREMENT,
        data=subpath(input.card, parent=True),
        state=state("{dataset}-{architecture}-seed-{seed}-features"),
        done=state("{dataset}-{architecture}-seed-{seed}"),
    message:
        "Extract features of {wildcards.dataset} x {wildcards.architecture}, seed {wildcards.seed}"
    shell:
        "python -m neural_collapse extract-features --recipe {params.recipe:q}"
        " --data-folder {params.data:q} --checkpoint-folder {input.checkpoints:q}"
        " --output-folder {output.features:q} --state-root {params.state:q}"
        " --gpus {resources.gpu} --gpu-slots {resources.gpu_slots} --done-states {params.done:q}"
        " --log {log:q}"


rule compute_statistics:
    input:
        features="<run>/features",
        winner=winner,
    output:
        statistics="<run>/statistics.parquet",
        activations="<run>/activations.parquet",
    log:
        "<logs>/compute_statistics/{dataset}-{architecture}-seed-{seed}.log",
    benchmark:
        "<logs>/compute_statistics/{dataset}-{architecture}-seed-{seed}.tsv"
    conda:
        "../../envs/neural_collapse.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        recipe=recipe_file,
        depends_on=recipe_slice("measurement"),
        code=code_hash("collapse/statistics.py", "collapse/projection.py"),
        done=state("{dataset}-{architecture}-seed-{seed}-features"),
    message:
        "Compute statistics of {wildcards.dataset} x {wildcards.architecture}, seed {wildcards.seed}"
    shell:
        "python -m neural_collapse compute-statistics --recipe {params.recipe:q}"
        " --features-folder {input.features:q} --seed {wildcards.seed}"
        " --statistics {output.statistics:q} --activations {output.activations:q}"
        " --done-states {params.done:q} --log {log:q}"


rule measure_robustness:
    input:
        card=prepared("card.json"),
        checkpoints="<run>/checkpoints",
        winner=winner,
    output:
        robustness="<run>/robustness.parquet",
    log:
        "<logs>/measure_robustness/{dataset}-{architecture}-seed-{seed}.log",
    benchmark:
        "<logs>/measure_robustness/{dataset}-{architecture}-seed-{seed}.tsv"
    conda:
        "../../envs/neural_collapse.yaml"
    threads: threads_of
    resources:
        gpu=one_gpu,
        gpu_slots=recipe_resource("gpu_slots"),
        mem_mb=recipe_resource("memory_mb"),
        runtime=recipe_resource("runtime_minutes"),
    params:
        recipe=recipe_file,
        depends_on=recipe_slice("network", "robustness"),
        version=versions.MEASUREMENT,
        data=subpath(input.card, parent=True),
        state=state("{dataset}-{architecture}-seed-{seed}-robustness"),
    message:
        "Attack {wildcards.dataset} x {wildcards.architecture}, seed {wildcards.seed}"
    shell:
        "python -m neural_collapse measure-robustness --recipe {params.recipe:q}"
        " --data-folder {params.data:q} --checkpoint-folder {input.checkpoints:q}"
        " --output {output.robustness:q} --seed {wildcards.seed} --state-root {params.state:q}"
        " --gpus {resources.gpu} --gpu-slots {resources.gpu_slots} --log {log:q}"
