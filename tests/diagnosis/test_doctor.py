"""Planted faults are found by name, healthy folders raise no alarm, and --fix mends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import torch
from encoder_decoders import add_processor, t5, whisper
from packed_checkpoints import gptq, repacked
from places import furnish
from releases import meta_release
from safetensors.torch import load_file

import torch2mlx
from torch2mlx.diagnosis import examine_folder
from torch2mlx.errors import OptionError, SourceError

Made = Callable[..., Path]


@pytest.fixture(scope="module")
def made(
    checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """A converted folder by (checkpoint, options), made once."""
    root = tmp_path_factory.mktemp("healthy")

    def make(name: str = "llama", **options: Any) -> Path:
        folder = root / "-".join([name, *(f"{k}={v}" for k, v in sorted(options.items()))])
        if not folder.exists():
            torch2mlx.convert(checkpoint(name), folder, verify=False, **options)
        return folder

    return make


_FOUR = {"quantize": True, "q_bits": 4, "q_group_size": 32}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("llama", _FOUR),
        ("llama", {"quantize": True, "q_mode": "mxfp4"}),
        ("llama", {"dtype": "float16"}),
        ("llama", {"max_shard_size": "300KB"}),
        ("llama_tied", {}),
        ("llama_tied", {**_FOUR, "recipe": None}),
        ("phi3", {}),
        ("gpt_neox", _FOUR),
        ("mixtral", _FOUR),
        ("qwen3_moe", {}),
        ("deepseek_v3", {"quantize": True, "q_bits": 8}),
    ],
    ids=str,
)
def test_healthy_folders_raise_no_alarm(name: str, options: dict[str, Any], made: Made) -> None:
    found = examine_folder(made(name, **options))
    assert found.findings == ()
    assert found.healthy


def _other_source(kind: str, checkpoint: Callable[..., Path], place: Path) -> Any:
    """What `convert` takes beside a plain checkpoint, as the source and its options."""
    tokenizer = [*checkpoint("llama").glob("*token*"), checkpoint("llama") / "chat_template.jinja"]
    if kind == "packed":
        repacked(checkpoint("llama"), place / kind, *gptq(4, 64))
        return place / kind, {"quantize": True}
    if kind == "adapter":
        furnish(place, "my-lora", checkpoint)
        return checkpoint("llama"), {"adapter": place / "my-lora"}
    if kind == "module":
        return torch.nn.Sequential(torch.nn.Linear(8, 4)).eval(), {"example_inputs": (ROW,)}
    if kind == "original release":
        state = load_file(checkpoint("llama") / "model.safetensors")
        return meta_release(place / kind, state, 2), {}
    if kind in ("text to text", "sound to text"):
        model = t5(288) if kind.startswith("text") else whisper(50, 288)
        model.save_pretrained(place / kind)
        add_processor(place / kind)
        source, options = place / kind, {"verify": True}
    else:
        name, options = {
            "text of a multimodal": ("llava-1.5-7b-hf", {"text_only": True}),
            "generated port": ("opt-125m", {}),
            "generated port, 4 bits": ("opt-125m", {"quantize": True}),
        }[kind]
        furnish(place, name, checkpoint)
        source = place / name
    for file in tokenizer:
        shutil.copy(file, source)
    return source, options


ROW = torch.ones(1, 8)
OTHERS = ("packed", "adapter", "module", "text of a multimodal", "generated port")
SLOW = ("generated port, 4 bits", "text to text", "sound to text")


@pytest.fixture(scope="module")
def other(
    checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A converted folder by the kind of its source, made once."""
    root = tmp_path_factory.mktemp("others")

    def make(kind: str) -> Path:
        folder = root / kind.replace(" ", "-") / "out"
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            source, options = _other_source(kind, checkpoint, folder.parent)
            torch2mlx.convert(source, folder, **{"verify": kind == "module", **options})
        return folder

    return make


@pytest.mark.parametrize(
    "kind", [*OTHERS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]
)
def test_folders_of_other_sources_raise_no_alarm(kind: str, other: Callable[[str], Path]) -> None:
    assert examine_folder(other(kind)).findings == ()


