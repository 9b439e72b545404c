# Training: the sweep of learning rates, its winner, and the winner's checkpoints.


localrules:
    resolve_recipe,
    select_learning_rate,


rule resolve_recipe:
    output:
        recipe="<cell>/recipe.json",
    log:
        "<logs>/resolve_recipe/{dataset}-{architecture}.log",
    benchmark:
        "<logs>/resolve_recipe/{dataset}-{architecture}.tsv"
    conda:
        "../../envs/neural_collapse.yaml"
    params:
        # No result depends on what the scheduler is asked for.
        recipe=lambda wildcards: recipe_of(wildcards).model_dump_json(exclude={"resources"}),
    message:
        "Write the recipe of {wildcards.dataset} x {wildcards.architecture}"
    shell:
        "python -m neural_collapse resolve-recipe --recipe-json {params.recipe:q}"
        " --output {output.recipe:q} --log {log:q}"


rule train_candidate:
    input:
        # Which of its parts matter to this job, the params say.
        recipe=ancient("<cell>/recipe.json"),
        card=prepared("card.json"),
    output:
        curve="<sweep>/learning-rate-{learning_rate}.parquet",
    log:
        "<logs>/train_candidate/{dataset}-{architecture}-{learning_rate}.log",
    benchmark:
        "<logs>/train_candidate/{dataset}-{architecture}-{learning_rate}.tsv"
    conda:
        "../../envs/neural_collapse.yaml"
    threads: threads_of
    resources:
        gpu=recipe_resource("gpu"),
        mem_mb=recipe_resource("memory_mb"),
        runtime=recipe_resource("runtime_minutes"),
    params:
        recipe=recipe_slice("network", "training"),
        seed=lambda wildcards: recipe_of(wildcards).sweep.seed,
        data=subpath(input.card, parent=True),
        state=state("{dataset}-{architecture}-{learning_rate}"),
        device=CONFIG.device,
    message:
        "Train {wildcards.dataset} x {wildcards.architecture} at learning rate"
        " {wildcards.learning_rate}"
    shell:
        "python -m neural_collapse train-candidate --recipe {input.recipe:q}"
        " --data-folder {params.data:q} --learning-rate {wildcards.learning_rate}"
        " --output {output.curve:q} --state-root {params.state:q}"
        " --device {params.device} --gpus {resources.gpu} --log {log:q}"


checkpoint select_learning_rate:
    input:
        recipe=ancient("<cell>/recipe.json"),
        curves=curves,
    output:
        table="<sweep>/sweep.parquet",
        selection="<sweep>/selection.json",
    log:
        "<logs>/select_learning_rate/{dataset}-{architecture}.log",
    benchmark:
        "<logs>/select_learning_rate/{dataset}-{architecture}.tsv"
    conda:
        "../../envs/neural_collapse.yaml"
    params:
        recipe=recipe_slice("sweep"),
    message:
        "Select the learning rate of {wildcards.dataset} x {wildcards.architecture}"
    shell:
        "python -m neural_collapse select-learning-rate --recipe {input.recipe:q}"
        " --curves {input.curves:q} --table {output.table:q} --selection {output.selection:q}"
        " --log {log:q}"


rule train_model:
    input:
        recipe=ancient("<cell>/recipe.json"),
        card=prepared("card.json"),
        winner=winner,
    output:
        checkpoints=directory("<run>/checkpoints"),
        history="<run>/history.parquet",
        run="<run>/run.json",
    log:
        "<logs>/train_model/{dataset}-{architecture}-seed-{seed}.log",
    benchmark:
        "<logs>/train_model/{dataset}-{architecture}-seed-{seed}.tsv"
    conda:
        "../../envs/neural_collapse.yaml"
    threads: threads_of
    resources:
        gpu=recipe_resource("gpu"),
        mem_mb=recipe_resource("memory_mb"),
        runtime=recipe_resource("runtime_minutes"),
    params:
        recipe=recipe_slice("network", "training"),
        epochs=epochs_of,
        pinned=lambda wildcards: recipe_of(wildcards).sweep.learning_rate,
        winner=lambda wildcards, input: ["--winner", input.winner] if input.winner else [],
        data=subpath(input.card, parent=True),
        state=state("{dataset}-{architecture}-seed-{seed}"),
        device=CONFIG.device,
    message:
        "Train {wildcards.dataset} x {wildcards.architecture}, seed {wildcards.seed}"
    shell:
        "python -m neural_collapse train-model --recipe {input.recipe:q}"
        " --data-folder {params.data:q} --seed {wildcards.seed} {params.winner:q}"
        " --checkpoint-folder {output.checkpoints:q} --history {output.history:q}"
        " --run-facts {output.run:q} --state-root {params.state:q}"
        " --device {params.device} --gpus {resources.gpu} --log {log:q}"
