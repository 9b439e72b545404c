"""Get a dataset's raw files: existing files, then a mirror, then the published addresses.

A file from any source is accepted only if its checksum, or that of its decoded content, is the
published one. `source.json` is written last: if it exists, the folder is complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..io.errors import UserError
from ..io.files import atomic_path, sha256_of, write_text_atomically
from ..io.locks import one_at_a_time
from .archives import pack, verify_file
from .embedded import write_embedded
from .fetch import DownloadSettings, Refused, fetch
from .image_files import index_image_folder
from .registry import CustomDataset, DatasetEntry, dataset_entry
from .sources import SourceFile

log = logging.getLogger(__name__)

SOURCE_FILE = "source.json"
MIRROR_VARIABLE = "NC_DATA_MIRROR"

Progress = Callable[[str, int, "int | None"], None]
"""Called with a file's name, the bytes of it that are here, and how many there will be."""


# --------------------------------------------------------------------------- one file


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
            f"mirror: the folder {mirror} does not exist; correct the key mirror or "
            f"{MIRROR_VARIABLE}"
        )


def _in_folder(mirror: Path, entry: DatasetEntry, file: SourceFile) -> Iterator[Path]:
    """Where a mirror folder has a file: packed or not, in the layouts that are common."""
    if mirror.name in file.also_named:  # the folder of an archive that was unpacked
        yield mirror
    for folder in (mirror / entry.name, mirror):
        for name in (file.name, *file.also_named):
            # idx files are no folders, and archives unpack to one.
            if (folder / name).is_file() or ("" not in file.content and (folder / name).is_dir()):
                yield folder / name


def _copied(source: Path, file: SourceFile, target: Path, progress: Progress) -> dict[str, Any]:
    """Copy a mirror's file, packing what is not; returns its record, raises Refused."""
    with atomic_path(target) as temporary:
        try:
            pack(source, file, temporary)
            record = verify_file(temporary, file)
        except (FileNotFoundError, PermissionError) as error:
            raise Refused(f"{error.filename}: {error.strerror}") from None
        except UserError as error:
            raise Refused(str(error).replace(f"{temporary}: ", "")) from None
    progress(file.name, record["size_bytes"], record["size_bytes"])
    return record | {"source": str(source)}


def _fetched(
    url: str, file: SourceFile, target: Path, settings: DownloadSettings, progress: Progress
) -> dict[str, Any]:
    """Download a file, from where an earlier attempt stopped; returns its record, raises Refused.

    What is there may be of another source or of another day: then the checksum is wrong, and the
    file is downloaded once more from its start.
    """
    part = target.with_name(f"{target.name}.part")
    # Packed again, a file can be larger than the published one, but not by much.
    size = file.size_bytes
    limit = size * 3 // 2 + (16 << 20) if size is not None and file.content else size
    while True:
        resumed = part.exists()
        fetch(url, part, limit, settings, lambda have, of: progress(file.name, have, of or size))
        try:
            record = verify_file(part, file)
            break
        except UserError as error:
            part.unlink()
            if not resumed:
                raise Refused(str(error).replace(str(part), file.name)) from None
    with open(part, "rb+") as handle:
        os.fsync(handle.fileno())
    os.replace(part, target)
    return record | {"source": url}


# --------------------------------------------------------------------------- sources in order


def _candidates(
    entry: DatasetEntry, file: SourceFile, mirror: str | None
) -> Iterator[tuple[SourceFile, str | Path]]:
    """Every source of a file, or of one with the same data, in the order in which it is tried."""
    forms = (file, *file.alternatives)
    if mirror and _is_url(mirror):
        for form in forms:
            for folder in (f"{mirror.rstrip('/')}/{entry.name}", mirror.rstrip("/")):
                yield form, f"{folder}/{form.name}"
    elif mirror:
        for form in forms:
            for place in _in_folder(Path(mirror), entry, form):
                yield form, place
    for form in forms:
        for url in form.urls:
            yield form, url


def _obtain(
    entry: DatasetEntry,
    file: SourceFile,
    folder: Path,
    mirror: str | None,
    settings: DownloadSettings,
    progress: Progress,
) -> dict[str, Any]:
    """Put one raw file into `folder`; returns its record. raises UserError."""
    tried = []
    for form in (file, *file.alternatives):
        if (folder / form.name).is_file():
            try:
                record = verify_file(folder / form.name, form)
                progress(form.name, record["size_bytes"], record["size_bytes"])
                return record | {"source": "already in place"}
            except UserError as error:
                log.warning("%s; fetching it again", error)
                tried.append(str(error))
    unresolved = []
    for form, source in _candidates(entry, file, mirror):
        try:
            if isinstance(source, Path):
                return _copied(source, form, folder / form.name, progress)
            return _fetched(source, form, folder / form.name, settings, progress)
        except Refused as error:
            if not error.unresolved:
                log.warning("%s: %s; trying the next source", source, error)
            tried.append(f"{source} ({error})")
            unresolved.append(error.unresolved)
    remedy = (
        f"put the file into {folder}, or name a folder or address that holds "
        f"{entry.name}/{file.name} with the key mirror or {MIRROR_VARIABLE}"
    )
    if mirror and not _is_url(mirror) and not any(source.startswith(mirror) for source in tried):
        tried.append(f"{mirror} (holds no {file.name}, packed or unpacked)")
    if unresolved and all(unresolved):
        raise UserError(
            f"{entry.name}: {file.name} cannot be downloaded, since no host name has an address "
            f"(is this machine offline?); {remedy}; tried {'; '.join(tried)}"
        )
    raise UserError(
        f"{entry.name}: {file.name} is not available; tried {'; '.join(tried)}; {remedy}"
    )


