"""Download of one file over http, with resuming and retries."""

from __future__ import annotations

import logging
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from time import sleep

import httpx

from ..io.errors import UserError

log = logging.getLogger(__name__)

ATTEMPTS = 5  # in a row without a new byte, before a source is given up
CONNECT_TIMEOUT_S = 15.0
STALL_TIMEOUT_S = 60.0  # how long a server may send nothing
FIRST_WAIT_S = 1.0  # after the first failure; doubled with each further one, with jitter
LONGEST_WAIT_S = 60.0
RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class Refused(Exception):
    """This source cannot be used; the next one is tried."""


class Unresolved(Refused):
    """The host's name has no address, as on a machine that is offline."""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_unresolved(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, socket.gaierror):
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _client() -> httpx.Client:
    try:
        return httpx.Client(
            timeout=httpx.Timeout(STALL_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            follow_redirects=True,
            # The bytes as stored: a .gz file must not be decoded on the way.
            headers={"Accept-Encoding": "identity", "User-Agent": "neural-collapse"},
        )
    except (ValueError, OSError, ImportError) as error:
        raise UserError(
            "downloads: the environment's settings of proxies or certificates (http_proxy, "
            f"https_proxy, all_proxy, SSL_CERT_FILE, SSL_CERT_DIR) cannot be used: {error}"
        ) from None


def _wait_s(error: Exception, fruitless: int) -> float:
    if isinstance(error, httpx.HTTPStatusError):
        asked = error.response.headers.get("Retry-After", "")  # seconds, or a date
        if asked.isdigit():
            return min(float(asked), LONGEST_WAIT_S)
    return min(FIRST_WAIT_S * (2 ** max(fruitless - 1, 0) + random.random()), LONGEST_WAIT_S)


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
        if status not in (200, 206):
            reason = f"{status} {response.reason_phrase}".strip()
            if status in RETRIED_STATUS:
                raise httpx.HTTPStatusError(reason, request=response.request, response=response)
            raise Refused(reason)
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
    progress: Callable[[int, int | None], None],
) -> None:
    """Download `url` to `part`, resuming after what it holds; raises Refused, and at once where the
    host's name has no address."""
    at_first = best = _size(part)
    fruitless = 0
    with _client() as client:
        while True:
            try:
                return _attempt(client, url, part, limit_bytes, progress)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                fruitless = 0 if _size(part) > best else fruitless + 1
                best = max(best, _size(part))
                if _is_unresolved(error) and best == at_first:
                    raise Unresolved(_reason(error)) from None
                may_help = isinstance(error, (httpx.TransportError, httpx.HTTPStatusError))
                if not may_help or fruitless >= ATTEMPTS:
                    raise Refused(_reason(error)) from None
                log.warning("%s: %s; trying again", url, _reason(error))
                sleep(_wait_s(error, fruitless))
