"""Kernels of hexgen-sglang, one package for each operation."""
