from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import torch2mlx
from torch2mlx.compiler.codegen.loops import rolled
from torch2mlx.compiler.lowering import registry
from torch2mlx.compiler.package import Compilation, compile_module, compile_source
from torch2mlx.errors import (
    CompileError,
    DestinationError,
    OptionError,
    ParityError,
    UnsupportedError,
)
from torch2mlx.options import ConvertOptions

GOLDEN = Path(__file__).with_name("golden")
REFRESH = "TORCH2MLX_REFRESH_GOLDEN"
"""Set it to rewrite the files in `golden/` from what is generated now."""


def transformer_shapes() -> dict[str, Any]:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=16)
    return {"ids": {0: batch, 1: length}, "mask": {0: batch, 1: length}}


def transformer_inputs() -> tuple[Tensor, Tensor]:
    return torch.randint(11, (2, 5)), torch.rand(2, 5) > 0.3


def text_shapes(*names: str) -> dict[str, Any]:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=64)
    return {name: {0: batch, 1: length} for name in names}


def compiled(models: ModuleType, name: str) -> tuple[nn.Module, tuple[Any, ...], Any]:
    torch.manual_seed(0)
    module = getattr(models, name)().eval()
    if name == "MLP":
        return module, (torch.randn(2, 8),), None
    if name == "CNN":
        return module, (torch.randn(2, 3, 8, 8),), None
    if name == "Tagger":
        return module, (torch.randint(20, (2, 7)),), None
    if name == "llama":
        return module, (torch.randint(64, (2, 5)),), text_shapes("input_ids")
    if name == "bert":
        ids, mask = torch.randint(64, (2, 5)), torch.ones(2, 5, dtype=torch.int64)
        return module, (ids, mask), text_shapes("input_ids", "attention_mask")
    return module, transformer_inputs(), transformer_shapes()


@pytest.mark.parametrize("name", ["MLP", "CNN", "Transformer", "Tagger", "llama", "bert"])
def test_generated_source_is_the_golden_one(golden_models: ModuleType, name: str) -> None:
    module, args, shapes = compiled(golden_models, name)
    source = compile_source(module, args, dynamic_shapes=shapes).generated.source
    file = GOLDEN / f"{name.lower()}.py"
    if os.environ.get(REFRESH):
        file.write_text(source, encoding="utf-8")
    assert source == file.read_text(encoding="utf-8"), f"set {REFRESH}=1 to accept the new source"
    assert max(map(len, source.splitlines())) <= 100


def test_the_documentation_shows_golden_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "generated-code.md").read_text(encoding="utf-8")
    sources = [f.read_text(encoding="utf-8") for f in GOLDEN.glob("*.py")]
    sources.append(Path(__file__).with_name("golden_models.py").read_text(encoding="utf-8"))
    classes = [
        c
        for block in re.findall(r"```python\n(class .*?)```", text, re.S)
        for c in re.split(r"\n\n\n", block.strip())
    ]
    assert len(classes) == 8
    for shown in classes:
        assert any(shown in source for source in sources), shown


