"""The command line: one subcommand a rule, so that what a rule runs, a person can run.

Nothing heavy is imported before a subcommand needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NoReturn

from ..io.errors import UserError

USER_ERROR = 2  # the exit status of a mistake that one sentence explains


def _json_argument(text: str):
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise argparse.ArgumentTypeError("is not JSON") from None


def _titles(text: str) -> dict[str, str]:
    titles = _json_argument(text)
    if not isinstance(titles, dict) or not all(isinstance(t, str) for t in titles.values()):
        raise argparse.ArgumentTypeError("is not a JSON object of texts")
    return titles


def _at_least(lowest: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        # Longer ones fit into no generator of random numbers.
        if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"is not a whole number of {lowest} or more: {text!r}")
        return int(text)

    return number


class _ArgumentParser(argparse.ArgumentParser):
    """Says what is wrong in one line, and helps in colour where a terminal shows it."""

    def format_help(self) -> str:
        # Imported here, since a job prints no help.
        from rich_argparse import RawDescriptionRichHelpFormatter

        class Formatter(RawDescriptionRichHelpFormatter):
            text_markup = help_markup = False  # texts mean their brackets
            highlights: ClassVar = [
                *RawDescriptionRichHelpFormatter.highlights,
                r"(?m)^(?P<groups>\w[^\n]*:)$",
                r"(?m)^  (?P<args>[a-z-]+)  ",
            ]

        self.formatter_class = Formatter
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"error: {message}; see {self.prog} --help\n")


class _Parser:
    """Builds subcommands whose options are keyword arguments of a stage."""

    def __init__(self) -> None:
        self.parser = _ArgumentParser(
            prog="neural-collapse",
            description="Reproduction of Neural Collapse (Papyan, Han and Donoho, PNAS 2020).",
        )
        from .. import __version__

        self.parser.add_argument("--version", action="version", version=__version__)
        self.commands = self.parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
        self.groups: dict[str, list[tuple[str, str]]] = {}
        self.group = ""

    def command(self, name: str, summary: str, run: Callable) -> argparse.ArgumentParser:
        parser = self.commands.add_parser(name, description=summary)
        self.groups.setdefault(self.group, []).append((name, summary))
        parser.add_argument("--log", type=Path, metavar="FILE", help="keep what is said there, too")
        parser.set_defaults(run=run)
        return parser

    def finished(self) -> argparse.ArgumentParser:
        """The parser, its commands listed in groups."""
        lines = []
        for group, commands in self.groups.items():
            lines += [f"{group}:", *(f"  {name:22}{summary}" for name, summary in commands), ""]
        lines.append("neural-collapse COMMAND --help describes a command's options.")
        self.parser.epilog = "\n".join(lines)
        return self.parser


PATHS = {
    "recipe": "the cell's recipe.json",
    "raw-folder": "what download-dataset left",
    "data-folder": "what prepare-dataset left",
    "checkpoint-folder": "weights of the measured epochs",
    "features-folder": "what extract-features left",
    "tables-folder": "what collect-tables left",
    "figures-folder": "where the figures lie",
    "output": "the file to write",
    "output-folder": "the folder to write",
    "output-base": "the files to write, without their endings",
    "table": "the sweep's table to write",
    "selection": "the file to write that names the winner",
    "curves": "the learning curves of the sweep",
    "history": "the learning curve to write",
    "run-facts": "the run.json to write",
    "statistics": "NC1 to NC4 of every measured epoch",
    "activations": "features of a few examples, for Figure 1",
    "histories": "the learning curves of the runs",
    "robustness": "DeepFool at every checkpoint",
    "runs": "the run.json of every run",
    "sweeps": "the tables of the sweeps",
    "cards": "the data cards",
    "recipes": "the recipe.json of every cell",
    "done-states": "what jobs that are done kept for a kill at their end; is deleted",
}
"""What a file or folder is, where no subcommand says more."""


def _path(
    parser: argparse.ArgumentParser,
    *names: str,
    required: bool = True,
    help: str | None = None,
    **more,
) -> None:
    for name in names:
        parser.add_argument(
            f"--{name}",
            type=Path,
            required=required,
            metavar="PATH",
            help=help or PATHS[name],
            **more,
        )


def _paths(parser: argparse.ArgumentParser, *names: str) -> None:
    _path(parser, *names, required=False, nargs="*", default=[])


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default=os.environ.get("NC_DEVICE", "auto"),
        help="auto takes a GPU where there is one; or the variable NC_DEVICE",
    )
    parser.add_argument("--gpus", type=_at_least(0), default=1, help="GPUs that the job was given")
    parser.add_argument(
        "--gpu-slots",
        type=_at_least(1),
        metavar="N",
        help="jobs that may share one GPU; by default one, or the variable NC_GPU_SLOTS",
    )
    _path(parser, "state-root", help="where an interrupted job keeps what it has")


def _training_device(parser: argparse.ArgumentParser) -> None:
    _device(parser)
    parser.add_argument(
        "--processes",
        type=_at_least(1),
        metavar="N",
        help="processes that share the training; by default one a GPU, or one on the CPU",
    )


def _seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=_at_least(0), required=True, metavar="N", help="of the run")


def _layout(parser: argparse.ArgumentParser) -> None:
    default = "by default those of the runs, in the paper's order"
    parser.add_argument("--datasets", nargs="+", help=f"columns, in order; {default}")
    parser.add_argument("--architectures", nargs="+", help=f"rows, in order; {default}")
    parser.add_argument("--labels", type=_titles, default={}, help="titles, as JSON")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    cli = _Parser()

    cli.group = "look"
    parser = cli.command("plan", "say what a config will cost before it starts", _plan)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, metavar="PATH", help="a config file")
    source.add_argument("--config-json", type=_json_argument, help="a config, as JSON")

    parser = cli.command("status", "what is done, running or failed, and the time left", _status)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "results", type=Path, nargs="?", metavar="RESULTS", help="a folder such as results/paper"
    )
    source.add_argument(
        "--config", type=Path, metavar="PATH", help="a config file; counts what was not begun, too"
    )

    parser = cli.command("show", "a training's curves as text: loss, error, NC1 to NC4", _show)
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="a run's folder, an experiment's, or of tables"
    )
    for name in ("dataset", "architecture"):
        parser.add_argument(f"--{name}", metavar="NAME", help=f"trainings of this {name} alone")
    parser.add_argument("--seed", type=int, metavar="N", help="trainings of this seed alone")
    parser.add_argument(
        "--width", type=_at_least(1), help="characters a line; by default the terminal's"
    )

    cli.group = "your own model"
    parser = cli.command("statistics", "NC1 to NC4 of features that you have saved", _own)
    array = "a .npy, .npz, .pt, .safetensors, .csv or .parquet file"
    _path(parser, "features", help=f"(N, d), the input of the last linear layer: {array}")
    _path(parser, "labels", help=f"(N,), classes from 0: {array}")
    _path(parser, "classifier", help=f"(C, d), the last layer's weight: {array}")
    _path(parser, "bias", required=False, help=f"(C,), its bias: {array}")
    _path(parser, "test-features", required=False, help="measures a test set as well")
    _path(parser, "test-labels", required=False, help=f"their labels: {array}")
    _path(parser, "output", required=False, help="write the table as .parquet or .csv")

    cli.group = "reference results"
    parser = cli.command(
        "export-reference", "add an experiment's runs to the shipped results", _export
    )
    _path(parser, "results-folder", help="of the experiment, such as results/paper")
    _path(parser, "output-folder", help="the set, such as results/reference/paper")
    parser.add_argument(
        "--resources-folder", type=Path, default=Path("resources"), metavar="PATH", help="downloads"
    )

    cli.group = "the pipeline's stages, in order"
    parser = cli.command("download-dataset", "fetch a dataset's files and check them", _download)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="as a config names it")
    _path(parser, "output-folder")
    parser.add_argument(
        "--mirror",
        default=os.environ.get("NC_DATA_MIRROR"),
        help="a folder or address with the datasets' files; or the variable NC_DATA_MIRROR",
    )
    parser.add_argument(
        "--imagenet-folder",
        type=Path,
        metavar="PATH",
        default=os.environ.get("NC_IMAGENET_FOLDER"),
        help="where ILSVRC-2012 lies; or the variable NC_IMAGENET_FOLDER",
    )
    parser.add_argument("--custom", type=_json_argument, help="a person's own dataset, as JSON")

    parser = cli.command("prepare-dataset", "decode, balance and pad a dataset once", _prepare)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="as a config names it")
    _path(parser, "raw-folder", "output-folder")
    parser.add_argument("--data-recipe", type=_json_argument, required=True, help="as JSON")
    parser.add_argument("--custom", type=_json_argument, help="a person's own dataset, as JSON")
    parser.add_argument(
        "--workers", type=_at_least(1), default=1, metavar="N", help="processes that decode images"
    )

    parser = cli.command("train-candidate", "train one learning rate of the sweep", _candidate)
    _path(parser, "recipe", "data-folder", "output")
    parser.add_argument("--learning-rate", type=float, required=True, help="one of the sweep's")
    _training_device(parser)

    parser = cli.command("select-learning-rate", "choose the sweep's winner", _select)
    _path(parser, "recipe", "table", "selection")
    _paths(parser, "curves", "done-states")

    parser = cli.command("train-model", "train the chosen rate and keep checkpoints", _train)
    _path(parser, "recipe", "data-folder", "checkpoint-folder", "history", "run-facts")
    _path(parser, "winner", required=False, help="the winning learning curve of the sweep")
    _seed(parser)
    _training_device(parser)

    parser = cli.command("extract-features", "moments of every checkpoint's features", _features)
    _path(parser, "recipe", "data-folder", "checkpoint-folder", "output-folder")
    _paths(parser, "done-states")
    _device(parser)

    parser = cli.command("compute-statistics", "NC1 to NC4 of every measured epoch", _statistics)
    _path(parser, "recipe", "features-folder", "statistics", "activations")
    _paths(parser, "done-states")
    _seed(parser)

    parser = cli.command("measure-robustness", "DeepFool at every checkpoint", _robustness)
    _path(parser, "recipe", "data-folder", "checkpoint-folder", "output")
    _seed(parser)
    _device(parser)

    parser = cli.command("collect-tables", "put the tables of all runs together", _collect)
    _paths(parser, "histories", "statistics", "robustness", "activations", "runs", "sweeps")
    _paths(parser, "recipes", "done-states")
    parser.add_argument("--labels", type=_titles, default={}, help="titles, as JSON")
    _path(parser, "output-folder")
    _path(parser, "reference-folder", required=False, help="reference runs to show as well")

    parser = cli.command("compare-with-paper", "write Table 1 and judge the claims", _compare)
    _path(parser, "tables-folder", "output-folder")
    _layout(parser)

    parser = cli.command("plot", "draw figures from the tables", _plot)
    _path(parser, "tables", help=PATHS["tables-folder"])
    parser.add_argument(
        "--figure",
        nargs="+",
        metavar="NAME",
        help="1 to 8, sweep or overview; by default all",
    )
    _path(
        parser,
        "output",
        required=False,
        nargs="+",
        help="of one figure, the files to write: .png, .svg, .pdf, .rst (the caption); of Figure 1 "
        "also .gif and .html",
    )
    _path(parser, "output-folder", required=False, help="of several, where they are written")
    parser.add_argument(
        "--formats",
        nargs="+",
        default=["png", "svg", "pdf"],
        metavar="FORMAT",
        help="of the files in the folder; gif and html are of Figure 1 alone",
    )
    parser.add_argument(
        "--epoch-axis", choices=("linear", "log"), default="linear", help="how epochs are spaced"
    )
    parser.add_argument(
        "--processes", type=_at_least(1), default=1, metavar="N", help="that share the figures"
    )
    _layout(parser)

    parser = cli.command("report", "build the report page", _report)
    _path(parser, "tables-folder", "figures-folder", "output")
    _paths(parser, "runs", "cards")
    _path(parser, "reference-folder", required=False, help="reference runs that are shown as well")
    _layout(parser)
    parser.add_argument("--config-json", type=_json_argument, required=True, help="the config")

    cli.group = "for maintainers"
    cli.command("config-schema", "print the config's JSON schema", _schema)
    cli.command("config-reference", "print the reference of every config key", _reference)
    return cli.finished()


# Each function below is a subcommand: it takes its options to a stage.


def _download(options: argparse.Namespace) -> None:
    from ..data.download import download_dataset
    from ..io.progress import Amounts

    download_dataset(
        options.dataset,
        options.output_folder,
        mirror=options.mirror,
        imagenet_folder=options.imagenet_folder,
        custom=_custom(options),
        progress=Amounts(options.dataset, unit="MB", divisor=1e6),
    )


def _prepare(options: argparse.Namespace) -> None:
    from ..data.prepare import prepare_dataset
    from ..data.recipe import DataRecipe
    from ..experiment.messages import parse_model
    from ..io.progress import Amounts

    prepare_dataset(
        options.dataset,
        options.raw_folder,
        options.output_folder,
        parse_model(DataRecipe, options.data_recipe, "--data-recipe"),
        custom=_custom(options),
        workers=options.workers,
        progress=Amounts(options.dataset),
    )


def _custom(options: argparse.Namespace):
    from ..data.registry import CustomDataset
    from ..experiment.messages import parse_model

    given = options.custom
    return None if given is None else parse_model(CustomDataset, given, "--custom")


def _candidate(options: argparse.Namespace) -> None:
    from ..experiment.stages import train_candidate

    train_candidate(
        options.recipe,
        options.data_folder,
        options.output,
        learning_rate=options.learning_rate,
        processes=options.processes,
        **_device_options(options),
    )


def _select(options: argparse.Namespace) -> None:
    from ..experiment.stages import select_learning_rate

    select_learning_rate(options.recipe, options.curves, options.table, options.selection)


def _train(options: argparse.Namespace) -> None:
    from ..experiment.stages import train_model

    train_model(
        options.recipe,
        options.data_folder,
        options.checkpoint_folder,
        options.history,
        options.run_facts,
        seed=options.seed,
        winner=options.winner,
        processes=options.processes,
        **_device_options(options),
    )


def _features(options: argparse.Namespace) -> None:
    from ..experiment.stages import extract_features

    extract_features(
        options.recipe,
        options.data_folder,
        options.checkpoint_folder,
        options.output_folder,
        **_device_options(options),
    )


def _statistics(options: argparse.Namespace) -> None:
    from ..experiment.stages import compute_statistics

    compute_statistics(
        options.recipe,
        options.features_folder,
        options.statistics,
        options.activations,
        seed=options.seed,
    )


def _robustness(options: argparse.Namespace) -> None:
    from ..experiment.stages import measure_robustness

    measure_robustness(
        options.recipe,
        options.data_folder,
        options.checkpoint_folder,
        options.output,
        seed=options.seed,
        **_device_options(options),
    )


def _collect(options: argparse.Namespace) -> None:
    from ..experiment.stages import collect_tables

    collect_tables(
        options.histories,
        options.statistics,
        options.robustness,
        options.activations,
        options.runs,
        options.sweeps,
        options.recipes,
        options.labels,
        options.output_folder,
        options.reference_folder,
    )


def _device_options(options: argparse.Namespace) -> dict:
    if options.gpu_slots is not None:
        os.environ["NC_GPU_SLOTS"] = str(options.gpu_slots)
    return {
        "state_root": options.state_root,
        "device": options.device,
        "gpus": options.gpus,
    }


def _compare(options: argparse.Namespace) -> None:
    from ..results.claims import check_claims, write_claims
    from ..results.layout import Layout
    from ..results.table1 import build_table_1, write_table_1
    from ..results.tables import read_table

    tables = [
        read_table(options.tables_folder / f"{name}.parquet", name)
        for name in ("measurements", "runs")
    ]
    layout = Layout.of(tables[1], options.datasets, options.architectures, options.labels)
    table_1, claims = build_table_1(*tables, layout), check_claims(*tables)
    write_table_1(table_1, options.output_folder / "table_1")
    write_claims(claims, options.output_folder / "claims")


def _plot(options: argparse.Namespace) -> None:
    from ..figures import MOVING, NAMES
    from ..figures.registry import figure_entry, plot

    names = [figure_entry(name).name for name in options.figure or NAMES]
    if options.output and (len(names) > 1 or options.output_folder):
        raise UserError("--output: is for one --figure; several are drawn into --output-folder")
    if not options.output and not options.output_folder:
        raise UserError("--output or --output-folder: give where the figures are written")
    files = {names[0]: options.output}
    if options.output_folder:
        files = {
            name: [
                options.output_folder / f"{name}.{format}"
                for format in options.formats
                if format not in MOVING or name == "figure_1"
            ]
            for name in names
        }
    plot(
        options.tables,
        files,
        epoch_axis=options.epoch_axis,
        datasets=options.datasets,
        architectures=options.architectures,
        labels=options.labels,
        processes=options.processes,
    )


def _report(options: argparse.Namespace) -> None:
    import yaml

    from ..io.files import read_json
    from ..report.build import build_report, report_figures
    from ..results.run_facts import read_run

    config = options.config_json
    if not isinstance(config, dict) or not isinstance(config.get("experiment"), str):
        raise UserError("--config-json: is no config, which names its experiment")
    figures = report_figures(
        options.tables_folder,
        options.figures_folder,
        options.datasets,
        options.architectures,
        options.labels,
        epoch_axis=(config.get("figures") or {}).get("epoch_axis", "linear"),
    )
    shipped = cards = []
    if options.reference_folder is not None:
        from ..results.reference_runs import read_cards, read_runs

        shipped, cards = read_runs(options.reference_folder), read_cards(options.reference_folder)
    build_report(
        options.tables_folder,
        figures,
        options.output,
        [*(read_run(path) for path in options.runs), *shipped],
        [*(read_json(path, "data card") for path in options.cards), *cards],
        yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        title=f"Neural collapse: {config['experiment']}",
    )


def _plan(options: argparse.Namespace) -> None:
    from ..experiment.config import check_config, load_config
    from ..experiment.plan import plan

    given = options.config_json
    print(plan(load_config(options.config) if given is None else check_config(given)))


def _status(options: argparse.Namespace) -> None:
    from ..experiment.config import load_config
    from ..inspect.status import status_text

    config = None if options.config is None else load_config(options.config)
    print(status_text(options.results if config is None else Path(config.folder), config))


def _show(options: argparse.Namespace) -> None:
    from ..inspect.curves import show

    print(show(options.path, options.dataset, options.architecture, options.seed, options.width))


def _own(options: argparse.Namespace) -> None:
    from ..collapse.saved_features import (
        check_table_path,
        render_statistics,
        statistics_of_files,
        write_statistics,
    )

    if options.output is not None:
        check_table_path(options.output)
    table = statistics_of_files(
        options.features,
        options.labels,
        options.classifier,
        options.bias,
        options.test_features,
        options.test_labels,
    )
    if options.output is not None:
        write_statistics(table, options.output)
    print(render_statistics(table))


def _export(options: argparse.Namespace) -> None:
    from ..experiment.export import export_reference

    export_reference(options.results_folder, options.output_folder, options.resources_folder)


def _schema(options: argparse.Namespace) -> None:
    from ..experiment.config import json_schema

    print(json_schema(), end="")


def _reference(options: argparse.Namespace) -> None:
    from ..experiment.config_page import config_reference

    print(config_reference(), end="")


class _Tee:
    """Standard error that is kept in a file as well."""

    def __init__(self, screen, file):
        self.screen, self.file = screen, file

    def write(self, text: str) -> int:
        self.file.write(text)
        return self.screen.write(text)

    def flush(self) -> None:
        self.file.flush()
        self.screen.flush()

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self.screen.fileno()


@contextlib.contextmanager
def _logged(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        screen, sys.stderr = sys.stderr, _Tee(sys.stderr, file)
        try:
            yield
        finally:
            sys.stderr = screen


def _say_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """A warning as one line, without the source that it came from."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; the exit status is 0, 2 for a user's mistake, 1 for a fault of ours."""
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks how a line could go on
        import argcomplete

        argcomplete.autocomplete(parser)
    options = parser.parse_args(arguments)
    warnings.showwarning = _say_warning
    try:
        with _logged(options.log):
            try:
                options.run(options)
                if done := getattr(options, "done_states", ()):
                    from ..io.locks import clear_finished

                    for root in done:
                        clear_finished(root)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                return USER_ERROR
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 1
            except KeyboardInterrupt:
                print("interrupted; what is done is kept", file=sys.stderr)
                return 130
            except Exception:
                traceback.print_exc()
                return 1
    except OSError as error:
        print(f"error: {options.log}: cannot be written: {error.strerror}", file=sys.stderr)
        return USER_ERROR
    return 0
