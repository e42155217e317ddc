"""The errors of hexgen-sglang.

HexgenError
|- ConfigError              a setting, flag or file is wrong: field, value, allowed range
|- ProtocolError            a tag, body or wire message is malformed or of another version
|- WorkerUnavailableError   no worker can take or finish a request
|- AdmissionRejected        a bounded queue is full, or a deadline cannot be met
|- CompatibilityError       this SGLang lacks something the plugin relies on
|- ProcessError             a process that we started ended, hung or could not be stopped
`- LawViolation             an invariant that must always hold does not
"""

from __future__ import annotations


class HexgenError(Exception):
    """Base of every error raised on purpose by hexgen-sglang."""


class ConfigError(HexgenError):
    """A setting, flag or file is wrong; the message names field, value and allowed range."""


class ProtocolError(HexgenError):
    """A workflow tag, request body or wire message is malformed or of another version."""


class WorkerUnavailableError(HexgenError):
    """No worker can take or finish this request."""


class AdmissionRejected(HexgenError):
    """The request was not accepted; nothing of it was kept.

    `retry_after_s`: seconds after which trying again makes sense.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CompatibilityError(HexgenError):
    """The installed SGLang lacks a hook target or signature; the message names both."""


class ProcessError(HexgenError):
    """A process that we started ended, never got ready or could not be stopped."""


class LawViolation(HexgenError):
    """An invariant (conservation, causality, total order) does not hold: a defect of ours."""
