"""Who calls the HTTP surface, and what that caller may see and change.

Runs in the coordinator's event loop, once for each request, before its body is read. How keys
are kept is in `api_keys`; how much a tenant may use is in `limits`.

With keys, workflows of all tenants are entered as `tenant/workflow_id`, here and in the
engines: two tenants that happen to use one id never meet, and nobody can name, join, end or
notice a workflow of somebody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from hexgen_sglang.coordinator.api_keys import ApiKey, KeyRing, Role
from hexgen_sglang.coordinator.http_errors import ApiError
from hexgen_sglang.core.errors import ProtocolError
from hexgen_sglang.protocol.tag import WorkflowTag

_MAX_WORKFLOW_ID = 128


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request.

    Attributes:
        tenant: of its key; None where no keys are configured, and every caller may do
            everything.
        roles: of its key.
        key_id: for logs; "" without a key.
    """

    tenant: str | None = None
    roles: frozenset[Role] = frozenset(Role)
    key_id: str = ""

    def require(self, *wanted: Role) -> None:
        """Refuse a caller that has none of these roles.

        Raises:
            ApiError: 403.
        """
        if self.roles.isdisjoint(wanted):
            names = " or ".join(role.value for role in wanted)
            raise ApiError(
                403,
                f"this needs a key with the role {names}; this key has "
                f"{', '.join(sorted(self.roles))}",
                kind="permission_error",
                code="role_required",
            )

    def sees(self, tenant: str) -> bool:
        """Whether workflows of this tenant may be shown to and changed by the caller."""
        return self.tenant is None or Role.OPERATOR in self.roles or tenant == self.tenant

    def own(self, tag: WorkflowTag | None) -> WorkflowTag | None:
        """The tag as it is entered: under the key's tenant, whatever tenant it states.

        Raises:
            ProtocolError: the workflow id is too long to be entered under the tenant's name.
        """
        if tag is None or self.tenant is None:
            return tag
        most = _MAX_WORKFLOW_ID - len(self.tenant) - 1
        if len(tag.workflow_id) > most:
            raise ProtocolError(
                f"workflow_id={tag.workflow_id!r}: must be 1 to {most} characters for tenant "
                f"{self.tenant!r}"
            )
        return msgspec.structs.replace(
            tag, workflow_id=self._prefix + tag.workflow_id, tenant=self.tenant
        )

    def entered_ids(self, workflow_id: str) -> tuple[str, ...]:
        """Under which ids the workflow that the caller calls so may be entered."""
        if self.tenant is None:
            return (workflow_id,)
        return (self._prefix + workflow_id, workflow_id)

    def shown_id(self, workflow_id: str) -> str:
        """What the caller calls a workflow that is entered under this id."""
        return workflow_id if self.tenant is None else workflow_id.removeprefix(self._prefix)

    @property
    def _prefix(self) -> str:
        return f"{self.tenant}/"


ANYBODY = Caller()


class Access:
    """Finds out who calls.

    Args:
        ring: the keys; None: no key is needed, and everybody may do everything.
    """

    def __init__(self, ring: KeyRing | None) -> None:
        self.ring = ring

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Who sent a request with these headers.

        Raises:
            ApiError: 401, without or with a wrong key. The message never holds any of it.
        """
        if self.ring is None:
            return ANYBODY
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise _unauthorised("missing_api_key", "a key is needed: Authorization: Bearer KEY")
        row = self.ring.find(token.strip())
        if row is None:
            raise _unauthorised("invalid_api_key", "this key is not known here")
        return _caller_of(row)


def _caller_of(row: ApiKey) -> Caller:
    return Caller(row.tenant, frozenset(row.roles), row.id)


def _unauthorised(code: str, message: str) -> ApiError:
    return ApiError(401, message, kind="authentication_error", code=code)
