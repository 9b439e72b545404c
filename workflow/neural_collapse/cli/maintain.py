"""Subcommands for those who ship results and keep the config's pages up to date."""

from __future__ import annotations

from pathlib import Path

from .parser import Commands, path


def add_reference_to(cli: Commands) -> None:
    """Add what exports reference results."""
    cli.group("reference results")
    cli.add(
        "export-reference", "add an experiment's runs to the shipped results",
        "experiment.export:export_reference",
        path("results-folder", "of the experiment, such as results/paper"),
        path("output-folder", "the set, such as results/reference/paper"),
        path("resources-folder", "downloads", required=False, default=Path("resources")),
    )  # fmt: skip


def add_to(cli: Commands) -> None:
    """Add what prints the config's schema and page."""
    cli.group("for maintainers")
    cli.add("config-schema", "print the config's JSON schema", "experiment.config:json_schema")
    cli.add(
        "config-page", "print the page of every config key",
        "experiment.config_page:config_page",
    )  # fmt: skip
