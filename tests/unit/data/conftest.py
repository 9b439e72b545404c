"""Small datasets in the place of the real ones, and a server that misbehaves on request."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from neural_collapse.data import fetch
from neural_collapse.data.registry import DATASETS

# The tests are no package; this lets them import dataset_files, which lies beside them.
sys.path.insert(0, str(Path(__file__).parent))

from dataset_files import MAKERS, WNIDS, Behaviour, Made, Server, make_cifar, small

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Made]:
    """Make a small dataset and register it in the place of the real one, with these addresses."""

    def publish(name: str, *bases: str) -> Made:
        made, entry = MAKERS[name](), DATASETS[name]
        files = tuple(small(file, made.files[file.name], bases) for file in entry.files)
        if name in ("cifar10", "cifar100"):  # its Python version is accepted as well
            python = make_cifar(fine=name == "cifar100", python=True)
            (data,), (file,) = python.files.values(), entry.files
            other = small(file.alternatives[0], data)
            files = (dataclasses.replace(files[0], alternatives=(other,)),)
        classes = len(WNIDS) if name == "imagenet" else entry.num_classes
        changed = dataclasses.replace(entry, files=files, num_classes=classes)
        monkeypatch.setitem(DATASETS, name, changed)
        return made

    return publish


@pytest.fixture(autouse=True)
def no_mirror_and_no_proxy_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NC_DATA_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


REAL_DATA = Path(os.environ.get("NC_DATA_MIRROR") or REPOSITORY.parent / "shared" / "data")


@pytest.fixture
def real_data() -> Path:
    """The folder with the real MNIST and FashionMNIST files; skips where there is none."""
    for name in ("mnist", "fashion_mnist"):
        if not (REAL_DATA / name / "train-images-idx3-ubyte.gz").is_file():
            pytest.skip(f"no real {name} in {REAL_DATA}; set NC_DATA_MIRROR to a folder with it")
    return REAL_DATA


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, length: int | None, headers: dict[str, str]) -> None:
            self.send_response(status)
            if length is not None:
                self.send_header("Content-Length", str(length))
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.requests.append((self.path, asked))
            script = state.script.get(self.path, [])
            behaviour = script.pop(0) if script else Behaviour()
            data = state.files.get(self.path)
            if data is None or behaviour.status != 200:
                status = 404 if data is None else behaviour.status
                return self.answer(status, 0, behaviour.headers)
            resumes = asked is not None and state.ranges
            if resumes:
                data = data[int(asked.removeprefix("bytes=").rstrip("-")) :]
                if not data:
                    return self.answer(416, 0, {})
            length = len(data) if behaviour.declares_length else None
            self.answer(206 if resumes else 200, length, behaviour.headers)
            with contextlib.suppress(OSError):
                self.wfile.write(data[: behaviour.ends_after])
                self.wfile.flush()
                if behaviour.stalls:
                    state.closing.wait()
            self.close_connection = behaviour.ends_after is not None or length is None

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    state = Server(f"http://127.0.0.1:{httpd.server_address[1]}")
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    state.closing.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long downloads would have slept between their three attempts."""
    slept: list[float] = []
    monkeypatch.setattr(fetch, "ATTEMPTS", 3)
    monkeypatch.setattr(fetch, "sleep", slept.append)
    return slept
