"""Every supported SGLang has what our hooks and our platform rely on. Reads sources only.

What is expected stands in `hexgen_patches.manifest`, once.
"""

from __future__ import annotations

import pytest

from hexgen_patches.declarations import SUPPORTED
from hexgen_patches.manifest import FACTS, HOOKS
from hexgen_sglang.plugin.surface import SourceTree, _subject

pytestmark = pytest.mark.timeout(300)  # the first test downloads a wheel of 20 to 40 MB


def fact_name(fact) -> str:
    what = getattr(fact.what, "options", (fact.what,))[0]
    return _subject(what).removeprefix("sglang.srt.")[:90]


@pytest.mark.parametrize("version", SUPPORTED)
@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.ours.partition(".")[2])
def test_the_target_of_a_hook_has_the_signature_that_we_know(sglang_tree, version, hook) -> None:
    assert sglang_tree(version).hook(hook).problem is None


@pytest.mark.parametrize("version", SUPPORTED)
@pytest.mark.parametrize("fact", FACTS, ids=fact_name)
def test_what_we_rely_on_is_there(sglang_tree, version, fact) -> None:
    assert sglang_tree(version).fact(fact).problem is None, fact.why


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.ours.partition(".")[2])
def test_a_renamed_target_is_noticed(renamed_tree, hook) -> None:
    finding = SourceTree(renamed_tree(SUPPORTED[-1], hook.target)).hook(hook)
    assert finding.problem == f"{hook.target} is missing"
