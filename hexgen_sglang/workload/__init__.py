"""Workloads: traces of workflows, their prompts, arrivals and deadlines.

Pure and without a clock: the same seed gives the same arrivals, prompts and deadlines to the
bench on emulated or real workers and to the simulator. Replaying them is `bench/`.
"""
