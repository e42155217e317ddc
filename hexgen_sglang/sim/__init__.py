"""The simulator: unequal workers on a virtual clock, under the live policies.

One process, one thread, no sockets and no waiting. A worker is a model of SGLang's scheduler
(`engine`, `prefix_cache`, `queue_order`); in front of it stands the coordinator's own code, or
a model of another dispatcher (`fronts`). `run.simulate` gives the same records as the bench
gives for real SGLang schedulers on emulated accelerators.

True output lengths are known to the engines alone, who need them to end a request; nothing in
front of an engine sees them before the request has ended.
"""
