"""What came of a run, and the figures made of it: the same for live, emulated and simulated runs.

Pure: records in, laws judged, figures, schema and tables out. No clock, no I/O.
"""
