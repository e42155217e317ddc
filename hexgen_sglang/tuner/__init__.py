"""Search over settings of systems and over mixes of workers, by simulation.

Offline (`hexgen-sglang tune`, `hexgen-sglang plan`) and beside a running coordinator. Works
above the simulator; owns no policy and changes nothing by itself.
"""
