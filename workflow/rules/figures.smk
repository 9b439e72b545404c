# From tables to figures, Table 1, claims and the report. Nothing here needs data, GPU or networks.


localrules:
    collect_tables,
    write_table,
    check_claims,
    build_report,


rule collect_tables:
    input:
        histories=of_runs("history.parquet"),
        statistics=of_runs("statistics.parquet"),
        robustness=of_runs("robustness.parquet"),
        activations=of_runs("activations.parquet"),
        runs=of_runs("run.json"),
        sweeps=sweep_tables(),
        reference=reference_files(),
    output:
        **{name: f"<results>/tables/{name}.parquet" for name in TABLES},
    log:
        "<logs>/collect_tables.log",
    benchmark:
        "<logs>/collect_tables.tsv"
    conda:
        "../../envs/neural_collapse.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        folder=subpath(output.measurements, parent=True),
        labels=lambda wildcards: titles(),
        recipes=recipe_files(),
        depends_on=terminal_phase_accuracies(),
        reference=reference_options(),
        done=robustness_states(),
        code=code_hash("results/tables.py"),
    message:
        "Collect the tables of all runs"
    shell:
        "python -m neural_collapse collect-tables --histories {input.histories:q}"
        " --statistics {input.statistics:q} --robustness {input.robustness:q}"
        " --activations {input.activations:q} --runs {input.runs:q} --sweeps {input.sweeps:q}"
        " --recipes {params.recipes:q} {params.reference:q} --labels {params.labels:q}"
        " --output-folder {params.folder:q} --done-states {params.done:q} --log {log:q}"


