"""The page `/dashboard` of a coordinator: its workers and workflows now, and why one was late.

Runs in the coordinator's process, as routes beside its own; `routes.dashboard_page` makes them.
It shows what the coordinator knows and changes nothing.
"""
