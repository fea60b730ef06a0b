"""Damaged documents: recipes, plans, tokenizers, folders with code, files of our own folders."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from mutations.damage import copied, damage, damage_file, damage_json, rewrite_json
from mutations.seeds import CONFIG, ROWS

__all__ = ["code", "document_seeds", "output", "plan", "recipe", "tokenizer"]

_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
# What no template may do, or not for long.
_TEMPLATES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{% for a in range(10**9) %}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% include '/etc/passwd' %}",
    "{{ messages[99].role }}",
)


def document_seeds(root: Path) -> None:
    """Write a recipe, a plan, a folder with a tokenizer, one with code, and a converted one.

    Needs the weight seeds.
    """
    import torch2mlx

    (root / "recipe.toml").write_text(_RECIPE)
    _write_tokenizer(copied(root / "safetensors", root / "tokenizer"))
    _write_code(copied(root / "safetensors", root / "code"))
    planned = torch2mlx.plan(root / "safetensors")
    (root / "plan.json").write_text(json.dumps(planned.to_dict()))
    torch2mlx.convert(root / "tokenizer", root / "output", quantize=True, q_group_size=32)


_RECIPE = """\
[base]
bits = 4
group_size = 32

[modules]
"*.v_proj" = 6
"*.down_proj" = { bits = 8, group_size = 32 }
"layers.0.*" = { mode = "mxfp8" }
"lm_head" = "keep"

