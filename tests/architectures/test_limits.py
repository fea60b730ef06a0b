from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
from checkpoints import quiet_libraries
from zoo import CASES, REFUSED, Case

from torch2mlx.architectures.limits import known_limits, stated_limits

# The reasons that limits tell; the others are errors of their own.
TOLD = {
    name: reason
    for name, reason in REFUSED.items()
    if reason not in {"does not fit", "ai2-olmo", "no port", "MiniMax-Text-01"}
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_limits_are_told_from_the_config_alone(case: Case) -> None:
    import transformers

    quiet_libraries()
    config_class = transformers.models.auto.CONFIG_MAPPING[case.model_type]
    config = json.loads(config_class(**deepcopy(dict(case.options))).to_json_string())
    told = stated_limits(config)
    if case.name in TOLD:
        assert any(TOLD[case.name] in sentence for sentence in told)
    else:
        assert told == ()


QWEN = {
    "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96,
    "sliding_window": 4096, "max_position_embeddings": 32768,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "limited"),
    [
        ({}, False),  # off unless it is switched on
        ({"use_sliding_window": False}, False),
        ({"use_sliding_window": True, "max_window_layers": 4}, False),  # no layer is left
        ({"use_sliding_window": True, "max_window_layers": 2}, True),
        ({"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 32768}, False),
    ],
)
def test_windows_that_do_nothing_limit_nothing(changes: Mapping[str, Any], limited: bool) -> None:
    config = {**QWEN, **changes}
    assert bool(stated_limits(config)) == bool(known_limits(config)) == limited


def test_odd_values_are_no_error() -> None:
    for value in (None, "much", [], {}, -1.5):
        config = {**QWEN, "model_type": "phi3", "sliding_window": value, "rope_scaling": value}
        stated_limits({**config, "max_position_embeddings": value, "text_config": value})
    assert stated_limits({"model_type": None}) == ()


def test_no_library_is_loaded_for_it() -> None:
    code = (
        "import sys, json\n"
        "from torch2mlx.architectures.limits import stated_limits\n"
        "print(len(stated_limits({'model_type': 'ernie4_5_moe'})))\n"
        "print(*{'torch', 'transformers', 'mlx', 'mlx_lm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]