# --------------------------------------------------------------------------- what is not fetched


def _folder_record(folder: Path) -> dict[str, Any]:
    """What is known of an image folder: how many files, and a hash of names and sizes."""
    index = index_image_folder(folder)
    digest, size = hashlib.sha256(), 0
    for ref in [*index.train, *index.test]:
        bytes_ = ref.size_bytes()
        size += bytes_
        digest.update(os.fsencode(f"{os.path.relpath(ref.path, folder)}\0{bytes_}\n"))
    return {
        "kind": "image_folder",
        "folder": str(folder.resolve()),
        "files": [],
        "images": len(index.train) + len(index.test),
        "size_bytes": size,
        "listing_sha256": digest.hexdigest(),
    }


def _unverified(path: Path, why: str) -> dict[str, Any]:
    """The record of a file for which no checksum is published."""
    return {
        "name": path.name,
        "size_bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "content": {},
        "verified_by": why,
        "source": str(path.resolve()),
    }


def _imagenet(entry: DatasetEntry, given: str | None, progress: Progress) -> dict[str, Any]:
    if given is None:
        raise UserError(
            "imagenet cannot be downloaded freely; get ILSVRC-2012 from image-net.org and name "
            "its folder with the key imagenet_folder"
        )
    folder = Path(os.path.expanduser(given))
    if not folder.is_dir():
        raise UserError(f"imagenet_folder: the folder {folder} does not exist")
    train, val, devkit = entry.files
    if not (folder / train.name).is_file():
        if (folder / "train").is_dir():
            return _folder_record(folder)
        raise UserError(
            f"imagenet_folder: {folder} holds neither {train.name} nor the folders train/ and val/"
        )
    mapping = folder / "imagenet_2012_validation_synset_labels.txt"
    records = []
    for file in (train, val) if mapping.is_file() else (train, val, devkit):
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
        progress(file.name, 0, size)
        records.append(verify_file(path, file) | {"source": str(path.resolve())})
        progress(file.name, size, size)
    if mapping.is_file():
        records.append(_unverified(mapping, "nothing: no checksum is published"))
    return {"kind": "ilsvrc", "folder": str(folder.resolve()), "files": records}


def _custom(entry: DatasetEntry) -> dict[str, Any]:
    assert entry.path is not None
    where, path = f"custom_datasets.{entry.name}.path", entry.path
    if entry.format == "image_folder":
        if not path.is_dir():
            raise UserError(f"{where}: the folder {path} does not exist")
        return _folder_record(path)
    if not path.is_file():
        raise UserError(f"{where}: the file {path} does not exist")
    record = _unverified(path, "nothing: a user-defined dataset")
    return {"kind": "npz", "folder": str(path.resolve().parent), "files": [record]}


def _embedded(entry: DatasetEntry, folder: Path) -> dict[str, Any]:
    assert entry.package is not None
    path = folder / f"{entry.name}.npz"
    version = write_embedded(entry.name, entry.package, path)
    record = _unverified(path, "the package's installer")
    record["source"] = f"{entry.package} {version}"
    package = {"name": entry.package, "version": version}
    return {"kind": "npz", "package": package, "files": [record]}


# --------------------------------------------------------------------------- entry point


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

    `mirror` is an http(s) address that holds `<dataset>/<file>` or `<file>`, or a folder that
    holds them, unpacked or not, also in torchvision's layout; None reads the environment variable
    NC_DATA_MIRROR.  A download that was killed resumes when it is started again.  Of ImageNet
    (`imagenet_folder`) and of a user-defined dataset (`custom`) nothing is copied: source.json says
    where they are.

    Returns what source.json holds: `dataset`, `kind` (the format), `folder` (where the raw files
    are; null for `folder` itself), `package` (name and version, for embedded datasets) and `files`,
    each with `name`, `size_bytes`, `sha256`, `content` (checksums of what is inside),
    `verified_by` and `source`.  Raises UserError naming every source that was tried and why it
    was not accepted.
    """
    entry = dataset_entry({name: custom} if custom else {}, name)
    folder = Path(folder)
    mirror = os.path.expanduser(mirror or os.environ.get(MIRROR_VARIABLE) or "") or None
    report: Progress = progress or (lambda *_: None)
    source: dict[str, Any] | None = None
    # Files that are not copied are checked before anything is written.
    if entry.format in ("npz", "image_folder"):
        source = _custom(entry)
    elif entry.format == "ilsvrc":
        source = _imagenet(entry, imagenet_folder, report)
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
                source = _embedded(entry, folder)
            elif source is None:
                files = [
                    _obtain(entry, file, folder, mirror, settings or DownloadSettings(), report)
                    for file in entry.files
                ]
                source = {"kind": entry.format, "files": files}
    except OSError as error:
        raise UserError(f"{folder}: {name} cannot be stored: {error.strerror or error}") from None
    source = {"dataset": name, "kind": None, "folder": None, "package": None} | source
    write_text_atomically(folder / SOURCE_FILE, json.dumps(source, indent=2) + "\n")
    return source
