"""Functions that MLX lacks; a generated model gets a copy of those that it uses, and only those."""
