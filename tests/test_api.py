"""The four functions of the package, as a program uses them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import torch2mlx
from torch2mlx.errors import (
    DestinationError,
    OptionError,
    ParityError,
    PlanError,
    SourceError,
    Torch2MLXError,
)
from torch2mlx.packaging.remote import send_folder

Checkpoint = Callable[..., Path]


def test_public_names() -> None:
    assert torch2mlx.__all__ == [
        "Torch2MLXError", "__version__", "bench", "convert", "doctor", "generate", "inspect",
        "load", "plan", "report", "upload", "verify", "verify_certificate",
    ]  # fmt: skip
    assert dir(torch2mlx) == sorted(torch2mlx.__all__)
    for name in torch2mlx.__all__:
        assert getattr(torch2mlx, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'benchmark'"):
        _ = torch2mlx.benchmark  # type: ignore[attr-defined]


def test_errors_have_codes_of_their_own() -> None:
    from torch2mlx import errors

    kinds = [getattr(errors, name) for name in errors.__all__]
    assert all(issubclass(kind, torch2mlx.Torch2MLXError) for kind in kinds)
    # A refinement of an error shares its code.
    direct = [kind for kind in kinds if Torch2MLXError in kind.__bases__]
    assert len({kind.exit_code for kind in direct} - {1}) == len(direct)


_HEAVY = ("torch", "mlx", "mlx_lm", "transformers", "numpy")


def test_import_is_light() -> None:
    code = f"import sys, torch2mlx; print([m for m in {_HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_inspect(checkpoint: Checkpoint) -> None:
    found = torch2mlx.inspect(checkpoint("mixtral"))
    assert (found.kind, found.model_type, found.route) == ("safetensors", "mixtral", "mixtral")
    assert (found.layers, found.experts, found.tied, found.context) == (3, 4, False, 256)
    assert found.tokenizer
    assert found.chat_template
    assert found.hazards == ()
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint("mixtral"), dtype=torch.bfloat16)
    assert found.parameters == model.num_parameters()
    assert found.dtypes == {"bfloat16": found.parameters}
    json.dumps(found.to_dict(), allow_nan=False)


def test_inspect_names_hazards(copied: Checkpoint) -> None:
    source = copied("llama_wide")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "llamma"}))
    for path in [*source.glob("*token*"), source / "chat_template.jinja"]:
        path.unlink()
    found = torch2mlx.inspect(source)
    assert (found.route, found.tokenizer, found.chat_template) == (None, False, False)
    hazards = "\n".join(found.hazards)
    for words in ("no port for model type 'llamma' (similar: llama", "no tokenizer", "272"):
        assert words in hazards


def test_inspect_says_where_the_port_differs(copied: Checkpoint) -> None:
    source = copied("llama")
    config = json.loads((source / "config.json").read_text())
    changes = {"model_type": "starcoder2", "sliding_window": 64}
    (source / "config.json").write_text(json.dumps({**config, **changes}))
    assert "ignores the sliding window of 64 tokens" in "\n".join(torch2mlx.inspect(source).hazards)


class _Recorder:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.nbytes = 0
        self.total: int | None = None

    @contextmanager
    def stage(self, title: str, total_bytes: int | None = None) -> Iterator[Callable[[int], None]]:
        self.stages.append(title)

        def advance(count: int) -> None:
            if title == "Converting":
                self.total = total_bytes
                self.nbytes += count

        yield advance

    def note(self, text: str) -> None:
        self.stages.append(text)


def test_convert(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = checkpoint("llama")
    listener = _Recorder()
    made = torch2mlx.convert(source, "models/out", quantize=True, q_bits=8, progress=listener)
    assert made.destination == tmp_path / "models" / "out"
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["out"]
    names = {path.name for path in made.destination.iterdir()}
    assert names >= {
        "README.md", "chat_template.jinja", "config.json", "model.safetensors",
        "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
        "torch2mlx.json",
    }  # fmt: skip
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (made.destination / name).read_bytes() == (source / name).read_bytes()
    written = json.loads((made.destination / "torch2mlx.json").read_text())
    assert made.to_dict() == {"destination": str(made.destination), **written}
    assert written["options"] == {"quantize": True, "q_bits": 8}
    assert written["verification"]["passed"] is True
    assert written["tokenizer"]["passed"] is True
    parts = {comparison["part"] for comparison in written["verification"]["comparisons"]}
    assert parts >= {"twin", "all layers"}
    assert listener.stages[0] == "Planning from headers"
    assert 0 < listener.nbytes <= (listener.total or 0)


def test_convert_refuses_options_by_name(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"convert\(\).*'bits_per_weight'"):
        torch2mlx.convert(checkpoint("llama"), tmp_path / "out", bits_per_weight=4)
    with pytest.raises(OptionError, match=r"--keep takes a list of patterns: \['lm_head'\]"):
        torch2mlx.convert(checkpoint("llama"), tmp_path / "out", quantize=True, keep="lm_head")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [{}, {"quantize": True}, {"quantize": True, "q_mode": "mxfp4"}], ids=str
)
@pytest.mark.parametrize("name", ["llama_tied", "mixtral"])
def test_verify_accepts_what_convert_makes(
    name: str, options: dict[str, object], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    made = torch2mlx.convert(checkpoint(name), tmp_path / "out", verify=False, **options)
    found = torch2mlx.verify(checkpoint(name), made.destination)
    assert found.passed
    assert found.tokenizer["passed"]
    json.dumps(found.to_dict(), allow_nan=False)


def _with_mlx_lm(source: Path, folder: Path, **options: object) -> Path:
    from mlx_lm import convert

    convert(str(source), str(folder), **options)  # type: ignore[arg-type]
    return folder


def test_verify_accepts_mlx_lms_folder_of_a_flat_config(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = checkpoint("llama", flat=True)
    folder = _with_mlx_lm(source, tmp_path / "theirs", quantize=True, q_bits=4, q_group_size=64)
    assert torch2mlx.verify(source, folder).passed


def test_verify_finds_the_rope_settings_that_mlx_lm_loses(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """mlx-lm 0.32 reads `rope_theta` and not the `rope_parameters` of transformers 5."""
    folder = _with_mlx_lm(checkpoint("llama"), tmp_path / "theirs")
    with pytest.raises(ParityError, match=r"rope_theta: should be 50000.0, is 10000"):
        torch2mlx.verify(checkpoint("llama"), folder)


def test_verify_finds_another_tokenizer(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = torch2mlx.convert(checkpoint("llama"), tmp_path / "out", verify=False)
    path = made.destination / "tokenizer.json"
    path.write_text(path.read_text().replace('"Ġthe"', '"Ġeht"'))
    found = torch2mlx.verify(checkpoint("llama"), made.destination)
    assert found.report.passed
    assert not found.passed
    assert "the" in str(found.tokenizer["errors"])


def test_verify_refuses_another_model(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = torch2mlx.convert(checkpoint("llama"), tmp_path / "out", verify=False)
    with pytest.raises(
        ParityError, match=r"loads mlx_lm\.models\.llama, but the source is a model"
    ):
        torch2mlx.verify(checkpoint("mixtral"), made.destination)
    with pytest.raises((ParityError, PlanError), match=r"tie_word_embeddings|lm_head"):
        torch2mlx.verify(checkpoint("llama_tied"), made.destination)
    with pytest.raises(SourceError, match=r"config\.json"):
        torch2mlx.verify(checkpoint("llama"), tmp_path)


@pytest.fixture(scope="module")
def converted(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "out"
    return torch2mlx.convert(checkpoint("llama", "float32"), folder, verify=False).destination


def test_generate_continues_as_pytorch_does(checkpoint: Checkpoint, converted: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = checkpoint("llama", "float32")
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)

    def torch_text(ids: list[int]) -> tuple[int, str]:
        made = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0]
        return len(ids), tokenizer.decode(made[len(ids) :], skip_special_tokens=True)

    pieces: list[str] = []
    raw = torch2mlx.generate(
        converted, "the sun rises", max_tokens=12, raw=True, on_text=pieces.append
    )
    assert (raw.prompt_tokens, raw.text) == torch_text(tokenizer.encode("the sun rises"))
    assert "".join(pieces) == raw.text
    assert raw.finish_reason == "length"
    chat = torch2mlx.generate(converted, "the sun rises", max_tokens=12)
    template = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the sun rises"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert (chat.prompt_tokens, chat.text) == torch_text(template)


def test_generate_samples_by_seed(converted: Path) -> None:
    def text(seed: int) -> str:
        return torch2mlx.generate(converted, "sun", temperature=1.0, seed=seed, max_tokens=8).text

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


def test_generate_refuses_what_is_no_model(tmp_path: Path, converted: Path) -> None:
    with pytest.raises(SourceError, match=r"config\.json is missing"):
        torch2mlx.generate(tmp_path, "Hello")
    (tmp_path / "config.json").write_bytes((converted / "config.json").read_bytes())
    with pytest.raises(SourceError, match="mlx-lm cannot load it"):
        torch2mlx.generate(tmp_path, "Hello")
    with pytest.raises(OptionError, match="the prompt is empty"):
        torch2mlx.generate(converted, "", raw=True)
    with pytest.raises(OptionError, match=r"--temp -1.0: at least 0"):
        torch2mlx.generate(converted, "Hello", temperature=-1.0)
    with pytest.raises(OptionError, match="--max-tokens 0: at least 1"):
        torch2mlx.generate(converted, "Hello", max_tokens=0)


def test_weights_of_a_flat_and_a_nested_config_are_equal(
    checkpoint: Checkpoint, tmp_path: Path, read_weights: Callable[[Path], Mapping[str, object]]
) -> None:
    folders = []
    for flat in (True, False):
        out = tmp_path / str(flat)
        torch2mlx.convert(checkpoint("qwen3_moe", flat=flat), out, quantize=True)
        folders.append(out)
    assert read_weights(folders[0]) == read_weights(folders[1])


class _Hub:
    """Stands in for the hub: remembers what it is asked for."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error = error

    def create_repo(self, **options: Any) -> str:
        self.calls.append(("create_repo", options))
        return f"https://hub.example/{options['repo_id']}"

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload_folder", options))
        if self.error is not None:
            raise self.error


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., _Hub]:
    import huggingface_hub

    def install(error: Exception | None = None) -> _Hub:
        fake = _Hub(error)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
        return fake

    return install


