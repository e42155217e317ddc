"""How much the agent does for one question: plain bounded values, read by both drivers."""

from __future__ import annotations

from dataclasses import dataclass

from hexgen_sglang.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """How much the agent does for one question, at most; a near deadline makes it less.

    Attributes:
        num_candidates: parallel attempts, 1 to 32.
        max_rounds: rounds of self-correction, 0 to 10.
        num_checks: unit tests for the result, 0 to 8; 0 leaves the choice to agreement.
        agree_at: so many candidates with the same rows settle the question: the others are
            aborted, and nothing is corrected or tested. 1 to 32; 0: never; None: more than
            half of the candidates.
        max_sql_tokens: output limit for SQL, 8 to 4,096.
        max_check_tokens: output limit for each unit test, 4 to 512.
        max_link_tokens: output limit for the list of tables, 4 to 512.
        max_keyword_tokens: output limit for the question's keywords, 0 to 512; 0: the model
            is not asked for any.
        temperature: of repeated prompts and of revisions, 0 to 2; first attempts are greedy.
        fallback_model: a smaller model's name, for questions whose deadline the usual one
            would miss; None: there is none. Needs a server with both.

    Raises:
        ConfigError: a setting is out of range.
    """

    num_candidates: int = 3
    max_rounds: int = 2
    num_checks: int = 2
    agree_at: int | None = None
    max_sql_tokens: int = 48
    max_check_tokens: int = 20
    max_link_tokens: int = 16
    max_keyword_tokens: int = 12
    temperature: float = 0.6
    fallback_model: str | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_candidates", 1, 32),
            ("max_rounds", 0, 10),
            ("num_checks", 0, 8),
            ("agree_at", 0, 32),
            ("max_sql_tokens", 8, 4096),
            ("max_check_tokens", 4, 512),
            ("max_link_tokens", 4, 512),
            ("max_keyword_tokens", 0, 512),
            ("temperature", 0, 2),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"AgentSettings.{name}={value}: must be {low} to {high}")
        if self.fallback_model is not None and not self.fallback_model.strip():
            raise ConfigError("AgentSettings.fallback_model='': must be a model's name, or None")

    def enough_of(self, num_candidates: int) -> int | None:
        """How many of so many candidates have to agree; None when that settles nothing."""
        if self.agree_at == 0:
            return None
        return self.agree_at or num_candidates // 2 + 1
