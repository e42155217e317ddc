"""The coordinator's own routes, for programs that talk to it: a small blocking client.

Lives in the caller's process; imports only the standard library. Generating text goes
through an OpenAI client or `frontend.py`, not through here.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from typing import Any

from hexgen_sglang.core.errors import ConfigError, WorkerUnavailableError

_MAX_ERROR_CHARS = 500


class CoordinatorClient:
    """Asks one coordinator about workers, models and workflows.

    Args:
        url: base URL, http or https, e.g. "http://127.0.0.1:30000".
        timeout_s: longest wait for one answer, above 0.
        api_key: sent as a bearer token when given.

    Raises:
        ConfigError: the URL or the timeout is wrong.
    """

    def __init__(self, url: str, timeout_s: float = 10.0, api_key: str | None = None) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise ConfigError(f"url={url!r}: must look like http://host:port")
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s={timeout_s}: must be above 0")
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def model_names(self) -> list[str]:
        """Names of the models that can be asked for right now; empty while no worker is up."""
        return [str(row["id"]) for row in self._call("GET", "/v1/models")["data"]]

    def workers(self) -> list[dict[str, Any]]:
        """The rows of GET /workers."""
        rows: list[dict[str, Any]] = self._call("GET", "/workers")["workers"]
        return rows

    def drain_worker(self, worker_id: str) -> dict[str, Any] | None:
        """Let the worker end what it has and get nothing new; its row, None: not registered."""
        return self._call_if_known("POST", f"/workers/{_quoted(worker_id)}/drain")

    def remove_worker(self, worker_id: str) -> dict[str, Any] | None:
        """Take the worker off the list; None: not registered."""
        return self._call_if_known("DELETE", f"/workers/{_quoted(worker_id)}")

    def workflow(self, workflow_id: str) -> dict[str, Any] | None:
        """What GET /workflows/{id} says of a workflow; None when it is not known (any more)."""
        return self._call_if_known("GET", _workflow_path(workflow_id))

    def explain(self, workflow_id: str) -> dict[str, Any] | None:
        """What GET /workflows/{id}/explain says; None when it is not known (any more)."""
        return self._call_if_known("GET", _workflow_path(workflow_id) + "/explain")

    def end_workflow(self, workflow_id: str) -> bool:
        """Say that the workflow is over; False when the coordinator does not know it."""
        return self._call_if_known("POST", _workflow_path(workflow_id) + "/end") is not None

    def cancel_workflow(self, workflow_id: str) -> bool:
        """Abort the workflow's requests; False when the coordinator does not know it."""
        return self._call_if_known("DELETE", _workflow_path(workflow_id)) is not None

    def _call_if_known(self, method: str, path: str) -> dict[str, Any] | None:
        try:
            return self._call(method, path)
        except _NotFoundError:
            return None

    def _call(self, method: str, path: str) -> dict[str, Any]:
        """One call; a JSON object comes back (an empty one for an empty body).

        Raises:
            WorkerUnavailableError: no connection, or an answer that is an error; names URL.
        """
        request = urllib.request.Request(self.url + path, method=method, headers=self._headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                text = response.read()
            answer = json.loads(text) if text else {}
        except urllib.error.HTTPError as error:
            with error:
                detail = error.read().decode("utf-8", "replace")[:_MAX_ERROR_CHARS]
            kind = _NotFoundError if error.code == 404 else WorkerUnavailableError
            raise kind(f"{method} {self.url}{path}: HTTP {error.code}: {detail}") from error
        except (OSError, HTTPException, ValueError) as error:
            raise WorkerUnavailableError(f"{method} {self.url}{path}: {error}") from error
        if not isinstance(answer, dict):
            raise WorkerUnavailableError(
                f"{method} {self.url}{path}: expected a JSON object, got {text[:80]!r}"
            )
        return answer


class _NotFoundError(WorkerUnavailableError):
    """The coordinator answered 404."""


def _workflow_path(workflow_id: str) -> str:
    return f"/workflows/{_quoted(workflow_id)}"


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")
