"""Fetching a dataset's raw files: mirrors, retries, resuming, and checksums that decide.

The order of sources: files already in place, the mirror (a folder or an http address), then the
public addresses of :mod:`.sources`.  Whatever the source, a file counts only once its checksum, or
that of its decoded content, is the published one; `source.json` is written last, so that where it
exists the folder is whole.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import logging
import os
import re
import shutil
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import tenacity

from ..io.errors import UserError
from ..io.files import atomic_path, one_at_a_time, sha256_of, write_text_atomically
from .embedded import embedded_file, write_embedded
from .parsers import gzip_checksum, index_image_folder, member_checksums
from .registry import CustomDataset, DatasetEntry, dataset_entry
from .sources import SourceFile

log = logging.getLogger(__name__)

SOURCE_FILE = "source.json"
MIRROR_VARIABLE = "NC_DATA_MIRROR"
RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST_WAIT_S = 60.0

Progress = Callable[[str, int, "int | None"], None]
"""Called with a file's name, the bytes of it that are here, and how many there will be."""


@dataclass(frozen=True)
class DownloadSettings:
    """How patient a download is. `sleep` is replaced where nothing may wait, as in tests."""

    attempts: int = 5
    """Attempts in a row without a new byte before a source is given up."""
    connect_timeout_s: float = 15.0
    """How long a server may take to accept a connection."""
    stall_timeout_s: float = 60.0
    """How long a server may send nothing before the attempt counts as failed."""
    first_wait_s: float = 1.0
    """Wait after the first failure, doubled with each further one, with jitter."""
    sleep: Callable[[float], None] = time.sleep


class _Refused(Exception):
    """This source will not do; the next one is tried."""


class _Interrupted(Exception):
    """The attempt failed in a way that another may not."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


# --------------------------------------------------------------------------- checking


def _checksums(path: Path, algorithms: set[str]) -> dict[str, str]:
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in sorted(algorithms)}
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            for digest in digests.values():
                digest.update(block)
    return {name: digest.hexdigest() for name, digest in digests.items()}


def verify_file(path: Path, file: SourceFile) -> dict[str, Any]:
    """Check one raw file against what is published; returns its record for source.json.

    The file's own checksum suffices.  Where it differs, the content's does: an archive packed
    again holds the same data.  Raises UserError with expected and found checksum.
    """
    try:
        algorithms = {"sha256"} | ({file.checksum.algorithm} if file.checksum else set())
        found = _checksums(path, algorithms)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    record: dict[str, Any] = {
        "name": file.name,
        "size_bytes": path.stat().st_size,
        "sha256": found["sha256"],
        "content": {},
    }
    as_published = file.checksum is not None and (
        found[file.checksum.algorithm] == file.checksum.digest
    )
    if "" in file.content:  # a single packed file: its content's checksum is cheap, so kept always
        expected = file.content[""]
        digest = gzip_checksum(path, expected.algorithm)
        if digest != expected.digest:
            raise UserError(
                f"{path}: is not the published file: its decoded content should have {expected}, "
                f"found {digest}"
            )
        record["content"] = {"": f"{expected.algorithm} {digest}"}
    elif as_published:
        pass
    elif file.content:
        members = member_checksums(
            path, {name: checksum.algorithm for name, checksum in file.content.items()}
        )
        for name, expected in file.content.items():
            if members.get(name) != expected.digest:
                raise UserError(
                    f"{path}: is not the published file: its member {name} should have "
                    f"{expected}, found {members.get(name, 'no such member')}"
                )
        record["content"] = {name: str(checksum) for name, checksum in file.content.items()}
    elif file.checksum is not None:
        raise UserError(
            f"{path}: is not the published file: it should have {file.checksum}, found "
            f"{found[file.checksum.algorithm]} ({record['size_bytes']} bytes)"
        )
    record["verified_by"] = "file checksum" if as_published else "content checksum"
    return record


# --------------------------------------------------------------------------- http


def _proxy_transports(url: str, verify: ssl.SSLContext) -> dict[str, httpx.BaseTransport]:
    """The transports for HTTP_PROXY, HTTPS_PROXY and NO_PROXY; none for this machine itself.

    httpx would also take socks proxies, for which it needs another package, and passwords from
    a .netrc file, which have no business here; so the environment is read by hand.
    """
    host = urlsplit(url).hostname or ""
    if host in {"localhost", "127.0.0.1", "::1"} or urllib.request.proxy_bypass_environment(host):
        return {}
    proxies = urllib.request.getproxies_environment()
    return {
        f"{scheme}://": httpx.HTTPTransport(proxy=proxies[scheme], verify=verify)
        for scheme in ("http", "https")
        if proxies.get(scheme, "").startswith(("http://", "https://"))
    }


def _client(url: str, settings: DownloadSettings) -> httpx.Client:
    # SSL_CERT_FILE is how a site adds its own certificates; otherwise certifi's, httpx's default.
    extra = os.environ.get("SSL_CERT_FILE")
    verify = (
        ssl.create_default_context(cafile=extra)
        if extra and Path(extra).is_file()
        else httpx.create_ssl_context(trust_env=False)
    )
    return httpx.Client(
        timeout=httpx.Timeout(settings.stall_timeout_s, connect=settings.connect_timeout_s),
        follow_redirects=True,
        trust_env=False,
        verify=verify,
        mounts=_proxy_transports(url, verify),
        # The bytes as stored: a .gz file must not be decoded on the way.
        headers={"Accept-Encoding": "identity", "User-Agent": "neural-collapse"},
    )


def _retry_after(value: str | None) -> float | None:
    if not value:
        return None
    try:
        wait = float(value)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(value)
        except (ValueError, TypeError):
            return None
        wait = moment.timestamp() - time.time()
    return min(max(wait, 0.0), LONGEST_WAIT_S) if wait == wait else None


class _Part:
    """A download under way: `<file>.part`, and in `<file>.part.json` what it is a part of."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(target.name + ".part")
        self.memo = target.with_name(target.name + ".part.json")

    def read(self, url: str) -> tuple[int, dict[str, Any]]:
        """How many bytes of `url` are here, and what the server said of the file."""
        try:
            memo = json.loads(self.memo.read_text(encoding="utf-8"))
            size = self.path.stat().st_size
        except (OSError, ValueError):
            return 0, {}
        if not isinstance(memo, dict) or memo.get("url") != url:
            return 0, {}
        return size, memo

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self.memo.unlink(missing_ok=True)


