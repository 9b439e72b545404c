# From tables to figures, Table 1, claims and the report. Nothing here needs data, GPU or networks.


localrules:
    collect_tables,
    compare_with_paper,
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


rule plot_figures:
    input:
        **{name: f"<results>/tables/{name}.parquet" for name in TABLES},
    output:
        **drawings(reported=False),
        **{name: in_report(path) for name, path in drawings(reported=True).items()},
    log:
        "<logs>/plot_figures.log",
    benchmark:
        "<logs>/plot_figures.tsv"
    conda:
        "../../envs/neural_collapse.yaml"
    threads: 2
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        tables=subpath(input.measurements, parent=True),
        folder=subpath(output.overview_png, parent=True),
        figures=drawn_figures(),
        formats=[*CONFIG.figures.formats, "rst"],
        epoch_axis=CONFIG.figures.epoch_axis,
        datasets=CONFIG.datasets,
        architectures=CONFIG.architectures,
        labels=lambda wildcards: titles(),
        code=code_hash("figures", "results"),
    message:
        "Draw the figures"
    shell:
        "python -m neural_collapse plot --figure {params.figures} --tables {params.tables:q}"
        " --output-folder {params.folder:q} --formats {params.formats}"
        " --epoch-axis {params.epoch_axis} --processes {threads} --datasets {params.datasets}"
        " --architectures {params.architectures} --labels {params.labels:q} --log {log:q}"


rule compare_with_paper:
    input:
        measurements="<results>/tables/measurements.parquet",
        runs="<results>/tables/runs.parquet",
    output:
        parquet=expand("<results>/tables/{table}.parquet", table=["table_1", "claims"]),
        table_1=report(
            "<results>/tables/table_1.csv",
            caption="../report/table_1.rst",
            category="Tables",
            labels={"table": "Table 1"},
        ),
        claims=report(
            "<results>/tables/claims.csv",
            caption="../report/claims.rst",
            category="Tables",
            labels={"table": "Claims"},
        ),
        texts=expand("<results>/tables/{text}", text=["table_1.md", "table_1.tex", "claims.md"]),
    log:
        "<logs>/compare_with_paper.log",
    benchmark:
        "<logs>/compare_with_paper.tsv"
    conda:
        "../../envs/neural_collapse.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        folder=subpath(input.measurements, parent=True),
        datasets=CONFIG.datasets,
        architectures=CONFIG.architectures,
        labels=lambda wildcards: titles(),
        code=code_hash("results"),
    message:
        "Compare with the paper: Table 1 and claims"
    shell:
        "python -m neural_collapse compare-with-paper --tables-folder {params.folder:q}"
        " --output-folder {params.folder:q} --datasets {params.datasets}"
        " --architectures {params.architectures} --labels {params.labels:q} --log {log:q}"


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
        reference=reference_options(),
        code=code_hash("report", "figures", "results"),
    message:
        "Build the report"
    shell:
        "python -m neural_collapse report --tables-folder {params.tables:q}"
        " --figures-folder {params.figures:q} --config-json {params.config:q}"
        " --datasets {params.datasets} --architectures {params.architectures}"
        " --labels {params.labels:q} --runs {input.runs:q} --cards {input.cards:q} {params.reference:q}"
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
