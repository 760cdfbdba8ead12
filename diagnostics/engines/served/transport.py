"""JSON over HTTP: a key that is never recorded, tries with back-off, and one sentence when the last one has failed."""

import json
import logging
import os
from typing import Any

import urllib3
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry, Timeout

from teachdiag.errors import ModelError, cause

TRIES = 6  # of one request, before the run stops; what was scored stays
_BACKOFF = 1.0  # seconds: between tries 0, 2, 4, 8 and 16 of them pass, or what a server's Retry-After says, at most
_LONGEST = 60.0  # seconds between two tries
_TIMEOUT = Timeout(connect=10.0, read=600.0)  # seconds: a request may queue behind others
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # what a busy or restarting server answers
_SHOWN = 200  # characters of what a server says of an error


class Refusal(ModelError):
    """A server does not do what it is asked, and would not if it were asked again.

    Attributes:
        status: of its answer.
        reason: what it says.
    """

    def __init__(self, url: str, status: int, reason: str) -> None:
        """Say who refuses, and why."""
        helps = {
            401: "; give the server's key in the environment variable TEACHDIAG_TEACHER_KEY",
            403: "; is the key in the environment variable TEACHDIAG_TEACHER_KEY the server's?",
        }
        super().__init__(f"{url} refuses what it is asked (status {status}: {reason}){helps.get(status, '')}")
        self.status, self.reason = status, reason


class _Tries(Retry):
    """Tries that wait as long as a server asks for, within bounds; what is no time is not waited for."""

    def get_retry_after(self, response: urllib3.BaseHTTPResponse) -> float | None:
        """Return the seconds that an answer asks to wait."""
        try:
            asked = super().get_retry_after(response)
        except InvalidHeader:
            return None
        return None if asked is None else min(asked, _LONGEST)


class Transport:
    """Requests to one server, from several threads at a time."""

    def __init__(self, url: str, connections: int) -> None:
        """Take note; nothing is sent yet.

        Args:
            url: the server's address, as OpenAI's clients take it: it ends in /v1.
            connections: requests under way at the same time, at most.
        """
        self.root = url.rstrip("/").removesuffix("/v1")
        key = os.environ.get("TEACHDIAG_TEACHER_KEY")
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # no line a retry between progress bars
        self._pool = urllib3.PoolManager(
            maxsize=connections,
            block=True,
            headers={"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=_TIMEOUT,
        )
        self._retries = _Tries(
            TRIES - 1,
            allowed_methods=None,  # POST too: what is asked changes nothing there
            status_forcelist=_PASSING,
            backoff_factor=_BACKOFF,
            backoff_max=_LONGEST,
            raise_on_status=False,
        )

    def get(self, path: str, *, patient: bool = True) -> Any:  # noqa: ANN401
        """Return what a GET answers; raises as `post`.

        Args:
            path: below the server's root.
            patient: whether to try again: an address that was mistyped is to be told of at once.
        """
        return self._answer("GET", path, None, patient)

    def post(self, path: str, body: dict[str, Any]) -> Any:  # noqa: ANN401
        """Return what a POST of some JSON answers.

        Raises:
            Refusal: the server answers with a status of 4xx.
            ModelError: it cannot be reached, fails again and again, or answers with an error or something else than
                JSON where its status says that all is well.
        """
        return self._answer("POST", path, json.dumps(body).encode())

    def _answer(self, method: str, path: str, body: bytes | None, patient: bool = True) -> Any:  # noqa: ANN401
        url = self.root + path
        try:
            response = self._pool.request(method, url, body=body, retries=self._retries if patient else False)
        except urllib3.exceptions.HTTPError as error:
            reason = cause(getattr(error, "reason", None) or error)
            if not patient:
                raise ModelError(f"{url} cannot be reached: {reason}") from error
            raise _given_up(url, reason) from error
        if response.status in _PASSING:
            raise _given_up(url, f"status {response.status}: {_said(response.data)}")
        if response.status >= 400:
            raise Refusal(url, response.status, _said(response.data))
        try:
            content = json.loads(response.data)
        except ValueError as error:
            raise ModelError(
                f"{url} answers with something else than JSON: give the address of a server of vLLM or SGLang"
            ) from error
        if isinstance(content, dict) and (content.get("error") or content.get("object") == "error"):
            raise ModelError(
                f"{url} answers with an error, though its status is {response.status}: {_said(response.data)}; does "
                "something stand between here and the server?"
            )
        return content


def _given_up(url: str, reason: str) -> ModelError:
    return ModelError(
        f"{url} failed {TRIES} times, the last time with {reason}: when it works again, start the same command, which "
        "goes on where it stopped"
    )


def _said(data: bytes) -> str:
    """Return what a server says of an error: vLLM and SGLang wrap it differently."""
    text = data.decode(errors="replace")
    try:
        content = json.loads(text)
    except ValueError:
        content = text
    if isinstance(content, dict):
        inner = content.get("error", content)
        content = inner.get("message", inner.get("detail", inner)) if isinstance(inner, dict) else inner
    line = " ".join(str(content).split()) or "no reason given"
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
