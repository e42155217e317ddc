"""The demo: two workers, a coordinator and a dozen questions at once, shown and recorded.

Runs in the command line's process. What the demo measures is told by the coordinator; nothing
here schedules, serves or writes SQL.
"""
