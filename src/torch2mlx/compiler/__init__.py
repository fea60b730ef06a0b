"""Any `nn.Module` as readable MLX code: export → graph → passes → source."""
