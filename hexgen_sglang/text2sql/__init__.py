"""The reference agent: questions in English, answered by SQL that is run on a database.

`program.py` needs SGLang's frontend and is imported on its own; everything else here runs
without SGLang and torch.
"""
