"""Get a dataset's raw files: existing files, then a mirror, then the published addresses.

A file from any source is accepted only if its checksum, or that of its decoded content, is the
published one. `source.json` is written last: if it exists, the folder is complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..io.errors import UserError
from ..io.files import atomic_path, write_text_atomically, written
from ..io.locks import one_at_a_time
from .archives import pack, verify_file
from .embedded import write_embedded
from .fetch import Refused, Unresolved, fetch
from .image_files import index_image_folder
from .registry import CustomDataset, DatasetEntry, dataset_entry
from .sources import SourceFile

log = logging.getLogger(__name__)

SOURCE_FILE = "source.json"
MIRROR_VARIABLE = "NC_DATA_MIRROR"

Progress = Callable[[str, int, "int | None"], None]
"""Called with a file's name, the bytes of it that are here, and how many there will be."""


# --------------------------------------------------------------------------- downloaded datasets


def _is_url(mirror: str) -> bool:
    return mirror.startswith(("http://", "https://"))


def _candidates(
    entry: DatasetEntry, file: SourceFile, mirror: str | None
) -> Iterator[tuple[SourceFile, str | Path]]:
    """Every source of a file, or of one with the same data, in the order in which it is tried."""
    forms = (file, *file.alternatives)
    if mirror and _is_url(mirror):
        for form in forms:
            yield form, f"{mirror.rstrip('/')}/{entry.name}/{form.name}"
            yield form, f"{mirror.rstrip('/')}/{form.name}"
    elif mirror:
        for form in forms:
            for place in _places(Path(mirror), entry, form):
                # idx files are no folders, and archives unpack to one.
                if place.is_file() or ("" not in form.content and place.is_dir()):
                    yield form, place
    for form in forms:
        for url in form.urls:
            yield form, url


def _places(mirror: Path, entry: DatasetEntry, file: SourceFile) -> Iterator[Path]:
    """Where a mirror folder may have a file: packed or not, in the layouts that are common."""
    if mirror.name in file.also_named:  # the folder of an archive that was unpacked
        yield mirror
    for folder in (mirror / entry.name, mirror):
        for name in (file.name, *file.also_named):
            yield folder / name


def _copied(source: Path, file: SourceFile, target: Path) -> dict[str, Any]:
    """Copy a mirror's file, packing what is not; returns its record, raises Refused."""
    with atomic_path(target) as temporary:
        try:
            pack(source, file, temporary)
            return verify_file(temporary, file)
        except (FileNotFoundError, PermissionError) as error:
            raise Refused(f"{error.filename}: {error.strerror}") from None
        except UserError as error:
            raise Refused(str(error).replace(f"{temporary}: ", "")) from None


def _fetched(url: str, file: SourceFile, target: Path, progress: Progress) -> dict[str, Any]:
    """Download a file, resuming an earlier attempt; returns its record, raises Refused.

    That attempt may have been of another source or on another day: if the checksum is then wrong,
    the file is downloaded once more from its start.
    """
    part = target.with_name(f"{target.name}.part")
    # Packed again, a file can be larger than the published one, but not by much.
    size = file.size_bytes
    limit = size * 3 // 2 + (16 << 20) if size is not None and file.content else size
    while True:
        resumed = part.exists()
        fetch(url, part, limit, lambda have, of: progress(file.name, have, of or size))
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
    return record


def _obtain(
    entry: DatasetEntry, file: SourceFile, folder: Path, mirror: str | None, progress: Progress
) -> dict[str, Any]:
    """Put one raw file into `folder`; returns its record. Raises UserError."""
    tried = []
    for form in (file, *file.alternatives):
        if (folder / form.name).is_file():
            try:
                return verify_file(folder / form.name, form) | {"source": "already in place"}
            except UserError as error:
                log.warning("%s; fetching it again", error)
                tried.append(str(error))
    failures = []
    for form, source in _candidates(entry, file, mirror):
        try:
            if isinstance(source, Path):
                record = _copied(source, form, folder / form.name)
            else:
                record = _fetched(source, form, folder / form.name, progress)
            return record | {"source": str(source)}
        except Refused as error:
            if not isinstance(error, Unresolved):
                log.warning("%s: %s; trying the next source", source, error)
            failures.append(error)
            tried.append(f"{source} ({error})")
    if mirror and not any(source.startswith(mirror) for source in tried):
        tried.append(f"{mirror} (holds no {file.name}, packed or unpacked)")
    why = "is not available"
    if failures and all(isinstance(error, Unresolved) for error in failures):
        why = "cannot be downloaded, since no host name has an address (is this machine offline?)"
    raise UserError(
        f"{entry.name}: {file.name} {why}; put the file into {folder}, or name a folder or address "
        f"that holds {entry.name}/{file.name} with the key mirror or {MIRROR_VARIABLE}; tried "
        f"{'; '.join(tried)}"
    )


# --------------------------------------------------------------------------- other datasets


