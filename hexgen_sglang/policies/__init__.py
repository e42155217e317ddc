"""Decisions, pure: which request goes first, which worker takes it, how long things take.

No clock, randomness, I/O or engine here. The coordinator, the plugin and the simulator call
the same objects. A smaller sort key goes first, everywhere.
"""
