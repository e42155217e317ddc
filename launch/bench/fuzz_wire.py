"""Fuzz the decoder of the ZMQ link with structured mutations, and say what came of it.

    .venv/bin/python launch/bench/fuzz_wire.py --inputs 1000000 --json FILE

Starts from valid messages of every type, made from the types' own declarations, so that a new
message is fuzzed without a change here. Mutations are of bytes (flips, cuts, insertions,
splices, lengths of msgpack that lie) and of structure (a field missing, unknown, renamed, of
another type, at and beyond its bounds, deeply nested, another message's). Each input is given
to both directions' decoders. The law: a valid message that survives being sent again, or a
`ProtocolError`; nothing else is raised, and no input takes long. Breaking inputs are written
to the report in hex, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from hexgen_sglang import __version__
from hexgen_sglang.core.errors import ProtocolError
from hexgen_sglang.protocol.codec import (
    MAX_MESSAGE_BYTES,
    LinkVersionError,
    decode_coordinator_message,
    decode_worker_message,
    encode,
)
from hexgen_sglang.protocol.messages import CoordinatorMessage, WorkerMessage

NAME_ALPHABET = "abcXYZ019._:/@+=-"
KINDS = (*WorkerMessage.__args__, *CoordinatorMessage.__args__)
SLOW_S = 0.25  # of CPU; a decoder bounded by 16 KiB needs microseconds
MAX_KEPT_FINDINGS = 20
# Heads of msgpack values whose lengths promise more than there is, and odd extension types.
LYING_HEADS = (
    b"\xdf\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xde\xff\xff",
    b"\xdc\xff\xff",
    b"\xd9\xff",
    b"\xc9\xff\xff\xff\xff\xff",
    b"\xd7\xff" + b"\xff" * 8,
    b"\xc7\x0c\xff" + b"\xff" * 12,
    b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + b"\x00" * 7,
    b"\xc1",
)
WRONG_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**40, 2**40 + 1, 2**63, 2**64 - 1, -(2**63)),
    *(0.0, -0.0, 1e308, float("nan"), float("inf"), -1e-9, 604_800_000.1),
    *("", " ", "a" * 64, "a" * 65, "a" * 513, "a" * 20_000, "\x00", "a\n", "\u2028", "\U0001f600"),
    *("http://", "file:///etc/passwd", "-1", "1e9", b"", b"\xff" * 40, [], {}, [[]], {"a": {}}),
    *([0] * 200, {str(number): number for number in range(100)}),
)


class ValidMessages:
    """Makes valid messages of every type from the declarations of their fields."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._fields = {kind: inspect.type_info(kind).fields for kind in KINDS}  # type: ignore[attr-defined]

    def make(self) -> Any:
        """One message; every type comes up equally often."""
        kind = self._chance.choice(KINDS)
        while True:
            values = {row.name: self._value(row.type) for row in self._fields[kind]}
            try:
                return kind(**values)
            except ValueError:  # fields that exclude each other
                continue

    def _value(self, kind: inspect.Type) -> Any:
        chance = self._chance
        match kind:
            case inspect.Metadata():
                return self._value(kind.type)
            case inspect.StrType():
                least, most = kind.min_length or 0, kind.max_length or 40
                if kind.pattern is not None and "http" in kind.pattern:
                    return f"http://h{chance.randrange(9)}:{chance.randrange(65_536)}"
                length = chance.choice((least, most, chance.randint(least, min(most, 40))))
                return "".join(chance.choices(NAME_ALPHABET, k=length))
            case inspect.BytesType():
                least, most = kind.min_length or 0, kind.max_length or 40
                return chance.randbytes(chance.choice((least, most, min(most, 40))))
            case inspect.IntType():
                least, most = kind.ge or 0, kind.le if kind.le is not None else 2**31
                return chance.choice((least, most, chance.randint(least, most)))
            case inspect.FloatType():
                least_s, most_s = kind.ge or 0.0, kind.le if kind.le is not None else 1e9
                return chance.choice((least_s, most_s, chance.uniform(least_s, most_s)))
            case inspect.BoolType():
                return chance.random() < 0.5
            case inspect.NoneType():
                return None
            case inspect.UnionType():
                return self._value(chance.choice(kind.types))
            case inspect.DictType():
                length = chance.randint(kind.min_length or 0, min(kind.max_length or 8, 8))
                pairs = ((kind.key_type, kind.value_type) for _ in range(length))
                return {self._value(key): self._value(value) for key, value in pairs}
            case inspect.ListType() | inspect.VarTupleType():
                length = chance.randint(kind.min_length or 0, min(kind.max_length or 8, 8))
                return [self._value(kind.item_type) for _ in range(length)]
            case inspect.TupleType():
                return [self._value(item) for item in kind.item_types]
            case inspect.StructType():
                return {row.encode_name: self._value(row.type) for row in kind.fields}
            case inspect.LiteralType():
                return chance.choice(kind.values)
        raise TypeError(f"{kind}: not known here; say above how a valid one is made")