def _largest_acceptable(file: SourceFile) -> int | None:
    if file.size_bytes is None:
        return None
    # Packed again, a file can be larger than the published one, but not by much.
    return file.size_bytes * 3 // 2 + (16 << 20) if file.content else file.size_bytes


def _attempt(
    client: httpx.Client, url: str, file: SourceFile, part: _Part, progress: Progress | None
) -> None:
    """One request; returns when the part is complete, raises _Interrupted or _Refused."""
    have, memo = part.read(url)
    headers = {}
    if have:
        headers["Range"] = f"bytes={have}-"
        if memo.get("validator"):
            headers["If-Range"] = memo["validator"]
    with client.stream("GET", url, headers=headers) as response:
        status = response.status_code
        if status in RETRIED_STATUS:
            raise _Interrupted(
                f"{status} {response.reason_phrase}",
                _retry_after(response.headers.get("Retry-After")),
            )
        if status == 416 and have:
            if memo.get("total") == have:
                return
            part.drop()
            raise _Interrupted("the server refused to go on from where it stopped")
        if status not in (200, 206):
            raise _Refused(f"{status} {response.reason_phrase}".strip())
        length = response.headers.get("Content-Length", "")
        length_bytes = int(length) if length.isdigit() else None
        if status == 206:
            match = re.fullmatch(
                r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip()
            )
            total = int(match[3]) if match and match[3] != "*" else None
            if not match or int(match[1]) != have or (memo.get("total") not in (None, total)):
                part.drop()
                raise _Interrupted("the server went on from elsewhere or with another file")
        else:
            have, total = 0, length_bytes
        limit = _largest_acceptable(file)
        if total is not None and limit is not None and total > limit:
            raise _Refused(f"it offers {total} bytes, expected {file.size_bytes}")
        if total is not None and not file.content and file.size_bytes not in (None, total):
            raise _Refused(f"it offers {total} bytes, expected {file.size_bytes}")
        free = shutil.disk_usage(part.path.parent).free
        if total is not None and total - have > free:
            raise UserError(
                f"{part.path.parent}: {file.name} needs {total - have} bytes and the disk has "
                f"{free} left; make room and start again"
            )
        etag = response.headers.get("ETag", "")
        validator = (
            etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
        )
        if not have:
            part.path.unlink(missing_ok=True)
            write_text_atomically(
                part.memo, json.dumps({"url": url, "validator": validator, "total": total})
            )
        with open(part.path, "ab") as handle:
            # As they arrive, not gathered into larger blocks: a cut or a kill then loses nothing.
            for block in response.iter_raw():
                handle.write(block)
                handle.flush()
                have += len(block)
                if limit is not None and have > limit:
                    raise _Refused(f"it sends more than {limit} bytes, expected {file.size_bytes}")
                if progress:
                    progress(file.name, have, total or file.size_bytes)
        if total is not None and have != total:
            raise _Interrupted(f"it ended after {have} of {total} bytes")