def test_upload_sends_the_folder(hub: Callable[..., _Hub], tmp_path: Path) -> None:
    fake = hub()
    assert send_folder(tmp_path, "me/model") == "https://hub.example/me/model"
    (created, options), (sent, content) = fake.calls
    assert (created, options) == ("create_repo", {"repo_id": "me/model", "exist_ok": True})
    assert (sent, content["repo_id"], content["folder_path"]) == (
        "upload_folder", "me/model", tmp_path,
    )  # fmt: skip


def test_a_failed_upload_says_that_the_folder_is_converted(
    hub: Callable[..., _Hub], tmp_path: Path
) -> None:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    response: Any = SimpleNamespace(headers={}, request=None)
    refused = HfHubHTTPError("403 Forbidden:\nno write access", response=response)
    errors = (refused, HFValidationError("a bad name"), OSError("no network"))
    for error, reason in zip(
        errors, ("403 Forbidden: no write access", "a bad name", "no network"), strict=True
    ):
        hub(error)
        with pytest.raises(DestinationError) as caught:
            send_folder(tmp_path, "me/model")
        message = str(caught.value)
        assert f"{tmp_path} is converted, but cannot be uploaded to me/model" in message
        assert reason in message
        assert "hf upload" in message


def test_no_network_is_a_message_too(hub: Callable[..., _Hub], tmp_path: Path) -> None:
    # The HTTP library of huggingface_hub has errors that are no OSError.
    error = type("ConnectError", (Exception,), {"__module__": "httpx"})
    hub(error("name or service not known"))
    with pytest.raises(DestinationError, match="is converted"):
        send_folder(tmp_path, "me/model")