rule plot_figure:
    input:
        **{name: f"<results>/tables/{name}.parquet" for name in TABLES},
    output:
        expand(
            "<results>/figures/{{figure}}.{format}",
            format=[f for f in CONFIG.figures.formats if f not in ("png", *MOVING)],
        ),
        png=report(
            "<results>/figures/{figure}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        "<logs>/plot_figure/{figure}.log",
    benchmark:
        "<logs>/plot_figure/{figure}.tsv"
    conda:
        "../../envs/neural_collapse.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        tables=subpath(input.measurements, parent=True),
        base=subpath(output.png, strip_suffix=".png"),
        datasets=CONFIG.datasets,
        architectures=CONFIG.architectures,
        labels=lambda wildcards: titles(),
        formats=[f for f in CONFIG.figures.formats if f not in MOVING],
        epoch_axis=CONFIG.figures.epoch_axis,
        code=code_hash("figures", "results"),
    message:
        "Draw figure {wildcards.figure}"
    shell:
        "python -m neural_collapse plot-figure --figure {wildcards.figure}"
        " --tables-folder {params.tables:q} --output-base {params.base:q}"
        " --formats {params.formats} --epoch-axis {params.epoch_axis}"
        " --datasets {params.datasets} --architectures {params.architectures}"
        " --labels {params.labels:q} --log {log:q}"


rule animate_figure:
    input:
        activations="<results>/tables/activations.parquet",
        runs="<results>/tables/runs.parquet",
    output:
        file=report(
            "<results>/figures/figure_1.{motion}",
            caption="../report/figure_1.rst",
            category="Figures",
            labels={"figure": "figure_1 ({motion})"},
        ),
    log:
        "<logs>/animate_figure/{motion}.log",
    benchmark:
        "<logs>/animate_figure/{motion}.tsv"
    conda:
        "../../envs/neural_collapse.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        tables=subpath(input.activations, parent=True),
        base=lambda wildcards, output: os.path.splitext(output.file)[0],
        datasets=CONFIG.datasets,
        architectures=CONFIG.architectures,
        labels=lambda wildcards: titles(),
        code=code_hash("figures", "results"),
    message:
        "Draw figure 1 as {wildcards.motion}"
    shell:
        "python -m neural_collapse plot-figure --figure figure_1 --formats {wildcards.motion}"
        " --tables-folder {params.tables:q} --output-base {params.base:q}"
        " --datasets {params.datasets} --architectures {params.architectures}"
        " --labels {params.labels:q} --log {log:q}"


rule write_table:
    input:
        measurements="<results>/tables/measurements.parquet",
        runs="<results>/tables/runs.parquet",
    output:
        parquet="<results>/tables/table_1.parquet",
        csv=report(
            "<results>/tables/table_1.csv",
            caption="../report/table_1.rst",
            category="Tables",
            labels={"table": "Table 1"},
        ),
        others=expand("<results>/tables/table_1.{format}", format=["md", "tex"]),
    log:
        "<logs>/write_table.log",
    benchmark:
        "<logs>/write_table.tsv"
    conda:
        "../../envs/neural_collapse.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        tables=subpath(input.measurements, parent=True),
        base=subpath(output.parquet, strip_suffix=".parquet"),
        datasets=CONFIG.datasets,
        architectures=CONFIG.architectures,
        labels=lambda wildcards: titles(),
        code=code_hash("figures", "results"),
    message:
        "Write Table 1"
    shell:
        "python -m neural_collapse write-table --tables-folder {params.tables:q}"
        " --output-base {params.base:q} --datasets {params.datasets}"
        " --architectures {params.architectures} --labels {params.labels:q} --log {log:q}"


rule check_claims:
    input:
        measurements="<results>/tables/measurements.parquet",
        runs="<results>/tables/runs.parquet",
    output:
        parquet="<results>/tables/claims.parquet",
        csv=report(
            "<results>/tables/claims.csv",
            caption="../report/claims.rst",
            category="Tables",
            labels={"table": "Claims"},
        ),
        markdown="<results>/tables/claims.md",
    log:
        "<logs>/check_claims.log",
    benchmark:
        "<logs>/check_claims.tsv"
    conda:
        "../../envs/neural_collapse.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        tables=subpath(input.measurements, parent=True),
        base=subpath(output.parquet, strip_suffix=".parquet"),
        code=code_hash("results"),
    message:
        "Compare with the paper's claims"
    shell:
        "python -m neural_collapse check-claims --tables-folder {params.tables:q}"
        " --output-base {params.base:q} --log {log:q}"


rule build_report:
    input:
        tables=table_files(),
        figures=figure_files(),
        runs=of_runs("run.json"),
        cards=cards(),
        reference=reference_files(),
    output:
        page=report("<results>/report.html", caption="../report/report.rst", category="Report"),
    log:
        "<logs>/build_report.log",
    benchmark:
        "<logs>/build_report.tsv"
    conda:
        "../../envs/neural_collapse.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        tables=lambda wildcards, input: os.path.dirname(input.tables[0]),
        figures=lambda wildcards, input: os.path.dirname(input.figures[0]),
        config=lambda wildcards: CONFIG.model_dump_json(exclude_unset=True),
        datasets=CONFIG.datasets,
        architectures=CONFIG.architectures,
        labels=lambda wildcards: titles(),
        command=lambda wildcards: figure_command(),
        reference=reference_options(),
        code=code_hash("report", "figures", "results"),
    message:
        "Build the report"
    shell:
        "python -m neural_collapse report --tables-folder {params.tables:q}"
        " --figures-folder {params.figures:q} --config-json {params.config:q}"
        " --datasets {params.datasets} --architectures {params.architectures}"
        " --labels {params.labels:q} --figure-command {params.command:q}"
        " --runs {input.runs:q} --cards {input.cards:q} {params.reference:q}"
        " --output {output.page:q} --log {log:q}"


rule plan:
    log:
        "<logs>/plan.log",
    conda:
        "../../envs/neural_collapse.yaml"
    params:
        config=lambda wildcards: CONFIG.model_dump_json(exclude_unset=True),
    message:
        "Plan {CONFIG.experiment}"
    shell:
        "python -m neural_collapse plan --config-json {params.config:q} --log {log:q}"
