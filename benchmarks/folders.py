"""Folders of transformers' models that write no text, converted as a user would: `convert FOLDER`.

    python benchmarks/folders.py                      the types that are listed here
    python benchmarks/folders.py --only vit,wav2vec2  others, or some

Each is a tiny random instance (`tiny/configs.py`), saved by `save_pretrained`, and converted with
the gate on and without an example: torch2mlx makes one from the settings.  A line a type: what of
its inputs may change, or why it was refused.  Every type runs in a process of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

from tiny.catalogue import Entry, catalogue

TYPES = {
    "text": "albert bert big_bird camembert deberta-v2 distilbert electra esm funnel layoutlm "
    "longformer mobilebert modernbert mpnet roberta splinter xlm-roberta",
    "pictures": "beit convnext deit depth_anything dinov2 dinov3_vit dpt efficientnet hiera "
    "mobilenet_v2 mobilevit resnet rt_detr sam segformer swin swinv2 vit yolos",
    "video": "timesformer videomae",
    "sound": "audio-spectrogram-transformer data2vec-audio encodec hubert sew wav2vec2 "
    "wav2vec2-bert wavlm",
    "text and pictures": "chinese_clip clip owlvit siglip",
    "text and sound": "clap",
    "series": "patchtst",
}


def main() -> int:
    """Convert and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="model types, separated by commas")
    parser.add_argument("--limit", type=int, default=300, help="seconds for one type")
    args = parser.parse_args()
    entries = {entry.model_type: entry for entry in catalogue()}
    listed = {name: kind for kind, names in TYPES.items() for name in names.split()}
    names = args.only.split(",") if args.only else list(listed)
    print("| type | class | inputs | CPU s |\n|---|---|---|---|", flush=True)
    for name in names:
        pid = os.fork()
        if pid == 0:
            signal.alarm(args.limit)
            print(f"| {name} | {_row(entries[name])} |", flush=True)
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            print(f"| {name} | | stopped after {args.limit} s | |", flush=True)
    return 0


def _row(entry: Entry) -> str:
    """Class, inputs or reason, and processor time of the conversion."""
    import torch

    import torch2mlx
    from tiny.trial import instance

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch, _silent():
        source, out = Path(scratch) / "source", Path(scratch) / "out"
        made = instance(entry)
        if made is None:
            return "| no instance runs in PyTorch | "
        made.save_pretrained(source)  # type: ignore[operator]
        begin = time.process_time()
        try:
            torch2mlx.convert(source, out)
        except torch2mlx.Torch2MLXError as error:
            told = f"refused: {' '.join(str(error).split())[:200]}"
        else:
            config = json.loads((out / "config.json").read_text(encoding="utf-8"))
            shapes = (f"{i['name']} {_shape(i['shape'])}" for i in config["inputs"])
            told = "; ".join(shapes)
        return f"{type(made).__name__} | {told} | {time.process_time() - begin:.0f}"


def _shape(extents: list[int | str]) -> str:
    return f"[{', '.join(map(str, extents))}]"


@contextmanager
def _silent() -> Iterator[None]:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


if __name__ == "__main__":
    sys.exit(main())
