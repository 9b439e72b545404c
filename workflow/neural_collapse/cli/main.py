"""The command line, with one subcommand per rule. Imports are delayed until they are needed."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..io.errors import UserError
from . import look, stages
from .parser import USER_ERROR, Commands, function_of

NOT_PARAMETERS = {"command", "run", "log", "done_states"}
"""What the command line itself needs of its options."""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    cli = Commands()
    look.add_to(cli)
    stages.add_to(cli)
    return cli.finished()


class _Tee:
    """Standard error that is kept in a file as well."""

    def __init__(self, screen, file):
        self.screen, self.file = screen, file

    def write(self, text: str) -> int:
        self.file.write(text)
        self.file.flush()
        return self.screen.write(text)

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str):
        return getattr(self.screen, name)


@contextlib.contextmanager
def _logged(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(path, "a", encoding="utf-8") as file,
        contextlib.redirect_stderr(_Tee(sys.stderr, file)),
    ):
        yield


def _one_line_warnings() -> Callable[..., None]:
    """Shows each warning once, as one line, without the source that it came from."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in shown:  # of every epoch the same
            shown.add(str(message))
            print(f"warning: {message}", file=sys.stderr, flush=True)

    return show


def _run(options: argparse.Namespace) -> None:
    parameters = {k: v for k, v in vars(options).items() if k not in NOT_PARAMETERS}
    text = function_of(options.run)(**parameters)
    if text is not None:
        print(text.removesuffix("\n"))
    if done := getattr(options, "done_states", ()):
        from ..io.locks import clear_finished

        for root in done:
            clear_finished(root)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; the exit status is 0, 2 for a user's mistake, 1 for a fault of ours."""
    for package in ("rich_argparse", "pandas"):
        if importlib.util.find_spec(package) is None:
            print(
                f"error: the command line needs more packages ({package}); in a clone of this "
                "project, pip install '.[pipeline]'",
                file=sys.stderr,
            )
            return USER_ERROR
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks how a line could go on
        import argcomplete

        argcomplete.autocomplete(parser)
    options = parser.parse_args(arguments)
    warnings.showwarning = _one_line_warnings()
    try:
        with _logged(options.log):
            try:
                _run(options)
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
