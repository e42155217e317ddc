"""Parts of the documentation that are made from the code: a hook of mkdocs.

A line `<!-- generated: NAME -->` in a page is replaced by what the function `NAME` here returns.
Runs in `mkdocs build`; imports hexgen_sglang, but nothing of SGLang.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from typing import Any

import msgspec
import typer

from hexgen_sglang.cli.main import COMMANDS
from hexgen_sglang.cluster.config import ClusterTable, RayNeeds, WorkerRow
from hexgen_sglang.coordinator.config import CoordinatorConfig, PeerConfig, WorkerConfig
from hexgen_sglang.coordinator.limits import TenantLimits
from hexgen_sglang.coordinator.tuning_config import TuningConfig
from hexgen_sglang.plugin.flags import FLAGS
from hexgen_sglang.policies.dispatch import DISPATCH
from hexgen_sglang.policies.ordering import ORDERING
from hexgen_sglang.protocol.tag import WorkflowTag

_MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
# An entry of `Attributes:`: one name or several, a colon, text that may go on below.
_ENTRY = re.compile(r"^ {4}(?P<names>\w+(?:, \w+)*): (?P<text>.*(?:\n {6,}.*)*)", re.MULTILINE)
_HEADINGS = ("Rule", "When to choose it", "Reads (and how fresh)", "Cost", "Trade-offs")
_HEADING = re.compile(rf"^({'|'.join(map(re.escape, _HEADINGS))}): ", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return _MARK.sub(lambda match: globals()[match[1]](), markdown)


def dispatch_policies() -> str:
    """Every registered dispatch policy with its headings."""
    return _policies(DISPATCH)


def ordering_policies() -> str:
    """Every registered ordering policy with its headings."""
    return _policies(ORDERING)


def coordinator_fields() -> str:
    """The table `[coordinator]`."""
    return _fields(CoordinatorConfig)


def worker_fields() -> str:
    """The coordinator's rows `[[workers]]`."""
    return _fields(WorkerConfig)


def peer_fields() -> str:
    """The rows `[[peers]]`."""
    return _fields(PeerConfig)


def limits_fields() -> str:
    """The tables `[limits]` and `[tenants.NAME]`."""
    return _fields(TenantLimits)


def tuning_fields() -> str:
    """The table `[coordinator.tuning]`."""
    return _fields(TuningConfig)


def cluster_fields() -> str:
    """The table `[cluster]` of a cluster file."""
    return _fields(ClusterTable)


def cluster_worker_fields() -> str:
    """The rows `[[workers]]` of a cluster file."""
    return _fields(WorkerRow)


def ray_fields() -> str:
    """The table `[workers.ray]` of a cluster file."""
    return _fields(RayNeeds)


def tag_fields() -> str:
    """The fields of the workflow tag."""
    return _fields(WorkflowTag)


def plugin_flags() -> str:
    """The flags that the plugin adds to `sglang.launch_server`."""
    rows = [f"| `{flag.name} {flag.metavar}` | {_cell(flag.help)} |" for flag in FLAGS]
    return "\n".join(["| flag | meaning |", "|---|---|", *rows])


def commands() -> str:
    """Every command with its options."""
    parts = []
    for name in sorted(COMMANDS):
        module, summary = COMMANDS[name]
        application = typer.Typer(add_completion=False)
        application.command(name)(importlib.import_module(module).command)
        options = typer.main.get_command(application).params
        parts += [f"## hexgen-sglang {name}", "", summary, "", "| option | meaning |", "|---|---|"]
        parts += [_option(option) for option in options if option.name != "help"]
        parts.append("")
    return "\n".join(parts)


def _option(option: Any) -> str:
    is_argument = option.param_type_name == "argument"
    shown = option.name.upper() if is_argument else ", ".join(option.opts)
    default = (
        "" if option.default in (None, False, ()) or callable(option.default) else option.default
    )
    default = getattr(default, "value", default)
    told = f" Default: `{default}`." if str(default) and not option.required else ""
    return f"| `{shown}` | {_cell(option.help or '')}{told} |"


def _policies(registry: Any) -> str:
    parts = []
    for name in registry:
        docstring = inspect.getdoc(sys.modules[type(registry.create(name)).__module__]) or ""
        title, _, body = docstring.partition("\n\n")
        parts += [f"### {name}", "", title, ""]
        _, *pieces = _HEADING.split(body)
        for heading, text in zip(pieces[::2], pieces[1::2], strict=True):
            # Indented lines define the terms of the rule; what goes on below them is theirs.
            listed = re.sub(r"^ {2}(?=\S)", "- ", text.rstrip(), flags=re.MULTILINE)
            parts += [f"**{heading}.** {listed}".replace("\n- ", "\n\n- "), ""]
    return "\n".join(parts)


def _fields(struct: type[msgspec.Struct]) -> str:
    """A table of a struct's fields, in the order of its docstring."""
    docstring = inspect.getdoc(struct) or ""
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    rows = []
    for match in _ENTRY.finditer(docstring.partition("Attributes:\n")[2]):
        names = match["names"].split(", ")
        rows += [_row(fields.pop(name), match["text"]) for name in names]
    if fields:
        raise ValueError(f"{struct.__name__}: not described: {', '.join(fields)}")
    return "\n".join(["| field | allowed | default | meaning |", "|---|---|---|---|", *rows])


def _row(field: Any, text: str) -> str:
    if field.required:
        default = "none; needed"
    elif field.default is msgspec.NODEFAULT or isinstance(field.default, msgspec.Struct):
        default = ""
    else:
        default = f"`{msgspec.json.encode(field.default).decode()}`"
    return f"| `{field.name}` | {_allowed(field.type)} | {default} | {_cell(text)} |"


def _allowed(kind: Any) -> str:
    """What values a field takes, in words."""
    schema = msgspec.json.schema(kind)
    options = [row for row in schema.get("anyOf", [schema]) if row.get("type") != "null"]
    return _cell(" or ".join(dict.fromkeys(_told(row) for row in options)))


def _told(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = str(schema.get("type", "table"))
    bounds = {"minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}"}
    bounds |= {"exclusiveMaximum": "below {}"}
    told = [text.format(f"{schema[key]:,}") for key, text in bounds.items() if key in schema]
    if "maxLength" in schema:
        told.append(f"up to {schema['maxLength']:,} characters")
    if kind == "array" and isinstance(schema.get("items"), dict):
        told.append(f"of {schema['items'].get('type', 'tables')}s")
    words = {"object": "table", "array": "list", "string": "text", "integer": "whole number"}
    return " ".join([words.get(kind, kind), *told])


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")
