"""The comparison bench: systems side by side on one workload, measured, judged and reported.

Runs in the process of `hexgen-sglang bench`, which owns every worker and dispatcher that it
starts. What a workload is stands in `workload/`; starting processes in `cluster/`.
"""
