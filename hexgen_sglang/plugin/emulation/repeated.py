"""How many KV tokens of a decode batch are held by more than one of its requests.

On SGLang's scheduler thread, only where a profile says that the engine does not read those again
for each request. What counts as shared are equal KV slots, as for a real shared-prefix kernel.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

from hexgen_kernels.shared_prefix_decode.groups import CostRule, GroupFinder
from hexgen_sglang.plugin.config import PluginConfig
from hexgen_sglang.plugin.emulation.profile_file import load_profile

# Sharing costs nothing: the profile's own term says what it is worth.
_ALL = CostRule(kv_bytes=1.0, partial_bytes=0.0)


class RepeatedTokens:
    """Follows the decode batches of one scheduler from step to step."""

    def __init__(self) -> None:
        self._finder = GroupFinder(_ALL)

    def count(self, batch: Any) -> int:
        """KV tokens of SGLang's batch beyond the first copy of each, in the prompts."""
        rows = zip(batch.req_pool_indices.tolist(), batch.reqs, strict=True)
        prompts: dict[Hashable, tuple[int, int]] = {
            (req.rid, req.retraction_count): (row, len(req.origin_input_ids)) for row, req in rows
        }
        table = batch.req_to_token_pool.req_to_token

        def slots(name: Hashable) -> Any:
            row, length = prompts[name]
            return table[row, :length].numpy()

        return self._finder.step(list(prompts), slots).tokens_saved


def repeated_read_frac(config: PluginConfig) -> float:
    """The share of a read that a repeated token costs where this engine runs; 1: all of it."""
    if config.emulate is None:
        return 1.0
    frac = load_profile(Path(config.emulate)).decode.repeated_read_frac
    return 1.0 if frac is None else frac.value
