"""Failures that pass are tried again, a bounded number of times; others are said at once, without secrets."""

from __future__ import annotations

import errno

import pytest

from arzstream.errors import CorruptError, StorageError
from arzstream.store.address import is_remote, is_url, one_line, redacted
from arzstream.store.objects import BadAnswer
from arzstream.store.patience import Patience, Verdict, patiently, verdict

QUICK = Patience(attempts=3, first=0.001, longest=0.002)


class HttpError(Exception):
    def __init__(self, status, name="status", headers=None):
        super().__init__(f"status {status}")
        setattr(self, name, status)
        self.headers = headers or {}


class ClientError(Exception):
    """As botocore's."""

    def __init__(self, status, code="Code"):
        super().__init__("a client error")
        said = {"HTTPStatusCode": status, "HTTPHeaders": {"retry-after": "1"}}
        self.response = {"ResponseMetadata": said, "Error": {"Code": code}}


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


class ClientPayloadError(Exception):
    """As aiohttp's, whose cause says 400 although nobody did."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (HttpError(500), Verdict.PASSES),
        (HttpError("503", "code"), Verdict.PASSES),
        (HttpError(429, "status_code"), Verdict.PASSES),
        (ClientError(503), Verdict.PASSES),
        (ClientError(404), Verdict.MISSING),
        (ClientError(400), Verdict.LASTS),
        (ClientError(400, "RequestTimeout"), Verdict.PASSES),
        (ClientError(400, "IncompleteBody"), Verdict.PASSES),
        (HttpError(403), Verdict.DENIED),
        (HttpError(401), Verdict.DENIED),
        (HttpError(412), Verdict.CHANGED),
        (HttpError(400), Verdict.LASTS),
        (BadAnswer("odd"), Verdict.ODD),
        (ConnectionResetError(104, "reset"), Verdict.PASSES),
        (TimeoutError(), Verdict.PASSES),
        (FileNotFoundError("x"), Verdict.MISSING),
        (PermissionError("x"), Verdict.DENIED),
        (OSError(errno.EIO, "x"), Verdict.PASSES),
        (OSError(errno.ENOSPC, "x"), Verdict.LASTS),
        (ValueError("x"), Verdict.LASTS),
        (caused(ClientPayloadError("ended"), HttpError(400, "code")), Verdict.PASSES),
        (caused(OSError("translated"), ClientError(503)), Verdict.PASSES),
    ],
)
def test_verdicts(error, expected):
    assert verdict(error) is expected


def failing(*errors):
    """A function that raises these, one after the other, and then gives 7; and how often it was called."""
    left = list(errors)
    calls = []

    def function():
        calls.append(0)
        if left:
            raise left.pop(0)
        return 7

    return function, calls


def test_what_passes_is_tried_again_up_to_a_bound():
    function, calls = failing(HttpError(503), ConnectionResetError())
    assert patiently(function, "x", "read", patience=QUICK) == 7
    assert len(calls) == 3
    function, calls = failing(*[HttpError(503)] * 9)
    with pytest.raises(
        StorageError, match=r"x: cannot read, 3 times: HttpError: status 503; try again later"
    ) as caught:
        patiently(function, "x", "read", patience=QUICK)
    assert len(calls) == 3 and caught.value.errno == errno.EAGAIN


def test_an_odd_answer_is_asked_for_once_more():
    function, calls = failing(BadAnswer("odd"))
    assert patiently(function, "x", "read", patience=QUICK) == 7
    function, calls = failing(BadAnswer("odd"), HttpError(500), BadAnswer("odd"), BadAnswer("odd"))
    with pytest.raises(StorageError, match="x: cannot read, 3 times: odd"):
        patiently(function, "x", "read", patience=Patience(attempts=9, first=0.001, longest=0.002))
    assert len(calls) == 3


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), ValueError("x"), HttpError(400)])
def test_what_lasts_is_not_tried_again(error):
    function, calls = failing(error)
    with pytest.raises(StorageError):
        patiently(function, "x", "read", patience=QUICK)
    assert len(calls) == 1


def test_our_own_errors_pass_through():
    function, _ = failing(CorruptError("damaged"))
    with pytest.raises(CorruptError, match=r"^damaged$"):
        patiently(function, "x", "read", patience=QUICK)


def test_the_store_may_ask_for_a_longer_wait_within_reason():
    patience = Patience(first=0.2, longest=10)
    assert 0.1 <= patience.wait(1, None) <= 0.2
    assert patience.wait(1, 3.0) == 3.0
    assert patience.wait(1, 3600.0) == 10.0
    assert patience.wait(60, None) <= 10.0


def test_no_secret_is_ever_shown():
    url = "https://user:hunter22@host/a.arz?X-Amz-Signature=abcdef&sig=xyz"
    assert redacted(url) == "https://host/a.arz"
    options = {"secret": "wJalrXUtn", "client_kwargs": {"aws_session_token": "FwoGZXIvY"}, "anon": "true"}
    error = ValueError(f"bad answer of '{url}' with wJalrXUtn and FwoGZXIvY\nand more")
    said = one_line(error, options)
    assert said == "ValueError: bad answer of 'https://host/a.arz?…' with … and … and more"
    function, _ = failing(error)
    with pytest.raises(StorageError) as caught:
        patiently(function, redacted(url), "read", patience=QUICK, options=options)
    for secret in ("hunter22", "abcdef", "xyz", "wJalrXUtn", "FwoGZXIvY"):
        assert secret not in str(caught.value)


def test_what_is_a_url():
    assert is_url("s3://bucket/key") and is_url("memory://x") and is_url("simplecache::s3://b/k")
    assert not is_url("/tmp/a:b") and not is_url("C:\\x") and not is_url(b"s3://x") and not is_url("a/b")
    assert is_remote("s3://bucket/key") and not is_remote("file:///x") and not is_remote("x")
