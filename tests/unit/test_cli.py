"""The command line starts at once and lists every command in a group."""

import re
import subprocess
import sys

import pytest

from neural_collapse.cli import build_parser, main

HEAVY = "torch numpy pandas pyarrow pydantic matplotlib seaborn yaml plotly"


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from neural_collapse.cli import build_parser; build_parser().format_help(); "
        f"print(sorted(set(sys.modules) & set('{HEAVY}'.split())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_command_is_listed_once_with_what_it_does():
    text = build_parser().format_help()
    names = build_parser()._subparsers._group_actions[0].choices
    for name in names:
        assert len(re.findall(rf"^  {name}  +\w", text, re.M)) == 1, name


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["show"], ["status"], ["statistics", "--features", "x"]]
)
def test_a_wrong_command_line_is_said_in_a_sentence(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "neural-collapse" in capsys.readouterr().err.splitlines()[-1]
