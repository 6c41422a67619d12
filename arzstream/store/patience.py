"""Trying again: which failures pass, how long to wait for it, and what to say when they do not.

Stores fail in the words of many libraries. What counts is the status that their errors carry, or that the connection
failed; see :func:`verdict`.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from arzstream.errors import ArzError, StorageError, UnsupportedError
from arzstream.store.address import one_line
from arzstream.store.objects import BadAnswer

__all__ = ["PATIENCE", "Patience", "Verdict", "patiently", "status_of", "storage_error", "verdict"]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Patience:
    """How often, and for how many seconds, something is tried."""

    attempts: int = 6
    first: float = 0.2
    """Before the second try; then twice as long each time, and a random part of that, up to ``longest``."""
    longest: float = 10.0
    stall: float = 30.0
    """A request that brings nothing for so long has failed."""
    rate: int = 32 << 10
    """Bytes a second: a request that brings less than this all in all has failed, too."""

    def within(self, nbytes: int) -> float:
        """The longest that a request for ``nbytes`` may take."""
        return self.stall + nbytes / self.rate

    def wait(self, tries: int, asked: float | None) -> float:
        """Seconds before the next try, after ``tries`` of them; ``asked`` is what the store asked for."""
        longest = min(self.longest, self.first * 2.0 ** (tries - 1))
        return min(self.longest, max(asked or 0.0, longest * random.uniform(0.5, 1.0)))


PATIENCE = Patience()


class Verdict(enum.Enum):
    """What a failure means."""

    PASSES = "it may pass"
    ODD = "the answer made no sense"
    MISSING = "there is no such object"
    DENIED = "not allowed"
    CHANGED = "a condition was not met"
    LASTS = "it will not pass"


_PASSING = {408, 425, 429, 500, 502, 503, 504, 507, 509, 529}
_PASSING_CODES = {"IncompleteBody", "RequestTimeout"}
"""What S3 calls a request whose body did not come as a whole; its status is 400."""
_BY_STATUS = {404: Verdict.MISSING, 410: Verdict.MISSING, 401: Verdict.DENIED, 403: Verdict.DENIED}
_BY_STATUS |= {412: Verdict.CHANGED, 416: Verdict.CHANGED, 304: Verdict.CHANGED}
_PASSING_NAMES = {
    "AzureError", "ClientConnectionError", "ClientOSError", "ClientPayloadError", "ConnectTimeoutError",
    "ConnectionClosedError", "EndpointConnectionError", "FSTimeoutError", "HTTPClientError", "IncompleteReadError",
    "ReadTimeoutError", "ResponseStreamingError", "SSHException", "ServerDisconnectedError", "ServerTimeoutError",
    "ServiceRequestError", "ServiceResponseError", "TimeoutError",
}  # fmt: skip
"""Names of classes of aiohttp, botocore, urllib3, azure.core, paramiko and fsspec, none of which need be installed."""
_DENYING_NAMES = {"AuthenticationException", "NoCredentialsError", "NoAuthTokenError", "TokenRetrievalError"}
_LASTING_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR}


def verdict(error: BaseException) -> Verdict:
    """What ``error`` means for another try: what the first says, of it and its causes, that says anything."""
    return next((found for found in map(_verdict, _chain(error)) if found is not None), Verdict.LASTS)


def _verdict(error: BaseException) -> Verdict | None:
    names = {kind.__name__ for kind in type(error).__mro__}
    status = _status_of(error)
    if isinstance(error, BadAnswer):
        return Verdict.ODD
    if status is not None:
        return (
            Verdict.PASSES
            if status in _PASSING or _code_of(error) in _PASSING_CODES
            else _BY_STATUS.get(status, Verdict.LASTS)
        )
    if isinstance(error, (FileNotFoundError, KeyError)):
        return Verdict.MISSING
    if isinstance(error, PermissionError) or names & _DENYING_NAMES:
        return Verdict.DENIED
    if isinstance(error, (ConnectionError, TimeoutError, EOFError)) or names & _PASSING_NAMES:
        return Verdict.PASSES
    if isinstance(error, OSError) and error.errno is not None:
        return Verdict.LASTS if error.errno in _LASTING_ERRNO else Verdict.PASSES
    return None


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error or one of its causes carries, if any."""
    return next((found for found in map(_status_of, _chain(error)) if found is not None), None)


def _status_of(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(found, int):
            return found
    for name in ("status", "status_code", "code"):
        found = getattr(error, name, None)
        if isinstance(found, str) and found.isdigit():
            found = int(found)
        if isinstance(found, int) and 300 <= found < 600:
            return found
    return None


def _code_of(error: BaseException) -> str:
    """What S3 calls the error."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, Mapping) else ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = 0
    while error is not None and seen < 8:
        yield error
        error, seen = error.__cause__, seen + 1


def _asked_to_wait(error: BaseException) -> float | None:
    """``Retry-After`` in seconds."""
    for one in _chain(error):
        headers = getattr(one, "headers", None)
        response = getattr(one, "response", None)
        if isinstance(response, Mapping):
            headers = response.get("ResponseMetadata", {}).get("HTTPHeaders")
        if isinstance(headers, Mapping):
            said = headers.get("Retry-After") or headers.get("retry-after")
            if said is not None and str(said).isdigit():
                return float(said)
    return None


def patiently(
    function: Callable[[], T],
    name: str,
    doing: str,
    *,
    patience: Patience = PATIENCE,
    options: Mapping[str, Any] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> T:
    """``function()``, tried again while it fails in ways that pass. ``name`` and ``doing`` are for the message.

    An answer that makes no sense is asked for once more only. Raises StorageError; the arzstream errors,
    FileExistsError and NotImplementedError of ``function`` pass through.
    """
    tries = odd = 0
    while True:
        try:
            return function()
        except (ArzError, FileExistsError, NotImplementedError):
            raise
        except Exception as error:
            tries += 1
            found = verdict(error)
            odd += found is Verdict.ODD
            again = found is Verdict.PASSES or (found is Verdict.ODD and odd == 1)
            if not again or tries >= patience.attempts or stopped():
                raise storage_error(error, name, doing, tries, options) from error
            time.sleep(patience.wait(tries, _asked_to_wait(error)))


def storage_error(
    error: BaseException, name: str, doing: str, tries: int = 1, options: Mapping[str, Any] | None = None
) -> ArzError:
    """``error`` in one line, with what to do."""
    if isinstance(error, ImportError):
        return UnsupportedError(f"{name}: {one_line(error, options)}; arzstream doctor says what to install")
    if isinstance(error, IsADirectoryError):
        return StorageError(f"{name}: is a folder; name a file", errno=errno.EISDIR)
    found = verdict(error)
    if found is Verdict.MISSING:
        return StorageError(f"{name}: cannot {doing}: no such file; check the address", errno=errno.ENOENT)
    if found is Verdict.DENIED:
        advice = "check the credentials in the environment, and what they allow"
        return StorageError(f"{name}: cannot {doing}: access denied ({_status(error)}); {advice}", errno=errno.EACCES)
    said = one_line(error, options)
    often = f", {tries} times" if tries > 1 else ""
    if found is Verdict.PASSES:
        return StorageError(f"{name}: cannot {doing}{often}: {said}; try again later", errno=errno.EAGAIN)
    if found is Verdict.ODD:
        advice = "the store, or something on the way, does not serve ranges; copy it to a local disk"
        return StorageError(f"{name}: cannot {doing}{often}: {error}; {advice}")
    return StorageError(f"{name}: cannot {doing}: {said}")


def _status(error: BaseException) -> str:
    status = status_of(error)
    return f"status {status}" if status is not None else type(error).__name__