@pytest.mark.parametrize("name", ["MLP", "CNN", "Transformer"])
def test_folder_runs_with_mlx_alone(golden_models: ModuleType, name: str, tmp_path: Path) -> None:
    module, args, shapes = compiled(golden_models, name)
    made = compile_module(module, tmp_path / "out", args, dynamic_shapes=shapes)
    assert made.folder == tmp_path / "out"
    assert made.agreement is not None
    assert made.agreement.worst <= 1e-4
    if shapes:
        assert made.agreement.cases[2:] == ("batch=3, length=7", "batch=2, length=4")
    with torch.no_grad():
        expected = module(*args)
    if isinstance(expected, dict):
        expected = expected["logits"]
    inputs = {f"input{i}": mx.array(a.numpy()) for i, a in enumerate(args)}
    mx.save_safetensors(str(tmp_path / "inputs.safetensors"), inputs)
    script = """
import sys
for name in ("torch", "torch2mlx", "transformers"):
    sys.modules[name] = None
import mlx.core as mx
from model import load
given = mx.load("../inputs.safetensors")
result = load(".")(*[given[k] for k in sorted(given)])
result = result["logits"] if isinstance(result, dict) else result
mx.save_safetensors("../result.safetensors", {"result": result})
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", script], cwd=made.folder, env=environment, check=True, timeout=120
    )
    result = torch.tensor(mx.load(str(tmp_path / "result.safetensors"))["result"].tolist())
    assert torch.allclose(result, expected, atol=1e-5)
    files = {p.name for p in made.folder.iterdir() if p.is_file()}
    assert files == {
        "model.py", "model.safetensors", "model.safetensors.index.json", "config.json",
        "torch2mlx.json", "README.md",
    }  # fmt: skip
    json.loads((made.folder / "config.json").read_text())


def test_parameters_keep_their_names_and_convolutions_are_transposed_once(
    golden_models: ModuleType, tmp_path: Path
) -> None:
    module, args, _ = compiled(golden_models, "CNN")
    folder = compile_module(module, tmp_path / "out", args).folder
    weights = mx.load(str(folder / "model.safetensors"))
    expected = {n for n in module.state_dict() if not n.endswith("num_batches_tracked")}
    assert set(weights) == expected
    assert weights["features.0.conv.weight"].shape == (8, 3, 3, 3)
    want = module.features[2].conv.weight.permute(0, 2, 3, 1)  # type: ignore[index, union-attr]
    assert weights["features.2.conv.weight"].tolist() == want.tolist()


def test_tied_weights_are_stored_once(golden_models: ModuleType, tmp_path: Path) -> None:
    module, args, shapes = compiled(golden_models, "Transformer")
    folder = compile_module(module, tmp_path / "out", args, dynamic_shapes=shapes).folder
    names = set(mx.load(str(folder / "model.safetensors")))
    assert "tokens.weight" in names
    assert "head.weight" not in names


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("Transformer", "Block"),
        pytest.param("llama", "LlamaDecoderLayer", marks=pytest.mark.slow),
        pytest.param("bert", "BertLayer", marks=pytest.mark.slow),
    ],
)
def test_depth_does_not_lengthen_the_file(golden_models: ModuleType, name: str, layer: str) -> None:
    def source(layers: int) -> str:
        _, args, shapes = compiled(golden_models, name)
        module = getattr(golden_models, name)(layers=layers).eval()
        return compile_source(module, args, dynamic_shapes=shapes).generated.source

    deep = source(32)
    assert deep.count("\n") == source(2).count("\n")
    assert f"[{layer}() for _ in range(32)]" in deep


class Awkward(nn.Module):
    """Names that MLX or Python would misread, nested arguments and results, shared layers."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(3))
        self.linears = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.keys = nn.Linear(4, 4)
        self._scale = nn.Parameter(torch.rand(4))
        self.named = nn.ModuleDict({"a": nn.Linear(4, 4), "b-c": nn.Linear(4, 4)})
        self.register_buffer("offset", torch.arange(4.0), persistent=False)

    def forward(self, x: Tensor, extra: dict[str, list[Tensor]]) -> tuple[object, ...]:
        x = self.shared(self.shared(x)) * self._scale + torch.tensor([1.0, 2.0, 3.0, 4.0])
        for norm, linear in zip(self.norms, self.linears, strict=True):
            x = x + torch.tanh(linear(norm(x)))
        y = self.keys(x) + self.named["a"](x) - self.named["b-c"](x) + self.offset
        return x, [extra["k"][0] + y], 3, None


def test_awkward_names_and_structures(tmp_path: Path) -> None:
    made = compile_module(
        Awkward().eval(), tmp_path / "out", (torch.randn(2, 4), {"k": [torch.randn(4)]})
    )
    source = (made.folder / "model.py").read_text()
    assert "for i in range(3):" in source
    names = set(mx.load(str(made.folder / "model.safetensors")))
    assert {"keys_.weight", "scale_", "named.b_c.bias", "offset"} <= names


