"""Models that need no download beyond the package registry: a tiny random one and SmolLM2.

Runs in the command line, the demo and the tests, before any server starts. Both are written as
Hugging Face folders into the user's cache. Nothing here serves or evaluates a model.
"""
