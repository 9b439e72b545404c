"""Generated pages of the site, from other folders, the registry and the command line; and
docstrings' examples as code."""

import argparse
import re
from functools import partial
from pathlib import Path

from griffe import Extension
from latex2mathml.converter import convert
from mkdocs.structure.files import File

from neural_collapse import REGISTRY
from neural_collapse.cli.main import build_parser

ELSEWHERE = {"config/README.md": "configuration.md", "CHANGELOG.md": "changelog.md"}


class Examples(Extension):
    """Examples (>>>) in docstrings as code blocks; Markdown would make quotations of them."""

    def on_instance(self, *, obj, **_):
        if obj.docstring:
            example = r"(?ms)^(\s*)(>>> .*?)(?=\n\s*\n|\s*\Z)"
            text = re.sub(example, r"\1```pycon\n\2\n```", obj.docstring.value)
            obj.docstring.value = text


def on_files(files, config):
    root = Path(config.config_file_path).parent
    for path, page in ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown, page, **_):
    # Links lead to the file in the repository, and to the page on the site.
    for path, name in ELSEWHERE.items():
        markdown = markdown.replace(f"](../{path}", f"]({name}")
    if page.file.src_uri == "commands.md":
        markdown += commands()
    if page.file.src_uri == "statistics.md":
        markdown += statistics()
    return markdown


def statistics() -> str:
    """The registry, one entry per statistic."""
    parts = [""]
    for name, entry in REGISTRY.items():
        source = entry.source
        figure = f" Figure {entry.figure} of the paper." if entry.figure else ""
        alias = f" Short name: `{entry.alias}`." if entry.alias else ""
        parts += [
            f"## {name}",
            "",
            f"{entry.what[0].upper()}{entry.what[1:]}. Tends to: {entry.tends_to}.{figure}{alias}",
            "",
            f'<div style="overflow-x: auto">{formula(entry.formula)}</div>',
            "",
            f"Source: {source.authors}, {source.venue} {source.year}, "
            f"[doi:{source.doi}](https://doi.org/{source.doi}).",
            "",
        ]
    return "\n".join(parts)


def formula(latex: str) -> str:
    """MathML, which browsers show without a script."""
    return convert(latex.replace(r"\arg", r"\mathrm{arg}\,"), display="block")


def commands() -> str:
    """The help of the whole command line and of every subcommand."""
    parser = build_parser()
    parts = ["", "## All commands", "", _help(parser)]
    for name, command in parser._subparsers._group_actions[0].choices.items():
        parts += [f"## {name}", "", _help(command)]
    return "\n".join(parts)


def _help(parser: argparse.ArgumentParser) -> str:
    # Plain, and of one width wherever it is built.
    parser.formatter_class = partial(argparse.RawDescriptionHelpFormatter, width=90)
    return f"```text\n{argparse.ArgumentParser.format_help(parser).strip()}\n```\n"
