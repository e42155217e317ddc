"""Measuring a live worker's steps, and fitting an accelerator profile to seconds.

Runs in the command line. What a profile means is `core.accelerator`.
"""
