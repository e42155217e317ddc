"""Workers and a coordinator as processes of one machine: started, watched, stopped together.

Runs in the process that owns them (the demo, a test session, `hexgen-sglang cluster`). What a
worker or a coordinator does inside its own process does not belong here.
"""
