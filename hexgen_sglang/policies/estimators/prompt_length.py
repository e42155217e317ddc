"""Prompt tokens from prompt characters, learned by model from what the engines report."""

from __future__ import annotations

from hexgen_sglang.policies.estimators.averages import BoundedTable, DecayedRate

# English text in BPE vocabularies of 32,000-128,000 tokens; replaced by the first report.
_CHARS_PER_TOKEN = 4.0


class PromptLengths:
    """Characters per token by model.

    Args:
        max_models: remembered at most.
    """

    def __init__(self, max_models: int = 256) -> None:
        self._ratios: BoundedTable[str, DecayedRate] = BoundedTable(DecayedRate, max_models)

    def note(self, model: str, num_chars: int, num_tokens: int) -> None:
        """A prompt of `num_chars` characters had `num_tokens` tokens (template included)."""
        self._ratios.at(model).add(num_chars, num_tokens)

    def chars_per_token(self, model: str) -> float:
        """Characters of one token, above 0."""
        ratio = self._ratios.get(model)
        learned = ratio.per_second if ratio is not None else None
        return learned or _CHARS_PER_TOKEN

    def num_tokens(self, model: str, num_chars: int) -> int:
        """Estimated tokens of a prompt, at least 1."""
        return max(1, round(num_chars / self.chars_per_token(model)))
