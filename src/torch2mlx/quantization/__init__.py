"""Quantization into MLX's formats.

scheme: the format; kernel: the bytes; targets: the modules; recipe: which module gets which
format; measure: what the written files really hold.
"""