class Derived(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.layers = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self[2](self[1](self[0](x))))


class Keys(nn.Module):
    """Keys of a dict: keywords, numbers beside words, three that would have one attribute."""

    def __init__(self) -> None:
        super().__init__()
        names = ("class", "0", "01", "²", "a b", "a-b", "a_b", "_x", "x_")
        self.heads = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})
        self.scales = nn.ParameterDict({name: nn.Parameter(torch.rand(4)) for name in names[:6]})
        self.derived = Derived()

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        for head in self.heads.values():
            x = head(x)
        for scale in self.scales.values():
            x = x * scale
        return self.derived(x), "a text"


def test_every_key_has_an_attribute_of_its_own(tmp_path: Path) -> None:
    made = compile_module(Keys().eval(), tmp_path / "out", (torch.randn(2, 4),))
    source = (made.folder / "model.py").read_text()
    assert "self.heads.a_b = nn.Linear(4, 4)" in source
    assert "self.heads.a_b_ = nn.Linear(4, 4)" in source
    assert "self.heads.class_ = nn.Linear(4, 4)" in source


class Output(OrderedDict[str, Tensor]):
    """A result that is registered without names for its parts, as model outputs of libraries."""


class Named(nn.Module):
    def forward(self, x: Tensor) -> Output:
        return Output(last=x + 1, states=(x, x * 2))  # type: ignore[arg-type]


def test_results_registered_without_names_become_dicts() -> None:
    pytree.register_pytree_node(
        Output,
        lambda output: (list(output.values()), list(output)),
        lambda values, names: Output(zip(names, values, strict=True)),
    )
    try:
        source = compile_source(Named(), (torch.randn(2),)).generated.source
    finally:
        pytree._deregister_pytree_node(Output)
    assert 'return {"last": x + 1, "states": (x, x * 2)}' in source