def test_a_fault_of_our_own_is_not_taken_for_the_hubs(
    hub: Callable[..., _Hub], tmp_path: Path
) -> None:
    hub(TypeError("a programming error"))
    with pytest.raises(TypeError):
        send_folder(tmp_path, "me/model")


@pytest.mark.parametrize(("max_context", "generated"), [(None, True), (32, False)])
def test_without_a_proof_no_port_is_taken_that_is_known_to_differ(
    copied: Checkpoint, tmp_path: Path, max_context: int | None, generated: bool
) -> None:
    source = copied("llama")
    config = json.loads((source / "config.json").read_text())
    changes = {"model_type": "mistral", "sliding_window": 32}
    (source / "config.json").write_text(json.dumps({**config, **changes}))
    torch2mlx.convert(source, tmp_path / "out", verify=False, max_context=max_context)
    assert (tmp_path / "out" / "model.py").exists() == generated


def test_a_port_that_ends_the_program_is_told(copied: Checkpoint, tmp_path: Path) -> None:
    if find_spec("hf_olmo") is not None:
        pytest.skip("the package that mlx-lm's port of olmo wants is installed")
    source = copied("llama")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "olmo"}))
    with pytest.raises(torch2mlx.Torch2MLXError, match="ends the program"):
        torch2mlx.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
