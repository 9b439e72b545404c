"""Small datasets in the place of the real ones, and a server that misbehaves on request."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from neural_collapse.data.download import DownloadSettings
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

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.requests.append((self.path, asked, self.headers.get("If-Range")))
            script = state.script.get(self.path, [])
            behaviour = script.pop(0) if script else Behaviour()
            data = behaviour.body if behaviour.body is not None else state.files.get(self.path)
            status = behaviour.status if data is not None else 404
            if status >= 400:
                self.send_response(status)
                for key, value in behaviour.headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start, whole = 0, len(data)
            same = self.headers.get("If-Range") in (None, state.etag)
            if asked and state.ranges and same:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= whole:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{whole}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                status = 206
            data = data[start:]
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
            if state.etag:
                self.send_header("ETag", state.etag)
            if behaviour.declare_length:
                self.send_header("Content-Length", str(len(data)))
            for key, value in behaviour.headers.items():
                self.send_header(key, value)
            self.end_headers()
            limit = behaviour.cut_after if behaviour.cut_after is not None else len(data)
            if behaviour.stall_after is not None:
                limit = behaviour.stall_after
            try:
                self.wfile.write(data[:limit])
                self.wfile.flush()
                if behaviour.stall_after is not None:
                    state.closing.wait()
            except OSError:
                pass
            if limit < len(data) or not behaviour.declare_length:
                self.close_connection = True

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


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def settings(slept: list[float]) -> DownloadSettings:
    """Never sleeps; `slept` notes how long it would have."""
    return DownloadSettings(attempts=3, sleep=slept.append)