def test_a_release_without_a_tokenizer_lacks_nothing_else(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source, _ = _other_source("original release", checkpoint, tmp_path)
    torch2mlx.convert(source, tmp_path / "out", verify=False)
    names = [finding.name for finding in examine_folder(tmp_path / "out").findings]
    assert names == ["tokenizer-missing"]


def _edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def _weights(folder: Path, change: Callable[[dict[str, mx.array]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = dict(mx.load(str(path)))  # type: ignore[arg-type]
    change(tensors)
    mx.eval(tensors)
    mx.save_safetensors(str(path), tensors, metadata={"format": "mlx"})


def _set(folder: Path, name: str, value: Callable[[mx.array], mx.array]) -> None:
    _weights(folder, lambda t: t.update({name: value(t[name])}))


def _tokenizer(folder: Path, **changes: Any) -> None:
    _edit(folder, "tokenizer_config.json", **changes)


def _second_set(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00002.safetensors")


_NORM = "model.layers.0.input_layernorm.weight"
_QUERY = "model.layers.0.self_attn.q_proj"

FAULTS: dict[str, tuple[str, dict[str, Any], Callable[[Path], None]]] = {
    "no config": ("unreadable-config", {}, lambda f: (f / "config.json").unlink()),
    "cut-off config": (
        "unreadable-config", {}, lambda f: (f / "config.json").write_text('{"model_type": "lla')
    ),
    "cut-off weights": (
        "unreadable-weights", {},
        lambda f: (f / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{"),
    ),
    "unknown model": ("unreadable-port", {}, lambda f: _edit(f, "config.json", model_type="x")),
    "shard lost": (
        "missing-shards", {"max_shard_size": "300KB"},
        lambda f: sorted(f.glob("model-*.safetensors"))[1].unlink(),
    ),
    "two sets": ("stale-shards", {}, _second_set),
    "index of another": (
        "stale-index", {},
        lambda f: _edit(f, "model.safetensors.index.json", weight_map={_NORM: "other.safetensors"}),
    ),
    "quantization key lost": (
        "quantization-missing", _FOUR,
        lambda f: _edit(f, "config.json", quantization=..., quantization_config=...),
    ),
    "quantization of a plain model": (
        "quantization-empty", {},
        lambda f: _edit(f, "config.json", quantization={"group_size": 32, "bits": 4}),
    ),
    "bits of another conversion": (
        "quantization-mismatch", _FOUR,
        lambda f: _edit(f, "config.json", quantization={"group_size": 32, "bits": 8}),
    ),
    "too many layers": (
        "missing-tensors", {}, lambda f: _edit(f, "config.json", num_hidden_layers=4)
    ),
    "too few layers": ("extra-tensors", {}, lambda f: _edit(f, "config.json", num_hidden_layers=2)),
    "another width": (
        "misshapen-tensors", {}, lambda f: _edit(f, "config.json", intermediate_size=512)
    ),
    "NaN": ("not-finite", {}, lambda f: _set(f, f"{_QUERY}.weight", lambda w: w * mx.nan)),
    "Inf in scales": ("not-finite", _FOUR, lambda f: _set(f, f"{_QUERY}.scales", lambda s: s / 0)),
    "zeros": ("zero-tensors", {}, lambda f: _set(f, f"{_QUERY}.weight", mx.zeros_like)),
    "packing left": (
        "packing-left", {},
        lambda f: _edit(f, "config.json", quantization_config={"quant_method": "gptq"}),
    ),
    "changed after the proof": (
        "changed-files", {}, lambda f: _set(f, _NORM, lambda w: w * 1.5)
    ),
    "rope settings of transformers 5": (
        "lost-settings", {},
        lambda f: _edit(
            f, "config.json", rope_theta=...,
            rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
        ),
    ),
    "tied and stored": (
        "tied-with-head", {}, lambda f: _edit(f, "config.json", tie_word_embeddings=True)
    ),
    "model file lost": (
        "model-file-missing", {}, lambda f: _edit(f, "config.json", model_file="model.py")
    ),
    "float16 of a model that overflows": (
        "float16-overflow", {},
        lambda f: _edit(f, "config.json", model_type="gemma2", torch_dtype="float16"),
    ),
    "no tokenizer": (
        "tokenizer-missing", {}, lambda f: [p.unlink() for p in f.glob("tokenizer*")]
    ),
    "broken tokenizer": (
        "tokenizer-broken", {}, lambda f: (f / "tokenizer.json").write_text('{"version": "1.0"')
    ),
    "tokenizer of a larger model": (
        "ids-beyond-embedding", {},
        lambda f: _set(f, "model.embed_tokens.weight", lambda w: w[:40]),
    ),
    "another start": ("wrong-bos", {}, lambda f: _edit(f, "config.json", bos_token_id=7)),
    "stop outside": (
        "eos-outside-vocabulary", {}, lambda f: _edit(f, "config.json", eos_token_id=[0, 50_000])
    ),
    "template lost": (
        "chat-template-missing", {}, lambda f: (f / "chat_template.jinja").unlink()
    ),
    "end of turn lost": (
        "never-stops", {},
        lambda f: [
            _edit(f, "config.json", eos_token_id=0),
            _edit(f, "generation_config.json", eos_token_id=0),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda name: name.replace(" ", "-"))
def test_a_planted_fault_is_found(fault: str, made: Made, tmp_path: Path) -> None:
    expected, options, plant = FAULTS[fault]
    folder = Path(shutil.copytree(made("llama", **options), tmp_path / "model"))
    if expected == "wrong-bos":
        _tokenizer(folder, bos_token="<|im_start|>")
    plant(folder)
    found = examine_folder(folder)
    assert expected in [finding.name for finding in found.findings]
    assert not found.healthy
    for finding in found.findings:
        assert all((finding.symptom, finding.cause, finding.cure))


def _lose(folder: Path, name: str) -> None:
    (folder / name).unlink()


def _appended(folder: Path) -> None:
    with (folder / "model.py").open("a") as file:
        file.write("\nprint('hello')\n")


def _ends_elsewhere(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())["generation"]
    _edit(folder, "config.json", generation={**settings, "ends": [50_000]})


# fault → (its name, kind of source, what does it)
OTHER_FAULTS: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "packed matrix of another width": (
        "quantization-mismatch", "packed", lambda f: _set(f, f"{_QUERY}.scales", lambda s: s[:, :1])
    ),
    "adapter lies beside": (
        "adapter-not-merged", "adapter",
        lambda f: (f / "adapters.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}"),
    ),
    "config of the whole": (
        "unreadable-port", "text of a multimodal",
        lambda f: _edit(f, "config.json", model_type="llava", text_config={}),
    ),
    "code of a module lost": ("model-file-missing", "module", lambda f: _lose(f, "model.py")),
    "weights of a module lost": (
        "unreadable-weights", "module", lambda f: _lose(f, "model.safetensors")
    ),
    "code of a port edited": ("model-file-foreign", "generated port", _appended),
    "code of a port lost": (
        "model-file-missing", "generated port", lambda f: _lose(f, "model.py")
    ),
    "weights of a port lost": (
        "missing-tensors", "generated port",
        lambda f: _weights(f, lambda t: [t.pop(n) for n in list(t) if ".layers.1.fc1." in n]),
    ),
    "a port of more layers": (
        "missing-tensors", "generated port, 4 bits",
        lambda f: _edit(f, "config.json", num_hidden_layers=3),
    ),
    "words of speech lost": (
        "tokenizer-missing", "sound to text",
        lambda f: [_lose(f, path.name) for path in f.glob("tokenizer*")],
    ),
    "processor lost": (
        "processor-missing", "sound to text", lambda f: _lose(f, "preprocessor_config.json")
    ),
    "end beyond the words": ("eos-outside-vocabulary", "text to text", _ends_elsewhere),
}  # fmt: skip


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=[pytest.mark.slow] if kind in SLOW else [])
        for fault, (_, kind, _) in OTHER_FAULTS.items()
    ],
    ids=lambda name: name.replace(" ", "-"),
)
def test_a_fault_in_a_folder_of_another_source(
    fault: str, other: Callable[[str], Path], tmp_path: Path
) -> None:
    expected, kind, plant = OTHER_FAULTS[fault]
    folder = Path(shutil.copytree(other(kind), tmp_path / "model"))
    plant(folder)
    assert expected in [finding.name for finding in examine_folder(folder).findings]


def test_a_norm_that_was_shifted_twice(tmp_path: Path) -> None:
    """Gemma stores weight - 1; a file with weight + 1 gives noise."""
    folder = tmp_path / "gemma"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma2"}))
    for shift, expected in ((0.0, False), (2.0, True)):
        weights = {f"model.layers.{i}.input_layernorm.weight": mx.ones(8) * shift for i in range(3)}
        mx.save_safetensors(str(folder / "model.safetensors"), weights)
        names = [finding.name for finding in examine_folder(folder).findings]
        assert ("norm-shift-twice" in names) == expected


def test_what_was_mended_stays_mended(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("llama"), tmp_path / "model"))
    before = (folder / "config.json").read_bytes()
    for fault in ("end of turn lost", "rope settings of transformers 5", "index of another"):
        FAULTS[fault][2](folder)
    spoiled = (folder / "config.json").read_bytes()
    mended = examine_folder(folder, fix=True)
    assert {"never-stops", "lost-settings", "stale-index"} <= set(mended.fixed)
    assert (folder / "config.json.bak").read_bytes() == spoiled
    after = [finding.name for finding in examine_folder(folder).findings]
    assert after in ([], ["changed-files"])  # the proof was of the folder as it was
    wanted, found = json.loads(before), json.loads((folder / "config.json").read_text())
    assert found["rope_theta"] == wanted["rope_theta"]
    assert set(found["eos_token_id"]) == set(wanted["eos_token_id"])


def test_the_command(run_cli: Any, made: Made, tmp_path: Path) -> None:
    healthy = run_cli("doctor", made("llama"))
    assert healthy.code == 0
    assert "nothing wrong found" in healthy.out
    folder = Path(shutil.copytree(made("llama"), tmp_path / "model"))
    FAULTS["NaN"][2](folder)
    ill = run_cli("doctor", folder, "--json")
    assert ill.code == 8
    assert json.loads(ill.out)["findings"][0]["name"] == "not-finite"
    machine = run_cli("doctor", "--json")
    assert json.loads(machine.out)["facts"]["mlx"]


def test_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        examine_folder(tmp_path / "none")
    with pytest.raises(OptionError, match="--fix mends a folder"):
        torch2mlx.doctor(fix=True)


def test_versions_that_disagree_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch2mlx.diagnosis import examination

    names = {finding.name for finding in examination.examine_machine().findings}
    assert "versions-disagree" not in names
    monkeypatch.setattr(
        examination, "requires", lambda name: ["numpy<1", "absent>9", 'torch<1; extra == "x"']
    )
    (found,) = (f for f in examination.examine_machine().findings if f.name == "versions-disagree")
    assert "torch2mlx needs numpy <1" in found.cause
    assert "absent" not in found.cause
    assert "torch <1" not in found.cause
