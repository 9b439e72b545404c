"""Subcommands as data: a name, a summary, a function, and options named like its parameters."""

from __future__ import annotations

import argparse
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NoReturn

USER_ERROR = 2  # the exit status of a mistake that one sentence explains

Option = tuple[tuple[str, ...], dict[str, Any]]
"""What add_argument takes."""


def json_text(text: str) -> Any:
    """An argument that is JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise argparse.ArgumentTypeError("is not JSON") from None


def titles(text: str) -> dict[str, str]:
    """An argument that is a JSON object of texts."""
    values = json_text(text)
    if not isinstance(values, dict) or not all(isinstance(t, str) for t in values.values()):
        raise argparse.ArgumentTypeError("is not a JSON object of texts")
    return values


def at_least(lowest: int) -> Callable[[str], int]:
    """Arguments that are whole numbers of `lowest` or more."""

    def number(text: str) -> int:
        # Longer ones fit into no generator of random numbers.
        if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"is not a whole number of {lowest} or more: {text!r}")
        return int(text)

    return number


def option(*names: str, **settings: Any) -> Option:
    """An option; `dest` is the parameter that it is for, where that has another name."""
    return names, settings


def path(name: str, help: str, *, required: bool = True, **settings: Any) -> Option:
    """An option that is a path."""
    return option(f"--{name}", type=Path, required=required, metavar="PATH", help=help, **settings)


def paths(name: str, help: str, **settings: Any) -> Option:
    """An option that is any number of paths."""
    return path(name, help, required=False, nargs="*", default=[], **settings)


class ArgumentParser(argparse.ArgumentParser):
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


class Commands:
    """Builds the whole command line; nothing that a subcommand runs is imported for it."""

    def __init__(self) -> None:
        from .. import __version__

        self.parser = ArgumentParser(
            prog="neural-collapse",
            description="Reproduction of Neural Collapse (Papyan, Han and Donoho, PNAS 2020).",
        )
        self.parser.add_argument("--version", action="version", version=__version__)
        self.commands = self.parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
        self.groups: dict[str, list[tuple[str, str]]] = {}

    def group(self, title: str) -> None:
        """Begin a group in the help; the commands that follow are in it."""
        self.groups[title] = []

    def add(
        self,
        name: str,
        summary: str,
        run: str | Callable[..., str | None],
        *options: Option,
        one_of: tuple[Option, ...] = (),
    ) -> None:
        """Add a subcommand.

        run: what gets the options as keyword arguments, and may return a text to print; one of
            another module as "package.module:function", which is imported when it runs.
        one_of: options of which exactly one must be given.
        """
        list(self.groups.values())[-1].append((name, summary))
        parser = self.commands.add_parser(name, description=summary)
        parser.add_argument(
            "--log", type=Path, metavar="FILE", help="also write messages to this file"
        )
        parser.set_defaults(run=run)
        for names, settings in options:
            parser.add_argument(*names, **settings)
        if one_of:
            exclusive = parser.add_mutually_exclusive_group(required=True)
            for names, settings in one_of:
                exclusive.add_argument(*names, **settings)

    def finished(self) -> ArgumentParser:
        """The parser, its commands listed in groups."""
        lines = []
        for group, commands in self.groups.items():
            lines += [f"{group}:", *(f"  {name:22}{summary}" for name, summary in commands), ""]
        lines.append("neural-collapse COMMAND --help describes a command's options.")
        self.parser.epilog = "\n".join(lines)
        return self.parser


def function_of(run: str | Callable[..., str | None]) -> Callable[..., str | None]:
    """What a subcommand runs, imported where only its name was given."""
    if not isinstance(run, str):
        return run
    module, name = run.split(":")
    return getattr(importlib.import_module(f"..{module}", __package__), name)
