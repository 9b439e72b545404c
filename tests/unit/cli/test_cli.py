"""The command line starts at once and lists every command in a group."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from neural_collapse.cli.main import NOT_PARAMETERS, build_parser, main
from neural_collapse.cli.parser import function_of

HEAVY = "torch numpy pandas pyarrow pydantic matplotlib seaborn yaml plotly"


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from neural_collapse.cli.main import build_parser as build; "
        "build().format_help(); "
        f"print(sorted(set(sys.modules) & set('{HEAVY}'.split())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_help_lists_every_command_once():
    text = build_parser().format_help()
    names = build_parser()._subparsers._group_actions[0].choices
    for name in names:
        assert len(re.findall(rf"^  {name}  +\w", text, re.M)) == 1, name


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["show"], ["status"], ["statistics", "--features", "x"]]
)
def test_wrong_command_line_is_one_sentence(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "neural-collapse" in capsys.readouterr().err.splitlines()[-1]


def test_help_describes_every_option():
    names = build_parser()._subparsers._group_actions[0].choices
    assert not [
        (name, action.dest)
        for name, parser in names.items()
        for action in parser._actions
        if not action.help
    ]


@pytest.mark.parametrize("name", build_parser()._subparsers._group_actions[0].choices)
def test_command_options_are_the_parameters_of_what_it_runs(name):
    parser = build_parser()._subparsers._group_actions[0].choices[name]
    function = function_of(parser.get_default("run"))
    options = {action.dest for action in parser._actions} - {"help", *NOT_PARAMETERS}
    inspect.signature(function).bind(**dict.fromkeys(options))


def test_help_is_coloured_in_a_terminal_only():
    command = [sys.executable, "-m", "neural_collapse", "statistics", "--help"]
    plain = {key: value for key, value in os.environ.items() if not key.endswith("_COLOR")}
    said = [
        subprocess.run(command, env=environment, capture_output=True, text=True).stdout
        for environment in (plain, plain | {"FORCE_COLOR": "1"})
    ]
    assert "\x1b" not in said[0] and "\x1b[36m--features\x1b[0m" in said[1]
    assert said[0].split() == re.sub(r"\x1b\[\d+m", "", said[1]).split()


def test_job_imports_nothing_of_help_or_completion():
    code = (
        "import sys; from neural_collapse.cli.main import main; main(['config-schema']); "
        "sys.exit(', '.join({'rich', 'rich_argparse', 'argcomplete'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "line, expected",
    [
        ("neural-collapse st", {"status", "statistics"}),
        ("neural-collapse plot --epoch-axis ", {"linear", "log"}),
        ("neural-collapse show --arch", {"--architecture"}),
    ],
)
def test_completion_in_bash_gives_commands_and_choices(line, expected):
    words = line.split(" ")
    script = (
        'eval "$(register-python-argcomplete neural-collapse)"\n'
        f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_CWORD={len(words) - 1}\n"
        f"COMP_WORDS=({' '.join(word or chr(39) * 2 for word in words)})\n"
        '_python_argcomplete neural-collapse "${COMP_WORDS[COMP_CWORD]}"\n'
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert set(done.stdout.split()) == expected, done.stderr
