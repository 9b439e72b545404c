# Training: the sweep of learning rates, its winner, and the winner's checkpoints.


localrules:
    select_learning_rate,


rule train_candidate:
    input:
        card=EXPERIMENT.card,
    output:
        curve=PATHS.candidate(),
    log:
        PATHS.log("train_candidate", candidate_job()),
    benchmark:
        PATHS.benchmark("train_candidate", candidate_job())
    conda:
        "../../envs/neural_collapse.yaml"
    threads: EXPERIMENT.threads
    resources:
        **TRAINING,
    params:
        recipe=PATHS.recipe(),
        depends_on=EXPERIMENT.recipe_slice("network", "training"),
        learning_rate=lambda wildcards: EXPERIMENT.recipe_of(wildcards).sweep.named()[
            wildcards.learning_rate
        ],
        sweep=lambda wildcards: EXPERIMENT.recipe_of(wildcards).sweep.model_dump(
            include=SEEN_BY_CANDIDATES
        ),
        version=versions.TRAINING,
        data=subpath(input.card, parent=True),
        state=PATHS.state(candidate_job()),
    message:
        "Train {wildcards.dataset} x {wildcards.architecture} at learning rate"
        " {wildcards.learning_rate}"
    shell:
        "python -m neural_collapse train-candidate --recipe {params.recipe:q}"
        " --data-folder {params.data:q} --learning-rate {params.learning_rate}"
        " --output {output.curve:q} --state-root {params.state:q}"
        " --gpus {resources.gpu} --gpu-slots {resources.gpu_slots} --log {log:q}"


checkpoint select_learning_rate:
    input:
        curves=EXPERIMENT.candidates,
    output:
        # First, since a checkpoint whose outputs are incomplete is asked for its first one alone.
        selection=PATHS.sweep("selection.json"),
        table=PATHS.sweep("sweep.parquet"),
    log:
        PATHS.log("select_learning_rate", cell_job()),
    benchmark:
        PATHS.benchmark("select_learning_rate", cell_job())
    conda:
        "../../envs/neural_collapse.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        recipe=PATHS.recipe(),
        depends_on=EXPERIMENT.recipe_slice("sweep"),
        done=EXPERIMENT.sweep_states,
    message:
        "Select the learning rate of {wildcards.dataset} x {wildcards.architecture}"
    shell:
        "python -m neural_collapse select-learning-rate --recipe {params.recipe:q}"
        " --curves {input.curves:q} --table {output.table:q} --selection {output.selection:q}"
        " --done-states {params.done:q} --log {log:q}"


rule train_model:
    input:
        card=EXPERIMENT.card,
        winner=winner,
    output:
        checkpoints=directory(PATHS.run("checkpoints")),
        history=PATHS.run("history.parquet"),
        run=PATHS.run("run.json"),
    log:
        PATHS.log("train_model", run_job()),
    benchmark:
        PATHS.benchmark("train_model", run_job())
    conda:
        "../../envs/neural_collapse.yaml"
    threads: EXPERIMENT.threads
    resources:
        **TRAINING,
    params:
        recipe=PATHS.recipe(),
        depends_on=EXPERIMENT.recipe_slice("network", "training"),
        epochs=lambda wildcards: EXPERIMENT.recipe_of(wildcards).measured_epochs,
        version=versions.TRAINING,
        pinned=lambda wildcards: EXPERIMENT.recipe_of(wildcards).sweep.learning_rate,
        winner=lambda wildcards, input: ["--winner", input.winner] if input.winner else [],
        data=subpath(input.card, parent=True),
        state=PATHS.state(run_job()),
    message:
        "Train {wildcards.dataset} x {wildcards.architecture}, seed {wildcards.seed}"
    shell:
        "python -m neural_collapse train-model --recipe {params.recipe:q}"
        " --data-folder {params.data:q} --seed {wildcards.seed} {params.winner:q}"
        " --checkpoint-folder {output.checkpoints:q} --history {output.history:q}"
        " --run-facts {output.run:q} --state-root {params.state:q}"
        " --gpus {resources.gpu} --gpu-slots {resources.gpu_slots} --log {log:q}"
