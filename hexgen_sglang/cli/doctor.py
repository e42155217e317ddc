"""`hexgen-sglang doctor`: does the installed SGLang have what the plugin hooks and relies on?"""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from hexgen_sglang.core.errors import CompatibilityError


def command(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    source: Annotated[
        Path | None,
        typer.Option(help="Read this SGLang source folder (the package `sglang`) instead."),
    ] = None,
    read_only: Annotated[
        bool,
        typer.Option("--read-only", help="Read the sources only; do not apply the hooks."),
    ] = False,
) -> None:
    """Check every hook of the plugin, and everything else in SGLang that it relies on.

    The sources are read, and then the hooks are applied in this process as a server would
    apply them (SGLang is imported: 10 to 30 seconds). No server is started. Exit status 0: all
    is well; 1: something is missing, and is named.
    """
    try:
        report = _examine(source, apply=source is None and not read_only)
    except CompatibilityError as error:
        report = {"sglang": None, "hooks": [], "relies_on": [], "ok": False, "error": str(error)}
    if json:
        print(json_module.dumps(report, indent=2))
    else:
        _print_tables(report)
    raise typer.Exit(0 if report["ok"] else 1)


def _examine(source: Path | None, *, apply: bool) -> dict[str, Any]:
    from hexgen_patches.manifest import FACTS, HOOKS
    from hexgen_sglang.plugin import entry, self_check, surface

    tree = surface.installed_tree() if source is None else surface.SourceTree(source)
    problems = {hook.target: tree.hook(hook).problem for hook in HOOKS}
    if apply:
        entry.apply_hooks(HOOKS)
        for hook in HOOKS:
            problems[hook.target] = problems[hook.target] or self_check.status_of(hook).problem
    hooks = [
        {
            "target": hook.target,
            "ok": problems[hook.target] is None,
            "kind": hook.kind,
            "needs": sorted(hook.needs),
            "why": hook.why,
            "problem": problems[hook.target],
        }
        for hook in HOOKS
    ]
    findings = [(tree.fact(fact), fact.why) for fact in FACTS]
    relies_on = [
        {"what": finding.subject, "ok": finding.ok, "why": why, "problem": finding.problem}
        for finding, why in findings
    ]
    return {
        "sglang": self_check.sglang_version() if source is None else str(source),
        "hooks": hooks,
        "relies_on": relies_on,
        "applied": apply,
        "ok": all(row["ok"] for row in (*hooks, *relies_on)),
    }


def _print_tables(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(soft_wrap=True)
    if "error" in report:
        console.print(report["error"], markup=False)
        return
    table = Table(Column("hook", overflow="fold"), "kind", "ok", "why")
    for row in report["hooks"]:
        shown = ".".join(part for part in row["target"].split(".")[-2:])
        table.add_row(shown, row["kind"], "yes" if row["ok"] else "NO", row["why"])
    console.print(f"SGLang {report['sglang']}", markup=False)
    console.print(table)
    held = sum(row["ok"] for row in report["relies_on"])
    console.print(f"other things relied on: {held} of {len(report['relies_on'])} hold")
    for row in (*report["hooks"], *report["relies_on"]):
        if not row["ok"]:
            name = row.get("target") or row["what"]
            console.print(f"broken: {name}: {row['problem']} (for: {row['why']})", markup=False)
