"""How right SQL is: questions with gold SQL, predictions, and figures made of their results.

Runs in the command line's process, SQL in the sandbox. Who writes the SQL is a `Predictor`; the
agent is one of them.
"""
