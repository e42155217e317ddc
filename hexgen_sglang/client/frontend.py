"""A backend for SGLang frontend programs: each run of a program is a workflow.

Lives in the caller's process and loads SGLang's frontend (hence torch). Here: what all runs
share. One run's requests and tags are in `workflow_run.py`; where they are computed is the
coordinator's business.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any, Self

from sglang.lang.backend.base_backend import BaseBackend
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.chat_template import get_chat_template, get_chat_template_by_model_path

from hexgen_sglang.client import interpreter
from hexgen_sglang.client.coordinator import CoordinatorClient
from hexgen_sglang.client.generate_route import GenerateRoute
from hexgen_sglang.client.tags import Workflow, check_deadline_s
from hexgen_sglang.client.workflow_run import (
    PREFIX_STAGE,
    WorkflowRun,
    prefix_body,
    workflow_of,
)
from hexgen_sglang.core.errors import ConfigError, WorkerUnavailableError

__all__ = ["HexgenEndpoint", "WorkflowRun", "workflow_of"]


class HexgenEndpoint(RuntimeEndpoint):  # type: ignore[misc]
    """A coordinator as the backend of SGLang frontend programs.

    `sgl.set_default_backend(HexgenEndpoint("http://127.0.0.1:30000", deadline_s=20))`, and
    every run of an `@sgl.function` is a workflow with its own id and deadline. A request's
    stage is the variable it fills (`sgl.gen("sql")` -> stage "sql"), forks become siblings,
    and the end of the program ends the workflow.

    Args:
        url: the coordinator's base URL.
        deadline_s: seconds that each run may take, above 0 and at most 86,400; None: the
            coordinator's default for the type, else best effort.
        workflow_type: name for workflows whose stages are alike.
        tenant: for fairness and accounting.
        stages: variable name -> stage, for programs whose variables are named otherwise.
        chat_template_name: SGLang chat template; None: found from the model's name.
        api_key: bearer token for the coordinator.
        commit_prefix: before a fork of several, send the common text once on its own, as
            RuntimeEndpoint does. Off by default: siblings may run on other workers, and
            an engine shares prefixes without it.
        timeout_s: longest wait for one answer, queueing included, above 0.

    Raises:
        ConfigError, ProtocolError: a setting is out of range.
        WorkerUnavailableError: the coordinator cannot be reached or serves no model yet.
        CompatibilityError: the installed SGLang's frontend differs from what is relied on.
    """

    def __init__(
        self,
        url: str,
        deadline_s: float | None = None,
        workflow_type: str | None = None,
        tenant: str | None = None,
        *,
        stages: Mapping[str, str] | None = None,
        chat_template_name: str | None = None,
        api_key: str | None = None,
        commit_prefix: bool = False,
        timeout_s: float = 600.0,
    ) -> None:
        BaseBackend.__init__(self)
        interpreter.install()
        # Without it, join("concate_and_append") would call a route of one single server.
        self.support_concate_and_append = False
        self.coordinator = CoordinatorClient(url, api_key=api_key)
        self.route = GenerateRoute(self.coordinator.url, api_key=api_key, timeout_s=timeout_s)
        self.base_url, self.api_key, self.verify = self.coordinator.url, api_key, None
        self.deadline_s, self.workflow_type, self.tenant = deadline_s, workflow_type, tenant
        self.stages = dict(stages or {})
        self.commit_prefix = commit_prefix
        probe = Workflow(type=workflow_type, deadline_s=deadline_s, tenant=tenant)
        for stage in self.stages.values():
            probe.fields(stage)
        models = self.coordinator.model_names()
        if not models:
            raise WorkerUnavailableError(f"{self.base_url}: no worker serves a model yet")
        self.model_info = {"model_path": models[0]}
        self.chat_template = (
            get_chat_template(chat_template_name)
            if chat_template_name
            else get_chat_template_by_model_path(models[0])
        )

    @property
    def endpoint(self) -> WorkflowRun:
        """A new workflow. SGLang's `run` and `run_batch` take it once for each run."""
        return WorkflowRun(self)

    def with_deadline(self, deadline_s: float | None) -> Self:
        """The same backend with another deadline for the runs to come.

        Raises:
            ConfigError: `deadline_s` is out of range.
        """
        check_deadline_s(deadline_s)
        other = copy.copy(self)
        other.deadline_s = deadline_s
        return other

    def stage_of(self, variable: str | None, unnamed: str) -> str:
        """The stage for a variable: as mapped, else its name within the tag's alphabet."""
        if variable is None:
            return unnamed
        if variable in self.stages:
            return self.stages[variable]
        return re.sub(r"[^A-Za-z0-9._:/@+=-]", "_", variable)[:64] or unnamed

    def generate(self, s: Any, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        """One request outside a program: a workflow of one stage."""
        return self.endpoint.generate(s, sampling_params)

    def generate_stream(self, s: Any, sampling_params: Any) -> Any:
        """As `generate`, streaming."""
        return self.endpoint.generate_stream(s, sampling_params)

    def select(self, s: Any, choices: Any, temperature: Any, choices_method: Any) -> Any:
        """As `generate`, for a choice."""
        return self.endpoint.select(s, choices, temperature, choices_method)

    def cache_prefix(self, prefix_str: str) -> None:
        """Fill one worker's prefix cache: a workflow of its own, without a deadline."""
        workflow = Workflow(type=self.workflow_type, tenant=self.tenant)
        self.route.send(
            prefix_body(prefix_str), lambda: workflow.fields(PREFIX_STAGE, final=True), None
        )

    def flush_cache(self) -> None:
        """Refused: caches belong to workers.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("flush_cache: a coordinator has no cache; call it on each worker's URL")

    def get_server_info(self) -> dict[str, Any]:
        """The coordinator's workers, as GET /workers lists them."""
        return {"workers": self.coordinator.workers()}
