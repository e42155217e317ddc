"""Decode attention that reads a prompt prefix once for all requests that share it.

`groups` finds who shares what, `forest` writes it down, `plan` cuts it into work for the GPU,
`decoder` runs the kernels of `triton_kernels`; `torch_grouped` computes the same on a CPU and
`naive` says what is right. Runs in SGLang's scheduler process. Nothing is imported here: Triton
must not be loaded where only the group finder is used.
"""
