"""What the coordinator's pages share: how their files are served, and their common scripts.

Runs in the coordinator's process. A page is a folder of files that the browser loads as they are:
no build step, nothing from other addresses.
"""
