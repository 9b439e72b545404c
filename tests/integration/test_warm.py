"""Commands that are forked end as commands of their own do."""

import os
import subprocess

from warm import Forks

MAIN = """
def main(files):
    with open(files[0]) as file:
        file.read()
    return 0
"""


def test_forked_commands_end_independently(tmp_path, monkeypatch):
    (tmp_path / "waits.py").write_text(MAIN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    forks = Forks("waits")

    def start(name):
        """A command that waits until the file is closed."""
        os.mkfifo(tmp_path / name)
        command = [forks.python(), "-m", "neural_collapse", tmp_path / name]
        return subprocess.Popen(command), open(tmp_path / name, "w")

    first, of_first = start("first")
    second, of_second = start("second")
    of_first.close()
    assert first.wait(timeout=60) == 0  # though a later one still runs
    second.kill()
    second.wait()
    of_second.close()
    third, of_third = start("third")
    of_third.close()
    assert third.wait() == 0
    forks.process.stdin.close()
    assert forks.process.wait() == 0
