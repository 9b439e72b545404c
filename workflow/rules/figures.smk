# From tables to figures, Table 1, claims and the report. Nothing here needs data, GPU or networks.


localrules:
    collect_tables,
    compare_with_paper,
    build_report,


rule collect_tables:
    input:
        histories=EXPERIMENT.of_runs("history.parquet"),
        statistics=EXPERIMENT.of_runs("statistics.parquet"),
        robustness=EXPERIMENT.of_runs("robustness.parquet"),
        activations=EXPERIMENT.of_runs("activations.parquet"),
        runs=runs_with_record,
        sweeps=EXPERIMENT.sweep_tables(),
        reference=REFERENCE,
    output:
        **{name: PATHS.table(name) for name in TABLES},
    log:
        PATHS.log("collect_tables"),
    benchmark:
        PATHS.benchmark("collect_tables")
    conda:
        "../../envs/neural_collapse.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        folder=subpath(output.measurements, parent=True),
        labels=lambda wildcards: EXPERIMENT.titles(),
        recipes=[PATHS.recipe(*cell) for cell in EXPERIMENT.recipes],
        depends_on={
            " x ".join(cell): recipe.measurement.terminal_phase_accuracy
            for cell, recipe in EXPERIMENT.recipes.items()
        },
        reference=reference_options(),
        done=[PATHS.state(run_job(*run), "robustness") for run in EXPERIMENT.runs],
        code=code_hash(
            "results",
            "experiment/stages/collect.py",
            "training/closed_form.py",
            "training/recipe.py",
        ),
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
        **{name: PATHS.table(name) for name in TABLES},
    output:
        **EXPERIMENT.drawings(*UNREPORTED),
        **{name: in_report(path) for name, path in EXPERIMENT.drawings(*REPORTED).items()},
    log:
        PATHS.log("plot_figures"),
    benchmark:
        PATHS.benchmark("plot_figures")
    conda:
        "../../envs/neural_collapse.yaml"
    threads: 2
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        tables=subpath(input.measurements, parent=True),
        folder=subpath(output[0], parent=True),
        figures=EXPERIMENT.figures,
        formats=[*CONFIG.figures.formats, "rst"],
        look=EXPERIMENT.look.options(),
        layout=lambda wildcards: EXPERIMENT.layout(),
        code=code_hash("figures", "results", "collapse", "experiment/stages/figures.py"),
    message:
        "Draw the figures"
    shell:
        "python -m neural_collapse plot --figure {params.figures} --tables {params.tables:q}"
        " --output-folder {params.folder:q} --formats {params.formats}"
        " {params.look} --processes {threads} {params.layout:q} --log {log:q}"


rule compare_with_paper:
    input:
        measurements=PATHS.table("measurements"),
        runs=PATHS.table("runs"),
    output:
        parquet=[PATHS.table("table_1"), PATHS.table("claims")],
        table_1=report(
            PATHS.table("table_1", "csv"),
            caption="../report/table_1.rst",
            category="Tables",
            labels={"table": "Table 1"},
        ),
        claims=report(
            PATHS.table("claims", "csv"),
            caption="../report/claims.rst",
            category="Tables",
            labels={"table": "Claims"},
        ),
        texts=[
            PATHS.table("table_1", "md"),
            PATHS.table("table_1", "tex"),
            PATHS.table("claims", "md"),
        ],
    log:
        PATHS.log("compare_with_paper"),
    benchmark:
        PATHS.benchmark("compare_with_paper")
    conda:
        "../../envs/neural_collapse.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        folder=subpath(input.measurements, parent=True),
        layout=lambda wildcards: EXPERIMENT.layout(),
        code=code_hash("results", "collapse", "experiment/stages/collect.py"),
    message:
        "Compare with the paper: Table 1 and claims"
    shell:
        "python -m neural_collapse compare-with-paper --tables-folder {params.folder:q}"
        " --output-folder {params.folder:q} {params.layout:q} --log {log:q}"


rule build_report:
    input:
        tables=EXPERIMENT.table_files(),
        figures=list(EXPERIMENT.drawings(*CONFIG.figures.formats).values()),
        runs=EXPERIMENT.of_runs("run.json"),
        cards=EXPERIMENT.cards(),
        reference=REFERENCE,
    output:
        page=report(PATHS.report, caption="../report/report.rst", category="Report"),
    log:
        PATHS.log("build_report"),
    benchmark:
        PATHS.benchmark("build_report")
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
        layout=lambda wildcards: EXPERIMENT.layout(),
        reference=reference_options(),
        code=code_hash("report", "figures", "results", "collapse", "experiment/stages/figures.py"),
    message:
        "Build the report"
    shell:
        "python -m neural_collapse report --tables-folder {params.tables:q}"
        " --figures-folder {params.figures:q} --config-json {params.config:q} {params.layout:q}"
        " --runs {input.runs:q} --cards {input.cards:q} {params.reference:q}"
        " --output {output.page:q} --log {log:q}"


rule plan:
    log:
        PATHS.log("plan"),
    conda:
        "../../envs/neural_collapse.yaml"
    params:
        config=lambda wildcards: CONFIG.model_dump_json(exclude_unset=True),
    message:
        "Plan {CONFIG.experiment}"
    shell:
        "python -m neural_collapse plan --config-json {params.config:q} --log {log:q}"
