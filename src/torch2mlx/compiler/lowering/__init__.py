"""ATen operators in terms of MLX, one file per family, one registry."""
