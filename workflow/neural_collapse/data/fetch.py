"""Download of one file over http, with resuming and retries."""

from __future__ import annotations

import logging
import random
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from ..io.errors import UserError

log = logging.getLogger(__name__)

RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST_WAIT_S = 60.0


@dataclass(frozen=True)
class DownloadSettings:
    """When a download is given up. `sleep` is replaced in tests, which must not wait."""

    attempts: int = 5
    """Attempts in a row without a new byte before a source is given up."""
    connect_timeout_s: float = 15.0
    """How long a server may take to accept a connection."""
    stall_timeout_s: float = 60.0
    """How long a server may send nothing before the attempt counts as failed."""
    first_wait_s: float = 1.0
    """Wait after the first failure, doubled with each further one, with jitter."""
    sleep: Callable[[float], None] = time.sleep


class Refused(Exception):
    """This source cannot be used; the next one is tried.

    unresolved: the host's name has no address, as on a machine that is offline.
    """

    def __init__(self, reason: str, unresolved: bool = False) -> None:
        super().__init__(reason)
        self.unresolved = unresolved


class _Busy(Exception):
    """The server answers, but not now."""

    def __init__(self, reason: str, wait_s: float | None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_unresolved(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, socket.gaierror):
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(error: BaseException) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"nothing came within the time limit ({type(error).__name__})"
    return " ".join(str(error).split()) or type(error).__name__


def _client(settings: DownloadSettings) -> httpx.Client:
    try:
        return httpx.Client(
            timeout=httpx.Timeout(settings.stall_timeout_s, connect=settings.connect_timeout_s),
            follow_redirects=True,
            # The bytes as stored: a .gz file must not be decoded on the way.
            headers={"Accept-Encoding": "identity", "User-Agent": "neural-collapse"},
        )
    except (ValueError, OSError, ImportError) as error:
        raise UserError(
            "downloads: the environment's settings of proxies or certificates (http_proxy, "
            f"https_proxy, all_proxy, SSL_CERT_FILE, SSL_CERT_DIR) cannot be used: {error}"
        ) from None


def _attempt(
    client: httpx.Client,
    url: str,
    part: Path,
    limit_bytes: int | None,
    progress: Callable[[int, int | None], None],
) -> None:
    """One request for what `part` lacks of `url`; whether it is right, its checksum decides."""
    have = _size(part)
    headers = {"Range": f"bytes={have}-"} if have else {}
    with client.stream("GET", url, headers=headers) as response:
        status = response.status_code
        if status == 416 and have:  # there is no more to come
            return
        if status in RETRIED_STATUS:
            asked = response.headers.get("Retry-After", "")  # seconds, or a date
            wait_s = float(asked) if asked.isdigit() else None
            raise _Busy(f"{status} {response.reason_phrase}", wait_s)
        if status not in (200, 206):
            raise Refused(f"{status} {response.reason_phrase}".strip())
        have = have if status == 206 else 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else None
        if limit_bytes is not None and (total or 0) > limit_bytes:
            raise Refused(f"it offers {total} bytes, at most {limit_bytes} are expected")
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - have > free:
            raise UserError(
                f"{part.parent}: {part.stem} needs {total - have} bytes and the disk has {free} "
                "left; make room and start again"
            )
        with open(part, "ab" if have else "wb") as handle:
            # Written as they arrive, so that a cut or a kill loses nothing.
            for block in response.iter_raw():
                handle.write(block)
                handle.flush()
                have += len(block)
                if limit_bytes is not None and have > limit_bytes:
                    part.unlink()
                    raise Refused(f"it sends more than the {limit_bytes} bytes expected")
                progress(have, total)


def fetch(
    url: str,
    part: Path,
    limit_bytes: int | None,
    settings: DownloadSettings,
    progress: Callable[[int, int | None], None],
) -> None:
    """Download `url` to `part`, going on from what it holds; raises Refused.

    Retries end after `settings.attempts` in a row without a new byte, and at once where the host's
    name has no address. Proxies and certificates are taken from the usual environment variables.
    """
    at_first = best = _size(part)
    fruitless = 0
    with _client(settings) as client:
        while True:
            try:
                return _attempt(client, url, part, limit_bytes, progress)
            except (httpx.HTTPError, httpx.InvalidURL, _Busy) as error:
                fruitless = 0 if _size(part) > best else fruitless + 1
                best = max(best, _size(part))
                unresolved = _is_unresolved(error)
                may_help = isinstance(error, (httpx.TransportError, _Busy)) and (
                    not unresolved or best > at_first
                )
                if not may_help or fruitless >= settings.attempts:
                    raise Refused(_reason(error), unresolved) from None
                log.warning("%s: %s; trying again", url, _reason(error))
                wait_s = error.wait_s if isinstance(error, _Busy) else None
                if wait_s is None:
                    doubled = 2 ** max(fruitless - 1, 0)
                    wait_s = settings.first_wait_s * (doubled + random.random())
                settings.sleep(min(wait_s, LONGEST_WAIT_S))
