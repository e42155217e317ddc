"""The process that runs model-written SQL: hostile input, so it may be killed at any time.

Started by `sandbox.py` as `python -I -m hexgen_sglang.text2sql.executor DIALECT`. One module
for each kind of database decides what a statement may do there; how long it may take is
enforced by the database, by an alarm that ends this process, and from outside.
"""
