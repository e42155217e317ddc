"""What a workflow of a type still needs: its stages as an absorbing Markov chain, learned online.

A state is a stage and how often it was entered, so that loops are bounded as they are in truth:
"revise for the third time" is another state than "for the first". Where such a state was seen
seldom, the stage alone, whichever time it is, is asked as well. Ended workflows only are learned
from: the paths of those end, so that every state leads to an end, and the chain can be solved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hexgen_sglang.policies.estimators.averages import BoundedTable

State = tuple[str, int]  # stage, and the number of the visit, from 1; 0: any
_END: State = ("", -1)
_START: State = ("", -2)
# Visits of one stage that are told apart; the later ones are alike.
MAX_ROUNDS = 12
# States of one type; further ones are not entered. Solving takes their third power.
MAX_STATES = 64
# A state speaks for itself as much as its stage does after so many visits.
_ENOUGH = 2.0
# Paths between two solutions: a share of those known, within these bounds.
_SOLVE_EVERY = (4, 32)
_HEAVY = 1e100
MAX_REQUESTS = 10_000.0
MAX_TOKENS = 1e9
MAX_SECONDS = 1e6


@dataclass(frozen=True, slots=True)
class Step:
    """One visit of a stage by a workflow that has ended.

    Attributes:
        stage: name.
        num_requests, num_tokens: made in it, at least 0.
        service_s: that it took, without waiting in a queue of ours; at least 0.
        gap_s: from its end to the next step (tool time), at least 0; of the last step unused.
    """

    stage: str
    num_requests: float
    num_tokens: float
    service_s: float
    gap_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Remaining:
    """Expected, from the end of a visit on: requests, their output tokens, and seconds."""

    num_requests: float
    num_tokens: float
    seconds: float


@dataclass(slots=True)
class _Sums:
    """Weighted sums over visits of one state."""

    visits: float = 0.0
    requests: float = 0.0
    tokens: float = 0.0
    service_s: float = 0.0


@dataclass(slots=True)
class _Edge:
    """Weighted sums over moves from one state to another."""

    moves: float = 0.0
    gap_s: float = 0.0


@dataclass(slots=True)
class _Graph:
    """The states of one resolution, with the solution as of some paths ago."""

    sums: dict[State, _Sums] = field(default_factory=dict)
    edges: dict[State, dict[State, _Edge]] = field(default_factory=dict)
    solved: dict[State, Remaining] = field(default_factory=dict)
    num_paths: int = 0
    solved_at: int = 0

    def note(self, path: Sequence[tuple[State, Step]], weight: float) -> None:
        """Enter the path of an ended workflow; new states beyond the bound are skipped."""
        path = [row for row in path if row[0] in self.sums or self._enter(row[0])]
        source, gap_s = _START, 0.0
        for state, step in path:
            sums = self.sums[state]
            sums.visits += weight
            sums.requests += weight * step.num_requests
            sums.tokens += weight * step.num_tokens
            sums.service_s += weight * step.service_s
            self._move(source, state, weight, gap_s)
            source, gap_s = state, step.gap_s
        self._move(source, _END, weight, 0.0)
        self.num_paths += 1

    def remaining(self, state: State) -> Remaining | None:
        """As of the last time that it was worth solving; None for a state never seen."""
        fewest, most = _SOLVE_EVERY
        pause = min(most, max(fewest, self.solved_at // 8))
        due = self.solved_at == 0 or self.num_paths - self.solved_at >= pause
        if due or (state in self.sums and state not in self.solved):
            self.solved = solve(self.edges, self.sums)
            self.solved_at = self.num_paths
        return self.solved.get(state)

    def lighten(self, by: float) -> None:
        """Divide every weight, so that none overflows; what became nothing is forgotten."""
        for sums in self.sums.values():
            sums.visits /= by
            sums.requests /= by
            sums.tokens /= by
            sums.service_s /= by
        for targets in self.edges.values():
            for edge in targets.values():
                edge.moves /= by
                edge.gap_s /= by
        # A path is forgotten as a whole: all that it entered last has its weight or less.
        for state in [state for state, sums in self.sums.items() if sums.visits < 1e-90]:
            del self.sums[state]
            self.edges.pop(state, None)
            for targets in self.edges.values():
                targets.pop(state, None)

    def _enter(self, state: State) -> bool:
        if len(self.sums) >= MAX_STATES:
            return False
        self.sums[state] = _Sums()
        return True

    def _move(self, source: State, target: State, weight: float, gap_s: float) -> None:
        edge = self.edges.setdefault(source, {}).setdefault(target, _Edge())
        edge.moves += weight
        edge.gap_s += weight * gap_s


class _TypeChain:
    """The chain of one workflow type, with and without counting visits."""

    def __init__(self) -> None:
        self.by_round = _Graph()
        self.by_stage = _Graph()
        self.weight = 1.0


class StageChains:
    """Chains by workflow type.

    Args:
        keep: share of the old weight kept at each path, in (0, 1].
        max_types: remembered; the longest unused goes first.
    """

    def __init__(self, keep: float = 0.98, max_types: int = 256) -> None:
        self._keep = keep
        self._types: BoundedTable[str, _TypeChain] = BoundedTable(_TypeChain, max_types)

    def note(self, workflow_type: str, steps: Sequence[Step]) -> None:
        """A workflow has ended; its steps by start. None is no path."""
        if not steps:
            return
        chain = self._types.at(workflow_type)
        chain.by_round.note(list(_by_round(steps)), chain.weight)
        chain.by_stage.note([((step.stage, 0), step) for step in steps], chain.weight)
        chain.weight /= self._keep
        if chain.weight > _HEAVY:
            for graph in (chain.by_round, chain.by_stage):
                graph.lighten(_HEAVY)
            chain.weight /= _HEAVY

    def remaining(self, workflow_type: str, stage: str, visit: int = 1) -> Remaining | None:
        """What a workflow needs after its `visit`-th visit (from 1) of the stage has ended.

        None for a stage that no ended workflow of the type has passed. Bounded by MAX_REQUESTS,
        MAX_TOKENS and MAX_SECONDS.
        """
        chain = self._types.get(workflow_type)
        general = None if chain is None else chain.by_stage.remaining((stage, 0))
        if chain is None or general is None:
            return None
        state = (stage, min(max(1, visit), MAX_ROUNDS))
        special = chain.by_round.remaining(state)
        sums = chain.by_round.sums.get(state)
        if special is None or sums is None:
            return general
        seen = sums.visits / chain.weight
        share = seen / (seen + _ENOUGH)
        return _bounded(
            share * mine + (1 - share) * other
            for mine, other in (
                (special.num_requests, general.num_requests),
                (special.num_tokens, general.num_tokens),
                (special.seconds, general.seconds),
            )
        )

    def total(self, workflow_type: str) -> Remaining | None:
        """What a whole workflow of the type needs; None before one has ended."""
        chain = self._types.get(workflow_type)
        return None if chain is None else chain.by_stage.remaining(_START)

    def gap_s(self, workflow_type: str, stage: str) -> float | None:
        """Mean tool time behind the stage, over those visits that another stage followed."""
        chain = self._types.get(workflow_type)
        targets = {} if chain is None else chain.by_stage.edges.get((stage, 0), {})
        edges = [edge for target, edge in targets.items() if target != _END]
        moves = sum(edge.moves for edge in edges)
        return sum(edge.gap_s for edge in edges) / moves if moves > 0 else None


def solve(
    edges: dict[State, dict[State, _Edge]], sums: dict[State, _Sums]
) -> dict[State, Remaining]:
    """Expected rewards from each state to the end of an absorbing chain.

    x_i = sum over j of P_ij x (gap_ij + own_j + x_j), the end being 0; x of the start is what a
    whole workflow needs. Every state must lead to the end. Eliminated state by state, without
    subtraction of what is nearly equal: what leaves a state is the sum of its moves to others,
    not 1 minus its moves to itself (Grassmann, Taksar and Heyman).
    """
    order = [_START, *sums]
    moves: dict[State, dict[State, float]] = {}
    gains: dict[State, list[float]] = {}
    for state in order:
        targets = edges.get(state, {})
        total = sum(edge.moves for edge in targets.values())
        if total <= 0:
            moves[state], gains[state] = {_END: 1.0}, [0.0, 0.0, 0.0]
            continue
        moves[state] = {target: edge.moves / total for target, edge in targets.items()}
        gains[state] = _gains(targets, sums, total)
    for at, state in enumerate(order):
        _leave(moves[state], gains[state], state)
        for other in order[at + 1 :]:
            _bypass(moves, gains, other, state)
    found: dict[State, list[float]] = {_END: [0.0, 0.0, 0.0]}
    for state in reversed(order):
        rows = [(share, found[target]) for target, share in moves[state].items()]
        found[state] = [
            own + sum(share * row[k] for share, row in rows) for k, own in enumerate(gains[state])
        ]
    return {state: _bounded(found[state]) for state in order}


def _bounded(work: Iterable[float]) -> Remaining:
    """Requests, tokens and seconds, each within its bound."""
    requests, tokens, seconds = work
    return Remaining(
        min(requests, MAX_REQUESTS), min(tokens, MAX_TOKENS), min(seconds, MAX_SECONDS)
    )


def _gains(targets: dict[State, _Edge], sums: dict[State, _Sums], total: float) -> list[float]:
    """Expected requests, tokens and seconds of the next step, its gap before it included."""
    gains = [0.0, 0.0, 0.0]
    for target, edge in targets.items():
        gains[2] += edge.gap_s / total
        own = sums.get(target)
        if own is not None and own.visits > 0:
            share = edge.moves / total / own.visits
            gains[0] += share * own.requests
            gains[1] += share * own.tokens
            gains[2] += share * own.service_s
    return gains


def _leave(moves: dict[State, float], gains: list[float], state: State) -> None:
    """Take the moves of a state to itself out: what it gains there, it gains that often."""
    moves.pop(state, None)
    rest = sum(moves.values())
    if rest <= 0:
        moves[_END] = rest = 1.0
    for target in moves:
        moves[target] /= rest
    for k in range(3):
        gains[k] /= rest


def _bypass(
    moves: dict[State, dict[State, float]],
    gains: dict[State, list[float]],
    other: State,
    gone: State,
) -> None:
    """Replace a state's moves to one that is done with by where that one leads."""
    share = moves[other].pop(gone, 0.0)
    if share <= 0:
        return
    for target, part in moves[gone].items():
        moves[other][target] = moves[other].get(target, 0.0) + share * part
    for k in range(3):
        gains[other][k] += share * gains[gone][k]


def _by_round(steps: Iterable[Step]) -> Iterable[tuple[State, Step]]:
    """Each step with its stage and which visit of it this is."""
    seen: dict[str, int] = {}
    for step in steps:
        seen[step.stage] = seen.get(step.stage, 0) + 1
        yield (step.stage, min(seen[step.stage], MAX_ROUNDS)), step
