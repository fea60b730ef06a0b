"""The parity gate: proof that a converted model equals its PyTorch original."""
