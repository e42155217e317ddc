"""Fault drills: real workers and a real coordinator, broken on purpose, with requests in flight.

Runs in the process that owns them (`launch/bench/drills.py`, tests). What a drill breaks is in
`faults`, what callers ask and what they must get in `callers`.
"""