[runtime_precision]
"self_attn" = "float32"
"""


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {w: i for i, w in enumerate(["<s>", "</s>", "<unk>"])}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet())[: ROWS - 3]:
        words.setdefault(byte, len(words))
    made = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>", "<unk>"])
    made.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "model_max_length": 128, "chat_template": _TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _write_code(folder: Path) -> None:
    auto_map = {
        "AutoConfig": "modeling_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnModel",
        "AutoTokenizer": ["modeling_own.OwnTokenizer", None],
    }
    config = CONFIG | {"auto_map": auto_map, "model_file": "own.py"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map}))
    shutil.copytree(folder, folder / "part")


def recipe(rng: random.Random, seeds: Path, folder: Path) -> str:
    """A recipe file beside a checkpoint."""
    copied(seeds / "safetensors", folder)
    path = folder / "recipe.toml"
    text = (seeds / "recipe.toml").read_bytes()
    if rng.random() < 0.5:
        path.write_bytes(damage(rng, text))
        return "bytes"
    table: Any = {
        "base": {"bits": 4, "group_size": 32, "mode": "affine"},
        "modules": {"*.v_proj": 6, "*.up_proj": {"bits": 8, "group_size": 32}, "lm_head": "keep"},
        "runtime_precision": {"self_attn": "float32"},
    }
    for _ in range(rng.choice((1, 2, 4))):
        table = damage_json(rng, table)
    try:
        text = _toml(table).encode("utf-8", "surrogatepass")
    except RecursionError:
        text = b"x = " + b"[" * 5000
    path.write_bytes(text)
    return "values"


def _toml(value: Any) -> str:
    if not isinstance(value, dict):
        return f"x = {_inline(value)}"
    lines = []
    for key, item in value.items():
        if isinstance(item, dict):
            lines.append(f"[{json.dumps(key)}]")
            lines += [f"{json.dumps(k)} = {_inline(v)}" for k, v in item.items()]
        else:
            lines.insert(0, f"{json.dumps(key)} = {_inline(item)}")
    return "\n".join(lines)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(k)} = {_inline(v)}" for k, v in value.items())
        return f"{{ {inner} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    if isinstance(value, float):
        return repr(value)
    return "0001-01-01" if value is None else json.dumps(value)


def plan(rng: random.Random, seeds: Path, folder: Path) -> str:
    """A plan file beside the checkpoint that it names; half of them with a digest that fits."""
    from torch2mlx.selection.plan_file import seal

    copied(seeds / "safetensors", folder / "base")
    found = json.loads((seeds / "plan.json").read_text())
    found = seal({**found, "location": str(folder / "base")})
    path = folder / "plan.json"
    kind = rng.randrange(4)
    if kind == 0:
        path.write_bytes(damage(rng, json.dumps(found).encode()))
        return "bytes"
    for _ in range(rng.choice((1, 1, 3))):
        found = damage_json(rng, found)
    if rng.random() < 0.2 and isinstance(found, dict):
        found["location"] = rng.choice(("own:factory", "os:getcwd", "x/y", "s3://x/y", "/dev/zero"))
    try:
        sealed = seal(found) if kind > 1 and isinstance(found, dict) else found
        path.write_text(json.dumps(sealed))
    except (RecursionError, ValueError):
        path.write_text("[" * 5000)
    return "sealed" if kind > 1 else "values"


def tokenizer(rng: random.Random, seeds: Path, folder: Path) -> str:
    """A tokenizer or its chat template, or the tokenizer of an original release."""
    if rng.random() < 0.4:
        return _original_tokenizer(rng, seeds, folder)
    copied(seeds / "tokenizer", folder)
    name = rng.choice(("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"))
    path = folder / name
    if name == "chat_template.jinja":
        hostile = rng.choice(_TEMPLATES).replace("CANARY", str(folder / "canary")).encode()
        path.write_bytes(rng.choice((hostile, damage(rng, _TEMPLATE.encode()))))
    elif rng.randrange(3) == 0:
        damage_file(rng, path)
    else:
        rewrite_json(rng, path)
    return name


# None: as in the seed.
_CODED: dict[str, tuple[Any, ...]] = {
    "model_type": (None, "own_type", "t5"),
    "model_file": (None, "part/own.py", "../source/own.py", "modeling_own"),
    "architectures": (None, ["OwnModel"], []),
    "is_encoder_decoder": (None, None, True),
}


def _original_tokenizer(rng: random.Random, seeds: Path, folder: Path) -> str:
    releases = seeds / "originals"
    kind = rng.choice(("meta", "mistral", "sentences"))
    copied(releases / kind.replace("sentences", "meta"), folder)
    if kind == "mistral":
        path = folder / "tekken.json"
        if rng.random() < 0.2:
            found = json.loads(path.read_text())
            found["config"]["pattern"] = "(a+a*)+$"
            path.write_text(json.dumps(found))
            return "a pattern that takes forever"
        if rng.random() < 0.6:
            rewrite_json(rng, path)
            return kind
    path = folder / ("tekken.json" if kind == "mistral" else "tokenizer.model")
    data = (releases / "sentences.model" if kind == "sentences" else path).read_bytes()
    path.write_bytes(damage(rng, data))
    return kind


def code(rng: random.Random, seeds: Path, folder: Path) -> str:
    """Python files that make a file where they run, and configs that name them."""
    copied(seeds / "code", folder)
    text = f"open({str(folder / 'canary')!r}, 'w').close()\n"
    part = rng.choice((folder, folder / "part"))
    for name in ("modeling_own.py", "own.py", "conftest.py", "mlx_lm.py", "__init__.py"):
        (part / name).write_text(text)
    if part != folder:
        shutil.rmtree(part / "model.safetensors", ignore_errors=True)
    config = json.loads((folder / "config.json").read_text())
    for key, values in _CODED.items():
        if (value := rng.choice(values)) is not None:
            config[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    for _ in range(rng.randrange(3)):
        rewrite_json(rng, folder / rng.choice(("config.json", "tokenizer_config.json")))
    return "code"


def _damaged_lines(rng: random.Random, path: Path) -> str:
    """Damage every line of a file of JSON lines."""
    lines = []
    for line in path.read_text().splitlines():
        path.write_text(line)
        rewrite_json(rng, path)
        lines.append(path.read_text())
    path.write_text("\n".join(lines) + "\n")
    return path.name


_OURS = (
    *("torch2mlx.json", "torch2mlx.json", "config.json", "README.md"),
    *("torch2mlx/evidence.json", "torch2mlx/certificate.json", "torch2mlx/certificate.json"),
    *("torch2mlx/reference.safetensors", "journal", "torch2mlx/bench.json"),
)


def output(rng: random.Random, seeds: Path, folder: Path) -> str:
    """A file of a folder that torch2mlx wrote, or the journal of one that it was writing."""
    from torch2mlx.packaging.lock import work_folder

    made = copied(seeds / "output", folder / "made")
    name = rng.choice(_OURS)
    path = made / name
    if name == "journal":
        work = work_folder(folder / "out")
        (work / "output").mkdir(parents=True)
        line = {"file": "output/model.safetensors", "size": 9, "sha256": "0" * 64}
        path = work / "journal"
        entries = [{"journal": 1, "identity": {"plan": {"a": 1}}}, line]
        path.write_text("".join(json.dumps(e) + "\n" for e in entries))
        if rng.random() < 0.7:
            return _damaged_lines(rng, path)
    if not path.is_file():
        path.write_text(json.dumps({"schema_version": 1, "rows": [{"engine": "mlx"}]}))
    if path.suffix == ".json" and rng.random() < 0.8:
        rewrite_json(rng, path)
    else:
        damage_file(rng, path)
    return name
