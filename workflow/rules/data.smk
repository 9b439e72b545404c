# Datasets: fetched once, decoded once.


rule download_dataset:
    output:
        source=PATHS.raw(),
    log:
        PATHS.log("download_dataset", "{dataset}{suffix}"),
    benchmark:
        PATHS.benchmark("download_dataset", "{dataset}{suffix}")
    retries: 2
    conda:
        "../../envs/neural_collapse.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=720,
    params:
        folder=subpath(output.source, parent=True),
        custom=EXPERIMENT.custom_options,
    message:
        "Download {wildcards.dataset}"
    shell:
        "python -m neural_collapse download-dataset --dataset {wildcards.dataset}"
        " --output-folder {params.folder:q} {params.custom:q} --log {log:q}"


rule prepare_dataset:
    input:
        source=EXPERIMENT.raw_source,
        own=EXPERIMENT.custom_files,
    output:
        **{name: PATHS.prepared(f"{name}.npy") for name in ARRAYS},
        card=PATHS.prepared("card.json"),
    log:
        PATHS.log("prepare_dataset", "{dataset}-{preparation}"),
    benchmark:
        PATHS.benchmark("prepare_dataset", "{dataset}-{preparation}")
    conda:
        "../../envs/neural_collapse.yaml"
    threads: lambda wildcards: 8 if wildcards.dataset == "imagenet" else 1
    resources:
        mem_mb=8000,
        runtime=720,
    params:
        raw=subpath(input.source, parent=True),
        folder=subpath(output.card, parent=True),
        recipe=lambda wildcards: EXPERIMENT.preparations[
            wildcards.dataset, wildcards.preparation
        ].data.model_dump_json(),
        custom=EXPERIMENT.custom_options,
        contents=EXPERIMENT.custom_contents,
        version=versions.PREPARATION,
    message:
        "Prepare {wildcards.dataset} ({wildcards.preparation})"
    shell:
        "python -m neural_collapse prepare-dataset --dataset {wildcards.dataset}"
        " --raw-folder {params.raw:q} --output-folder {params.folder:q}"
        " --data-recipe {params.recipe:q} --workers {threads} {params.custom:q} --log {log:q}"