def _record(path: Path, verified_by: str, source: str | None = None) -> dict[str, Any]:
    """The record of a file for which no checksum is published."""
    record = verify_file(path, SourceFile(path.name))
    return record | {"verified_by": verified_by, "source": source or str(path.resolve())}


def _folder(folder: Path) -> dict[str, Any]:
    """What is known of an image folder: how many files, and a hash of names and sizes."""
    index = index_image_folder(folder)
    digest, total = hashlib.sha256(), 0
    for ref in [*index.train, *index.test]:
        size = ref.size_bytes()
        total += size
        digest.update(os.fsencode(f"{os.path.relpath(ref.path, folder)}\0{size}\n"))
    return {
        "kind": "image_folder",
        "folder": str(folder.resolve()),
        "files": [],
        "images": len(index.train) + len(index.test),
        "size_bytes": total,
        "listing_sha256": digest.hexdigest(),
    }


def _imagenet(entry: DatasetEntry, given: str | None, progress: Progress) -> dict[str, Any]:
    if given is None:
        raise UserError(
            "imagenet cannot be downloaded freely; get ILSVRC-2012 from image-net.org and name "
            "its folder with the key imagenet_folder"
        )
    folder = Path(os.path.expanduser(given))
    first = entry.files[0].name
    if not folder.is_dir():
        raise UserError(f"imagenet_folder: the folder {folder} does not exist")
    if not (folder / first).is_file():
        if (folder / "train").is_dir():
            return _folder(folder)
        raise UserError(
            f"imagenet_folder: {folder} holds neither {first} nor the folders train/ and val/"
        )
    records = []
    for file in entry.files:
        path = folder / file.name
        if not path.is_file():
            raise UserError(f"imagenet_folder: {path} is missing")
        progress(file.name, 0, file.size_bytes)
        records.append(verify_file(path, file) | {"source": str(path.resolve())})
    return {"kind": "ilsvrc", "folder": str(folder.resolve()), "files": records}


def custom_source(entry: DatasetEntry) -> dict[str, Any]:
    """What source.json says of a user-defined dataset as it is now; raises UserError."""
    assert entry.path is not None
    where, path = f"custom_datasets.{entry.name}.path", entry.path
    if entry.format == "image_folder":
        if path.is_file():
            raise UserError(f"{where}: {path} is neither a .npz file nor a folder of images")
        if not path.is_dir():
            raise UserError(f"{where}: the folder {path} does not exist")
        return _folder(path)
    if not path.is_file():
        raise UserError(f"{where}: the file {path} does not exist")
    record = _record(path, "nothing: a user-defined dataset")
    return {"kind": "npz", "folder": str(path.resolve().parent), "files": [record]}


def _embedded(entry: DatasetEntry, folder: Path) -> dict[str, Any]:
    path = folder / f"{entry.name}.npz"
    version = write_embedded(entry, path)
    record = _record(path, "the package's installer", f"{entry.package} {version}")
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
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Put a dataset's raw files into `folder`, verified, and write `folder`/source.json last.

    A killed download resumes when it is started again. ImageNet (`imagenet_folder`) and a
    user-defined dataset (`custom`) are not copied: source.json contains their path.

    Args:
        mirror: an http(s) address with `<dataset>/<file>` or `<file>`, or a folder with these
            files, unpacked or not, also in torchvision's layout. None: the environment variable
            NC_DATA_MIRROR.

    Returns:
        The content of source.json: `dataset`, `kind` (the format), `folder` (of the raw files; null
        for `folder` itself), `package` (name and version, for embedded datasets) and `files`, each
        with `name`, `size_bytes`, `sha256`, `content` (checksums of the decoded content),
        `verified_by` and `source`.

    Raises:
        UserError: no source was accepted; the message names each one and the reason.
    """
    entry = dataset_entry({name: custom} if custom else {}, name)
    folder = Path(folder)
    mirror = os.path.expanduser(mirror or os.environ.get(MIRROR_VARIABLE) or "") or None
    source: dict[str, Any] | None = None
    # Files that are not copied are checked before anything is written.
    if entry.format in ("npz", "image_folder"):
        source = custom_source(entry)
    elif entry.format == "ilsvrc":
        source = _imagenet(entry, imagenet_folder, progress)
    elif entry.files and mirror and not _is_url(mirror) and not Path(mirror).is_dir():
        raise UserError(
            f"mirror: {mirror} is neither a folder that exists nor an http or https address; "
            f"correct the key mirror or {MIRROR_VARIABLE}"
        )
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SOURCE_FILE).unlink(missing_ok=True)
        with one_at_a_time(folder / ".lock"):
            if entry.format == "embedded":
                source = _embedded(entry, folder)
            elif source is None:
                files = [_obtain(entry, file, folder, mirror, progress) for file in entry.files]
                source = {"kind": entry.format, "files": files}
    source = {"dataset": name, "kind": None, "folder": None, "package": None} | source
    write_text_atomically(folder / SOURCE_FILE, json.dumps(source, indent=2) + "\n")
    return source
