"""The live front of a cluster: HTTP in, a central queue, and workers behind.

One process, one event loop. Decisions are made by `policies`; what runs inside SGLang is in
`plugin`. See README.md beside this file for the way of a request.
"""
