"""Hooks into SGLang: one module for each class that is hooked, and a manifest of them all."""
