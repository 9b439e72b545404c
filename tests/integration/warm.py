"""Commands in processes forked off one that has imported everything already: most of the time of a
short command is Python's imports.

As a program, the process that forks: python warm.py SOCKET MODULE [MODULE ...]
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

PYTHON = """#!/bin/sh
exec '{python}' -IS '{program}' "$@"
"""
# Stands for `python`: `python -m neural_collapse` is forked, all else is Python itself.
PROGRAM = """
import json, os, socket, sys

if sys.argv[1:3] != ["-m", "neural_collapse"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({path!r})
    socket.send_fds(server, [b" "], [0, 1, 2])
    command = [sys.argv[3:], os.getcwd(), dict(os.environ), {python!r}]
    server.sendall(json.dumps(command).encode() + b"\\n")
    answers = server.makefile()
    answers.readline()  # the process id
    status = answers.readline()  # not up to the end, which other forks hold open
sys.exit(int(status) if int(status) >= 0 else 128 - int(status))
"""


class Forks:
    """Runs the `main` of the first module; the others are imported before."""

    def __init__(self, *modules: str):
        self.modules = modules
        self.process: subprocess.Popen | None = None

    def path(self) -> str:
        """The socket of the process that forks, which starts at the first call."""
        if self.process is None:
            self.folder = tempfile.TemporaryDirectory()
            command = [sys.executable, __file__, f"{self.folder.name}/socket", *self.modules]
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
            assert self.process.stdout.readline() == "listens\n"
        return f"{self.folder.name}/socket"

    def python(self) -> str:
        """A program that stands for `python` in the shell lines of rules."""
        path, python = self.path(), Path(self.folder.name, "python")
        if not python.exists():
            values = {"python": sys.executable, "path": path, "program": f"{python}.py"}
            Path(values["program"]).write_text(PROGRAM.format(**values))
            python.write_text(PYTHON.format(**values))
            python.chmod(0o755)
        return str(python)

    def start(self, arguments, output: Path, folder: Path = Path(), python: str | None = None):
        """The process id, and a function that waits for the exit status."""
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.path())
        with open(output, "a") as log, open(os.devnull) as nothing:
            socket.send_fds(client, [b" "], [nothing.fileno(), log.fileno(), log.fileno()])
        words = [str(word) for word in arguments]
        command = [words, str(folder.resolve()), dict(os.environ), python or sys.executable]
        client.sendall(json.dumps(command).encode() + b"\n")
        answers = client.makefile()
        return int(answers.readline()), lambda: int(answers.readline())


def run_forked(client: socket.socket, main) -> int:
    """The process id of a command that a client sends."""
    _, files, _, _ = socket.recv_fds(client, 1, 3)
    arguments, folder, environment, python = json.loads(client.makefile().readline())
    child = os.fork()
    if child:
        for file in files:
            os.close(file)
        return child
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable, sys.argv[1:] = python, arguments
    sys.exit(main(arguments))


def answer(client: socket.socket, number: int) -> None:
    with contextlib.suppress(ConnectionError):  # whoever asked was killed
        client.sendall(f"{number}\n".encode())


def serve(path: str, *modules: str) -> None:
    """Until standard input ends."""
    program, *_ = [importlib.import_module(name) for name in modules]
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    print("listens", flush=True)
    selector = selectors.DefaultSelector()
    for file in (sys.stdin, server, woken):
        selector.register(file, selectors.EVENT_READ)
    running: dict[int, socket.socket] = {}
    while True:
        ready = [key.fileobj for key, _ in selector.select()]
        if sys.stdin in ready:
            return
        if server in ready:
            client, _ = server.accept()
            child = run_forked(client, program.main)
            running[child] = client
            answer(client, child)
        if woken in ready:
            woken.recv(4096)
            for child in list(running):
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    client = running.pop(child)
                    answer(client, os.waitstatus_to_exitcode(status))
                    client.close()


if __name__ == "__main__":
    serve(*sys.argv[1:])
