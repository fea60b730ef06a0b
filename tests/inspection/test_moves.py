"""The tensors of a layer with experts, before and after."""

from __future__ import annotations

from torch2mlx.inspection.moves import moved_experts
from torch2mlx.sources import open_checkpoint


def test_the_drawing_shows_a_layer_before_and_after(checkpoint):
    assert moved_experts(open_checkpoint(checkpoint("mixtral", "bfloat16"))) == (
        "model.layers.0 in the checkpoint:",
        "  block_sparse_moe.experts.0-3.w1.weight  4 × [256, 128] BF16",
        "  block_sparse_moe.experts.0-3.w2.weight  4 × [128, 256] BF16",
        "  block_sparse_moe.experts.0-3.w3.weight  4 × [256, 128] BF16",
        "  block_sparse_moe.gate.weight  [4, 128] BF16",
        "model.layers.0 in MLX:",
        "  block_sparse_moe.gate.weight  [4, 128] BF16",
        "  block_sparse_moe.switch_mlp.gate_proj.weight  [4, 256, 128] BF16",
        "  block_sparse_moe.switch_mlp.up_proj.weight  [4, 256, 128] BF16",
        "  block_sparse_moe.switch_mlp.down_proj.weight  [4, 128, 256] BF16",
    )
    assert moved_experts(open_checkpoint(checkpoint("llama", "bfloat16"))) == ()
