# Prevalence of neural collapse during the terminal phase of deep learning training
# (Papyan, Han and Donoho, PNAS 2020), from download to figures.
#
#   snakemake --cores 8 --resources gpu=2          everything in config.yaml, the paper's recipe
#   snakemake --cores 8 plan                       prints its cost before it starts
#   snakemake figures --cores 2 --configfile config/quickstart.yaml
#
# Targets: data, models, tables, figures, report, all (default), plan.

from snakemake.utils import min_version

min_version("9.27")

# A config file on the command line replaces the paper's recipe; they are not merged.
if not workflow.overwrite_configfiles:

    configfile: "config.yaml"


include: "workflow/rules/common.smk"  # the typed config, recipe slices, what targets consist of
include: "workflow/rules/data.smk"  # download_dataset > prepare_dataset
include: "workflow/rules/train.smk"  # train_candidate > select_learning_rate > train_model
include: "workflow/rules/measure.smk"  # extract_features > compute_statistics; measure_robustness
include: "workflow/rules/figures.smk"  # collect_tables > plot_figures, compare_with_paper > build_report


localrules:
    all,
    data,
    models,
    tables,
    figures,
    report,
    plan,


rule all:
    default_target: True
    input:
        PATHS.report,


rule data:
    input:
        EXPERIMENT.cards(),


rule models:
    input:
        runs_with_record,


rule tables:
    input:
        EXPERIMENT.table_files(),


rule figures:
    input:
        EXPERIMENT.drawings(*CONFIG.figures.formats).values(),


rule report:
    input:
        PATHS.report,
