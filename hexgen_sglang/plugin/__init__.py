"""Our side inside SGLang's processes: flags, ordering of the queue, telemetry, self-check.

Only here and in `hexgen_patches` may `sglang.srt` be imported. Decisions belong to `policies`,
sockets to `transport`.
"""