def _fetch(
    url: str,
    file: SourceFile,
    target: Path,
    settings: DownloadSettings,
    progress: Progress | None,
) -> dict[str, Any]:
    """Download `url` to `target`, verified; returns the file's record, raises _Refused."""
    part = _Part(target)
    best, fruitless = part.read(url)[0], 0

    def note(state: tenacity.RetryCallState) -> None:
        # Only an attempt that got further than any before it counts as fruitful, so that a
        # server that always cuts off at the same place ends the loop.
        nonlocal best, fruitless
        size = part.read(url)[0]
        fruitless = 0 if size > best else fruitless + 1
        best = max(best, size)

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = getattr(error, "wait_s", None)
        if asked is not None:
            return asked
        backoff = tenacity.wait_exponential_jitter(
            settings.first_wait_s, LONGEST_WAIT_S, jitter=settings.first_wait_s
        )
        return backoff(state)

    def before_sleep(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning("%s: %s; trying again", url, _reason(error))

    resumed = best > 0
    retrying = tenacity.Retrying(
        sleep=settings.sleep,
        after=note,
        stop=lambda state: fruitless >= settings.attempts,
        wait=wait,
        retry=tenacity.retry_if_exception_type((httpx.TransportError, _Interrupted)),
        before_sleep=before_sleep,
        reraise=True,
    )
    for _ in range(2):
        try:
            with _client(url, settings) as client:
                retrying(_attempt, client, url, file, part, progress)
        except _Refused:
            part.drop()
            raise
        except (httpx.HTTPError, httpx.InvalidURL, _Interrupted) as error:
            raise _Refused(_reason(error)) from None
        try:
            record = verify_file(part.path, file)
        except UserError as error:
            part.drop()
            if resumed:
                # What was there from an earlier day may have been the bad half.
                resumed, best, fruitless = False, 0, 0
                continue
            raise _Refused(str(error).replace(str(part.path), file.name)) from None
        with open(part.path, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(part.path, target)
        part.drop()
        return record | {"source": url}
    raise AssertionError("unreachable")


def _reason(error: BaseException | None) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, httpx.TimeoutException):
        text = f"nothing came within the time limit ({type(error).__name__})"
    return text or type(error).__name__


# --------------------------------------------------------------------------- sources in order


def _is_url(mirror: str) -> bool:
    return mirror.startswith(("http://", "https://"))


def check_mirror(mirror: str) -> None:
    """Raise UserError unless `mirror` is an http(s) address or a folder that exists."""
    if _is_url(mirror):
        return
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", mirror):
        raise UserError(f"mirror: {mirror} is neither a folder nor an http or https address")
    if not Path(mirror).is_dir():
        raise UserError(
            f"mirror: the folder {mirror} does not exist; mend the key mirror or {MIRROR_VARIABLE}"
        )


def _sources(entry: DatasetEntry, file: SourceFile, mirror: str | None) -> Iterator[str | Path]:
    if mirror and _is_url(mirror):
        base = mirror.rstrip("/")
        yield f"{base}/{entry.name}/{file.name}"
        yield f"{base}/{file.name}"
    elif mirror:
        yield Path(mirror) / entry.name / file.name
        yield Path(mirror) / file.name
    yield from file.urls


def _copy(
    source: Path, file: SourceFile, target: Path, progress: Progress | None
) -> dict[str, Any]:
    try:
        opened = open(source, "rb")  # noqa: SIM115  (the with below closes it)
    except OSError as error:
        raise _Refused(error.strerror or type(error).__name__) from None
    with opened, atomic_path(target) as temporary:
        with open(temporary, "wb") as handle:
            shutil.copyfileobj(opened, handle, 1 << 20)
        try:
            record = verify_file(temporary, file)
        except UserError as error:
            raise _Refused(str(error).replace(f"{temporary}: ", "")) from None
    if progress:
        progress(file.name, record["size_bytes"], record["size_bytes"])
    return record | {"source": str(source)}


def _obtain(
    entry: DatasetEntry,
    file: SourceFile,
    folder: Path,
    mirror: str | None,
    settings: DownloadSettings,
    progress: Progress | None,
) -> dict[str, Any]:
    target = folder / file.name
    tried = []
    if target.is_file():
        try:
            record = verify_file(target, file)
            if progress:
                progress(file.name, record["size_bytes"], record["size_bytes"])
            return record | {"source": "already in place"}
        except UserError as error:
            log.warning("%s; fetching it again", error)
            tried.append(str(error))
    for source in _sources(entry, file, mirror):
        if isinstance(source, Path) and not source.is_file():
            tried.append(f"{source} (no such file)")
            continue
        try:
            if isinstance(source, Path):
                return _copy(source, file, target, progress)
            return _fetch(source, file, target, settings, progress)
        except _Refused as error:
            log.warning("%s: %s; trying the next source", source, error)
            tried.append(f"{source} ({error})")
    raise UserError(
        f"{entry.name}: {file.name} could not be had; tried {'; '.join(tried)}. Put the file into "
        f"{folder}, or name a folder or address that holds {entry.name}/{file.name} with the key "
        f"mirror or {MIRROR_VARIABLE}"
    )


# --------------------------------------------------------------------------- what is not fetched


def _folder_record(folder: Path) -> dict[str, Any]:
    """What is known of an image folder: how many files, and a hash of names and sizes."""
    index = index_image_folder(folder)
    digest, size = hashlib.sha256(), 0
    for ref in [*index.train, *index.test]:
        bytes_ = os.stat(ref.path).st_size
        size += bytes_
        digest.update(f"{os.path.relpath(ref.path, folder)}\0{bytes_}\n".encode())
    return {
        "kind": "image_folder",
        "folder": str(folder.resolve()),
        "files": [],
        "images": len(index.train) + len(index.test),
        "size_bytes": size,
        "listing_sha256": digest.hexdigest(),
    }


def _imagenet_folder(given: str | None) -> Path:
    if given is None:
        raise UserError(
            "imagenet cannot be downloaded freely; get ILSVRC-2012 from image-net.org and name "
            "its folder with the key imagenet_folder"
        )
    folder = Path(os.path.expanduser(given))
    if not folder.is_dir():
        raise UserError(f"imagenet_folder: the folder {folder} does not exist")
    return folder


def _imagenet(entry: DatasetEntry, folder: Path, progress: Progress | None) -> dict[str, Any]:
    train, val, devkit = entry.files
    if not (folder / train.name).is_file():
        if (folder / "train").is_dir():
            return _folder_record(folder)
        raise UserError(
            f"imagenet_folder: {folder} holds neither {train.name} nor the folders train/ and val/"
        )
    mapping = "imagenet_2012_validation_synset_labels.txt"
    needed = [train, val]
    if not (folder / mapping).is_file():
        needed.append(devkit)
    records = []
    for file in needed:
        path = folder / file.name
        if not path.is_file():
            raise UserError(f"imagenet_folder: {path} is missing")
        size = path.stat().st_size
        if file.size_bytes not in (None, size):
            # Saves reading 148 GB of a copy that was cut off.
            raise UserError(
                f"{path}: is not the published file: it should have {file.size_bytes} bytes, "
                f"found {size}"
            )
        if progress:
            progress(file.name, 0, size)
        records.append(verify_file(path, file) | {"source": str(path.resolve())})
        if progress:
            progress(file.name, size, size)
    if len(needed) == 2:
        path = folder / mapping
        records.append(
            {
                "name": mapping,
                "size_bytes": path.stat().st_size,
                "sha256": sha256_of(path),
                "content": {},
                "verified_by": "nothing: no checksum is published",
                "source": str(path.resolve()),
            }
        )
    return {"kind": "ilsvrc", "folder": str(folder.resolve()), "files": records}


def _custom(entry: DatasetEntry) -> dict[str, Any]:
    assert entry.path is not None
    where = f"custom_datasets.{entry.name}.path"
    if entry.format == "image_folder":
        if not entry.path.is_dir():
            raise UserError(f"{where}: the folder {entry.path} does not exist")
        return _folder_record(entry.path)
    if not entry.path.is_file():
        raise UserError(f"{where}: the file {entry.path} does not exist")
    record = {
        "name": entry.path.name,
        "size_bytes": entry.path.stat().st_size,
        "sha256": sha256_of(entry.path),
        "content": {},
        "verified_by": "nothing: a person's own file",
        "source": str(entry.path.resolve()),
    }
    return {"kind": "npz", "folder": str(entry.path.resolve().parent), "files": [record]}


# --------------------------------------------------------------------------- the way in


def download_dataset(
    name: str,
    folder: str | Path,
    *,
    mirror: str | None = None,
    imagenet_folder: str | None = None,
    custom: CustomDataset | None = None,
    progress: Progress | None = None,
    settings: DownloadSettings | None = None,
) -> dict[str, Any]:
    """Put a dataset's raw files into `folder`, verified, and write `folder`/source.json last.

    `mirror` is a folder or an http(s) address that holds `<dataset>/<file>` or `<file>`; None
    reads the environment variable NC_DATA_MIRROR.  A download that was killed goes on from where
    it stopped when started again.  Of ImageNet (`imagenet_folder`) and of a person's own dataset
    (`custom`) nothing is copied: source.json says where they lie.

    Returns what source.json holds: `dataset`, `kind` (the format), `folder` (where the raw files
    lie; null for `folder` itself), `package` (name and version, for embedded datasets) and `files`,
    each with `name`, `size_bytes`, `sha256`, `content` (checksums of what is inside),
    `verified_by` and `source`.  Raises UserError naming every source that was tried and why it
    would not do.
    """
    entry = dataset_entry({name: custom} if custom else {}, name)
    folder = Path(folder)
    mirror = os.path.expanduser(mirror or os.environ.get(MIRROR_VARIABLE) or "") or None
    settings = settings or DownloadSettings()
    # Before a file is touched: is what a person named there?
    own, imagenet = None, None
    if entry.format in ("npz", "image_folder"):
        own = _custom(entry)
    elif entry.format == "ilsvrc":
        imagenet = _imagenet_folder(imagenet_folder)
    elif entry.format != "embedded" and mirror:
        check_mirror(mirror)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SOURCE_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        with one_at_a_time(folder / ".lock"):
            if entry.format == "embedded":
                assert entry.package is not None
                path = folder / embedded_file(name)
                version = write_embedded(name, entry.package, path)
                source: dict[str, Any] = {
                    "kind": "npz",
                    "package": {"name": entry.package, "version": version},
                    "files": [
                        {
                            "name": path.name,
                            "size_bytes": path.stat().st_size,
                            "sha256": sha256_of(path),
                            "content": {},
                            "verified_by": "the package's installer",
                            "source": f"{entry.package} {version}",
                        }
                    ],
                }
            elif imagenet is not None:
                source = _imagenet(entry, imagenet, progress)
            elif own is not None:
                source = own
            else:
                source = {
                    "kind": entry.format,
                    "files": [
                        _obtain(entry, file, folder, mirror, settings, progress)
                        for file in entry.files
                    ],
                }
    except OSError as error:
        raise UserError(f"{folder}: {name} cannot be stored: {error.strerror or error}") from None
    source = {"dataset": name, "kind": None, "folder": None, "package": None} | source
    write_text_atomically(folder / SOURCE_FILE, json.dumps(source, indent=2) + "\n")
    return source


__all__ = ["SOURCE_FILE", "DownloadSettings", "download_dataset", "verify_file"]