class Codebook(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.entries = nn.Embedding(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.entries(torch.cdist(x, self.entries.weight).argmin(1))


def test_the_weight_of_a_layer_is_also_read_as_such(tmp_path: Path) -> None:
    made = compile_module(nn.Sequential(Codebook()), tmp_path / "out", (torch.randn(7, 4),))
    assert "weight_of(self.entries)" in (made.folder / "model.py").read_text()


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(0, 1, 4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table.sin().to(x.dtype)


def test_double_precision_is_stored_in_single(tmp_path: Path) -> None:
    made = compile_module(Table(), tmp_path / "out", (torch.randn(2, 4),))
    assert mx.load(str(made.folder / "model.safetensors"))["table"].dtype == mx.float32


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        before = self.count.clone()
        self.count += x.sum()
        return x + before


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Counter()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * 2


def test_changed_buffers_are_state_of_the_generated_module(tmp_path: Path) -> None:
    module = Counting().eval()
    made = compile_module(module, tmp_path / "out", (torch.ones(2),))
    assert float(module.inner.count) == 0  # the check ran on a copy
    from torch2mlx.compiler.parity import import_model

    model = import_model(made.folder).load(made.folder)
    assert model(mx.array([1.0, 2.0])).tolist() == [2.0, 4.0]
    assert model(mx.array([1.0, 2.0])).tolist() == [8.0, 10.0]
    assert model.inner.count.tolist() == [6.0]


class Sized(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, outputs)
        self.second = nn.Linear(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(self.first(x)))


def test_modules_of_other_sizes_share_a_class_with_parameters() -> None:
    module = nn.Sequential(Sized(3, 5), Sized(5, 7), Sized(7, 7)).eval()
    source = compile_source(module, (torch.randn(2, 3),)).generated.source
    assert source.count("class Sized") == 1
    assert "[Sized(3, 5), Sized(5, 7), Sized(7, 7)]" in source


@pytest.fixture
def wrong_tanh() -> Iterator[None]:
    """A lowering that computes something else."""
    overload = torch.ops.aten.tanh.default
    right = registry.lowering_for(overload)
    registry._REGISTRY[overload] = lambda b, x: b.call(mx.sin, x)
    yield
    registry._REGISTRY[overload] = right


@pytest.mark.usefixtures("wrong_tanh")
def test_a_wrong_result_is_not_published_and_names_the_module(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine = nn.Linear(3, 3)
            self.bad = Sized(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bad(self.fine(x))

    with pytest.raises(ParityError, match=r"first module that differs is bad \(Sized"):
        compile_module(Net().eval(), tmp_path / "out", (torch.randn(4, 3),))
    assert list(tmp_path.iterdir()) == []


class ReturnsBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return x + 1, self.calls


def test_a_buffer_may_be_an_output(tmp_path: Path) -> None:
    """Outputs of the first call are compared as they were before the second one."""
    compile_module(ReturnsBuffer(), tmp_path / "out", (torch.randn(2),))


def test_a_difference_that_the_module_makes_itself_is_told(tmp_path: Path) -> None:
    class Autocast(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    example = (torch.randn(3, 64),)
    for module, words in (
        (nn.Sequential(nn.Linear(64, 4), nn.Dropout()), "random numbers .*dropout.*call eval"),
        (Autocast(64, 4).eval(), "computes in torch.bfloat16 .*autocast"),
    ):
        with pytest.raises(ParityError, match=words):
            compile_module(module, tmp_path / "out", example)
    assert list(tmp_path.iterdir()) == []


def test_sizes_fixed_behind_the_exports_back_are_found(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.shape[0]

    shapes = {"x": {0: torch.export.Dim("batch")}}
    made = compile_module(Fixed(), tmp_path / "out", (torch.randn(3, 2),), dynamic_shapes=shapes)
    assert "batch = x.shape[0]" in (made.folder / "model.py").read_text()
    assert made.agreement.cases == ("example", "fresh values", "batch=4", "batch=2")


def test_refusals_name_the_cause(tmp_path: Path) -> None:
    with torch.device("meta"):
        module = nn.Linear(2, 2)
    with pytest.raises(OptionError, match="meta device"):
        compile_module(module, tmp_path / "out", (torch.randn(1, 2),))
    (tmp_path / "there").mkdir()
    with pytest.raises(DestinationError, match="exists already"):
        compile_module(nn.Linear(2, 2), tmp_path / "there", (torch.randn(1, 2),))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
def test_quantized_by_torch_and_unknown_results(tmp_path: Path) -> None:
    @dataclass
    class Result:
        y: Tensor

    class Gives(nn.Linear):
        def forward(self, x: Tensor) -> Result:  # type: ignore[override]
            return Result(super().forward(x))

    packed = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})
    for module, words in (
        (packed, r"0 \(Linear\).*: quantized by torch.ao"),
        (Gives(4, 4), "regist"),
    ):
        with pytest.raises(UnsupportedError, match=words):
            compile_module(module.eval(), tmp_path / "out", (torch.randn(2, 4),))


def test_a_half_type_that_overflows_is_told(tmp_path: Path) -> None:
    module = nn.Linear(8, 4, bias=False)
    nn.init.constant_(module.weight, 3e4)
    with pytest.raises(ParityError, match="float16 ends at 65,504: --dtype bfloat16"):
        compile_module(
            module, tmp_path / "out", (torch.ones(2, 8),), options=ConvertOptions(dtype="float16")
        )


def test_examples_that_do_not_fit(tmp_path: Path) -> None:
    example = torch.ones(2, 4, device="meta")
    with pytest.raises(OptionError, match="the example of forward is on the meta device"):
        compile_module(nn.Linear(4, 4), tmp_path / "out", (example,))
    with pytest.raises(CompileError) as failed:
        compile_module(nn.Linear(4, 4), tmp_path / "out", (), {"nope": torch.ones(2, 4)})
    assert "inspect.py" not in str(failed.value)
    assert "missing a required argument: 'input'" in str(failed.value)


def test_meta_modules_give_source() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(4, 8), nn.ReLU()).eval()
    made: Compilation = compile_source(module, (torch.empty(2, 4, device="meta"),))
    assert "nn.Linear(4, 8)" in made.generated.source


def test_statements_are_rolled_only_where_the_index_is_all_that_differs() -> None:
    lines = [f"x = self.layers[{i}](x, mask)" for i in range(3)]
    loop = ["for layer in self.layers:", "    x = layer(x, mask)"]
    assert rolled(lines, {"self.layers": 3}) == loop
    assert rolled(lines, {"self.layers": 4}) == ["for layer in self.layers[:3]:", loop[1]]
    assert rolled(["y = 1", *lines[1:]])[1] == "for layer in self.layers[1:3]:"
    uneven = [lines[0], "x = self.layers[2](x, mask)"]
    assert rolled(uneven) == uneven
    other = [lines[0], "x = self.layers[1](x, other)"]
    assert rolled(other) == other


def test_a_first_layer_that_reads_another_variable_joins_the_loop() -> None:
    lines = ["h = self.layers[0](x, mask)", "h = self.layers[1](h, mask)"]
    loop = ["h = x", "for layer in self.layers:", "    h = layer(h, mask)"]
    assert rolled(lines, {"self.layers": 2}) == loop
    kept = ["h = self.layers[0](x, h)", "h = self.layers[1](h, h)"]
    assert rolled(kept, {"self.layers": 2}) == kept


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Sampler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.layers = nn.ModuleList(Noisy() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x * self.scale)
        return x


def test_a_key_makes_random_numbers_repeatable(tmp_path: Path) -> None:
    from torch2mlx.compiler.parity.running import import_model

    source = compile_source(Sampler(), (torch.zeros(2, 4),)).generated.source
    assert "def __call__(self, x, key=None):" in source
    (tmp_path / "model.py").write_text(source, encoding="utf-8")
    model = import_model(tmp_path).Sampler()
    model.scale = mx.ones(4)
    x, key = mx.zeros((2, 4)), mx.random.key(1)
    assert mx.array_equal(model(x, key), model(x, key))
    assert not mx.array_equal(model(x, key), model(x, mx.random.key(2)))
    assert not mx.array_equal(model(x), model(x))
    # Each draw has a key of its own.
    keys = mx.random.split(key, 3)
    expected = sum((mx.random.normal((2, 4), key=k) for k in keys), x)
    assert mx.allclose(model(x, key), expected)


class Head(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.decoder = nn.Linear(64, 11)
        self.decoder.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(x)


class TiedElsewhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 64)
        self.linear = nn.Linear(64, 64)
        self.head = Head(self.tokens.weight)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.linear(self.tokens(ids))) + self.linear.weight.mean()


def test_weights_that_other_code_reads_may_be_quantized(tmp_path: Path) -> None:
    from mlx.nn.layers.quantized import quantize

    from torch2mlx.compiler.parity.running import import_model

    torch.manual_seed(0)
    module, ids = TiedElsewhere().eval(), torch.tensor([[1, 2, 3]])
    folder = compile_module(module, tmp_path / "out", (ids,)).folder
    model = import_model(folder).load(folder)
    quantize(model, group_size=32, bits=8)
    expected = mx.array(module(ids).detach().numpy())
    error = mx.linalg.norm(model(mx.array(ids.numpy())) - expected) / mx.linalg.norm(expected)
    assert 0 < float(error) < 0.02


class Borrower(nn.Module):
    """Calls a module that is another's."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, norm: nn.Module, head: nn.Module) -> Tensor:
        made: Tensor = head(norm(self.linear(x)))
        return made


class Lender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        self.borrower = Borrower()

    def forward(self, x: Tensor) -> Tensor:
        return self.borrower(self.norm(x), self.norm, self.head) + self.head(x)


def test_modules_that_are_called_outside_of_their_place(tmp_path: Path) -> None:
    result = torch2mlx.convert(
        Lender().eval(), tmp_path / "out", example_inputs=(torch.randn(3, 4),)
    )
    assert result.cases == ("example", "fresh values")
