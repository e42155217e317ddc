"""Hooks into SGLang: one module for each class that is hooked, and a manifest of them all.

Each hook is a few lines that call into `hexgen_sglang.plugin`; they run in SGLang's processes.
"""
