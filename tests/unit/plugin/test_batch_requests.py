"""What the host's records say about shared prefixes, on stand-ins for SGLang's requests."""

from __future__ import annotations

import gc
from array import array
from types import SimpleNamespace
from typing import Any

from hexgen_sglang.plugin.attention import batch_requests
from hexgen_sglang.plugin.attention.batch_requests import RequestPrefixes


class Request:
    """The fields of SGLang's `Req` that are read."""

    def __init__(self, prompt: list[int], protected: int, **more: Any) -> None:
        self.origin_input_ids, self.output_ids = array("q", prompt), array("q")
        self.kv = SimpleNamespace(cache_protected_len=protected)
        self.extra_key = self.session = self.positional_embed_overrides = None
        self.cache_salt: str | None = None
        self.retraction_count = 0
        vars(self).update(more)


def entries(prefixes: RequestPrefixes, request: Request) -> list[int]:
    return [int(entry) for entry in prefixes.entries(request)]


def test_only_what_the_cache_owns_counts() -> None:
    prefixes = RequestPrefixes()
    assert entries(prefixes, Request([5, 6, 7], 2)) == [5, 6]
    assert entries(prefixes, Request([5, 6, 7], 0)) == []
    resumed = Request([5, 6, 7], 5, output_ids=array("q", [8, 9, 10]))
    assert entries(prefixes, resumed) == [5, 6, 7, 8, 9]


def test_the_field_of_older_versions_is_read() -> None:
    request = Request([5, 6, 7], 0, kv=None, cache_protected_len=3)
    prefixes = RequestPrefixes()
    assert entries(prefixes, request) == [5, 6, 7]
    assert prefixes.names([request])[0].protected_tokens == 3


def test_requests_whose_tokens_do_not_name_their_slots_share_nothing() -> None:
    prefixes = RequestPrefixes()
    assert entries(prefixes, Request([5, 6], 2, session=object())) == []
    assert entries(prefixes, Request([5, 6], 2, positional_embed_overrides=object())) == []
    assert entries(prefixes, Request([5, 2**40], 2)) == []


def test_namespaces_differ_in_their_first_entry() -> None:
    prefixes = RequestPrefixes()
    plain, tenant = Request([5, 6, 7], 3), Request([5, 6, 7], 3, extra_key="a")
    same, salted = Request([5, 6, 8], 3, extra_key="a"), Request([5, 6, 7], 3, cache_salt="a")
    other_token = Request([9, 6, 7], 3, extra_key="a")
    firsts = [entries(prefixes, one)[0] for one in (plain, tenant, salted, other_token)]
    assert len(set(firsts)) == 4
    assert firsts[0] == 5
    assert max(firsts[1:]) < 0
    assert entries(prefixes, same)[:2] == entries(prefixes, tenant)[:2]


def test_a_namespace_is_forgotten_with_its_last_request() -> None:
    prefixes = RequestPrefixes()
    for number in range(50):
        prefixes.entries(Request([5], 1, cache_salt=str(number)))
    gc.collect()
    assert len(prefixes._spaces) == 0


def test_names_change_with_what_is_shared_and_are_never_used_again() -> None:
    prefixes = RequestPrefixes()
    one, two = Request([1], 0), Request([1], 0)
    before = prefixes.names([one, two])
    assert len(set(before)) == 2
    assert prefixes.names([one, two]) == before
    one.kv.cache_protected_len = 1
    two.retraction_count = 1
    after = prefixes.names([one, two])
    assert not set(after) & set(before)
    seen = set(before) | set(after)
    for _ in range(50):  # objects at the addresses of others that have gone
        (name,) = prefixes.names([Request([1], 0)])
        assert name not in seen
        seen.add(name)


def test_a_batch_is_known_by_its_list_of_ids_or_by_its_new_slots() -> None:
    requests, rids, slots = [Request([1], 0), Request([2], 0)], ["a", "b"], object()
    made = SimpleNamespace(rids=rids, out_cache_loc=slots)
    batch_requests.note(SimpleNamespace(reqs=requests), made)
    requests.append(Request([3], 0))  # SGLang changes its list for the next step
    copy = SimpleNamespace(rids=rids, out_cache_loc=object())
    view = SimpleNamespace(out_cache_loc=slots)
    for known in (made, copy, view):
        assert batch_requests.noted(known) == tuple(requests[:2])
    other = SimpleNamespace(rids=list(rids), out_cache_loc=object())
    assert batch_requests.noted(other) is None
    nothing = SimpleNamespace(rids=None, out_cache_loc=None)
    batch_requests.note(SimpleNamespace(reqs=[]), nothing)
    assert batch_requests.noted(nothing) is None
