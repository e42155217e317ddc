"""Facts and arithmetic: requests, workers, deadlines, errors.

Nothing here knows a clock, randomness, I/O or an engine; instants come in as arguments.
"""
