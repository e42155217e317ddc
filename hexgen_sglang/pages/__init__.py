"""What the coordinator's pages share: how files are served, and scripts, styles and head.

Runs in the coordinator's process. A page is a folder of files that the browser loads as they are:
no build step, nothing from other addresses.
"""
