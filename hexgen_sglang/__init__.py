"""Deadline-aware scheduling of whole LLM workflows on SGLang and unequal GPUs.

Importing this package is cheap: torch and SGLang load only inside `plugin`, `client`,
`text2sql` and `models`, when they are used.
"""

__version__ = "0.1.0"
