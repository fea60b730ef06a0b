"""Quantization into MLX's formats: scheme (the format), kernel (the bytes), recipe (which
module gets which format) and measure (what the written files really hold).
"""
