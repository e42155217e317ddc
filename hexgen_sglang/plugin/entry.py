"""Where SGLang finds the plugin (entry point `sglang.srt.plugins`), and where hooks go in.

SGLang calls `register` in several processes: the launching one before it parses its command
line, and each child that it spawns. Nothing is opened here.
"""

from __future__ import annotations

import argparse
import multiprocessing
import pkgutil
import sys
from collections.abc import Iterable
from pathlib import Path

from hexgen_patches.declarations import Hook, Need
from hexgen_patches.manifest import hooks_for
from hexgen_sglang.plugin import flags, self_check
from hexgen_sglang.plugin.attention import registration as attention
from hexgen_sglang.plugin.config import PluginConfig, forget_exported
from hexgen_sglang.plugin.emulation import launch
from hexgen_sglang.plugin.emulation.profile_file import load_profile


def register() -> None:
    """Register the hooks that this process needs; SGLang applies them afterwards.

    The launching process gets the two of the flags, which change nothing while no flag of
    ours is used. A spawned process finds the settings in its environment and gets the hooks
    of the classes that it has loaded. Settings in the environment of a launching process are
    another server's and do not count.
    """
    register_hooks(hooks_for(frozenset({Need.ALWAYS})))
    if multiprocessing.parent_process() is None:
        return
    config = PluginConfig.from_environment()
    if config is not None:
        hooks = hooks_for(needs_of(config))
        register_hooks(hook for hook in hooks if hook.module in sys.modules)
        if config.shared_prefix:
            attention.register_in_scheduler()


def prepare_launch(args: argparse.Namespace) -> None:
    """Apply what the parsed command line asks of us, before SGLang reads it.

    Exports the settings for the child processes (or removes what an environment brought
    along), applies the hooks in this process as well, and verifies them.

    Raises:
        ConfigError: a flag of ours is wrong.
        CompatibilityError: a hook is not in place; names target and SGLang version.
    """
    forget_exported()
    config = flags.config_from(args)
    if config is None:
        return
    if config.emulate is not None:
        launch.prepare(args, load_profile(Path(config.emulate)))
    if config.shared_prefix:
        attention.name_the_engines(args)
    config.export()
    apply_hooks(hooks_for(needs_of(config)))
    self_check.require(hooks_for(needs_of(config)))


def needs_of(config: PluginConfig) -> frozenset[Need]:
    """Which parts of the plugin these settings ask for."""
    needs = {Need.ALWAYS}
    if config.ordering is not None:
        needs.add(Need.ORDERING)
    if config.coordinators:
        needs.add(Need.LINK)
    if config.emulate is not None:
        needs.add(Need.EMULATE)
    if config.shared_prefix and attention.engine_backend() == attention.TRITON:
        needs.add(Need.PREFIX_GROUPS)
    return frozenset(needs)


def apply_hooks(hooks: Iterable[Hook]) -> None:
    """Register hooks and put them in at once; imports the SGLang modules that they are in."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    register_hooks(hooks)
    HookRegistry.apply_hooks()


def register_hooks(hooks: Iterable[Hook]) -> None:
    """Register each hook once. A target that cannot be hooked shows in the self-check."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookSource, HookType

    source = HookSource(plugin_name="hexgen", dist_name="hexgen-sglang")
    for hook in hooks:
        if not self_check.is_registered(hook):
            ours = pkgutil.resolve_name(hook.ours)
            HookRegistry.register(hook.target, ours, HookType[hook.kind], source=source)