class Mutator:
    """Turns valid messages into hostile bytes."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._valid = ValidMessages(self._chance)
        names = {row.name for kind in KINDS for row in msgspec.structs.fields(kind)}
        self._names = sorted(names)
        self._tags = [kind.__struct_config__.tag for kind in KINDS]

    def make(self) -> bytes:
        """The next input."""
        chance = self._chance
        message = self._valid.make()
        way = chance.random()
        if way < 0.05:
            return encode(message)
        if way < 0.5:
            return self._with_wrong_bytes(bytearray(encode(message)))
        plain = self._with_wrong_structure(msgspec.to_builtins(message))
        data = msgspec.msgpack.encode(plain)
        return self._with_wrong_bytes(bytearray(data)) if way > 0.95 else data

    def _with_wrong_structure(self, plain: dict[str, Any]) -> Any:
        chance = self._chance
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            name = chance.choice(sorted(plain)) if plain else "type"
            match chance.randrange(8):
                case 0:
                    plain.pop(name, None)
                case 1:
                    plain[chance.choice(self._names)] = chance.choice(WRONG_VALUES)
                case 2:
                    plain[name.upper()] = plain.pop(name, None)
                case 3:
                    plain["type"] = chance.choice(self._tags)
                case 4:
                    plain[name] = self._nested(chance.choice((3, 50, 2_000)))
                case 5:
                    other = msgspec.to_builtins(self._valid.make())
                    plain = {**plain, **other} if chance.random() < 0.5 else {**other, **plain}
                case _:
                    plain[name] = chance.choice(WRONG_VALUES)
        return [plain] if chance.random() < 0.02 else plain

    def _nested(self, depth: int) -> Any:
        """Lists in lists; as bytes they decode, and they are cheap to make."""
        return msgspec.Raw(b"\x91" * depth + b"\xc0")

    def _with_wrong_bytes(self, data: bytearray) -> bytes:
        chance = self._chance
        for _ in range(chance.choice((1, 1, 2, 4))):
            at = chance.randrange(len(data) + 1)
            match chance.randrange(6):
                case 0 if at < len(data):
                    data[at] ^= 1 << chance.randrange(8)
                case 1:
                    del data[at : at + chance.randint(1, 8)]
                case 2:
                    data[at:at] = chance.randbytes(chance.randint(1, 8))
                case 3:
                    data[at:] = encode(self._valid.make())[chance.randrange(12) :]
                case 4:
                    data[at : at + chance.randrange(6)] = chance.choice(LYING_HEADS)
                case _:
                    data *= chance.choice((1, 2, 2, 40))
            del data[2 * MAX_MESSAGE_BYTES :]
        return bytes(data)


@dataclass
class Tally:
    """What came of the inputs."""

    num_inputs: int = 0
    num_messages: int = 0
    num_refused: int = 0
    num_version_errors: int = 0
    slowest_s: float = 0.0
    accepted: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, str]] = field(default_factory=list)
    num_findings: int = 0

    def judge(self, data: bytes) -> None:
        """Decode one input both ways, and hold it to the law."""
        self.num_inputs += 1
        started_s = time.thread_time()
        for decode in (decode_worker_message, decode_coordinator_message):
            try:
                message = decode(data)
            except LinkVersionError:
                self.num_version_errors += 1
            except ProtocolError:
                self.num_refused += 1
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                self._found(data, f"{decode.__name__} raised {type(error).__name__}: {error}")
            else:
                self.num_messages += 1
                self.accepted[type(message).__name__] += 1
                try:
                    again = encode(message)
                    if encode(decode(again)) != again:
                        self._found(data, f"{type(message).__name__} changes when sent again")
                except ProtocolError as error:
                    self._found(data, f"{type(message).__name__} cannot be sent again: {error}")
        took_s = time.thread_time() - started_s
        self.slowest_s = max(self.slowest_s, took_s)
        if took_s > SLOW_S:
            self._found(data, f"took {took_s:.3f} s of CPU")

    def _found(self, data: bytes, what: str) -> None:
        self.num_findings += 1
        if len(self.findings) < MAX_KEPT_FINDINGS:
            self.findings.append({"what": what[:300], "input": data.hex()[:8_192]})


def fuzz(num_inputs: int, seed: int, max_s: float) -> Tally:
    """Give so many inputs to the decoders, or as many as fit into `max_s` seconds."""
    mutator, tally = Mutator(seed), Tally()
    end_s = time.monotonic() + max_s
    while tally.num_inputs < num_inputs and time.monotonic() < end_s:
        for _ in range(min(1_000, num_inputs - tally.num_inputs)):
            tally.judge(mutator.make())
    return tally


def main() -> int:
    """Fuzz, print and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=86_400.0, help="stop after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started_s, cpu_s = time.monotonic(), time.process_time()
    tally = fuzz(options.inputs, options.seed, options.seconds)
    report = {
        "num_inputs": tally.num_inputs,
        "num_accepted": tally.num_messages,
        "num_refused": tally.num_refused,
        "num_version_errors": tally.num_version_errors,
        "accepted": dict(sorted(tally.accepted.items())),
        "slowest_cpu_s": tally.slowest_s,
        "rss_growth_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib,
        "num_findings": tally.num_findings,
        "findings": tally.findings,
        "seed": options.seed,
        "wall_s": time.monotonic() - started_s,
        "cpu_s": time.process_time() - cpu_s,
        "hexgen_sglang": __version__,
        "python": platform.python_version(),
        "msgspec": msgspec.__version__,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 1 if tally.num_findings else 0


if __name__ == "__main__":
    sys.exit(main())
