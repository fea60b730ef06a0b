"""The walk through a model: layer by layer, the original beside what was quantized so far.

Memory holds one layer twice (as it is, and quantized), the moments of one matrix and a few
activations.  Both streams of activations lie on the disk between layers.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torch2mlx.calibration.fitting import Collected, Fitting, Settings
from torch2mlx.calibration.grid import Grid
from torch2mlx.calibration.scratch import Overlay, Scratch, Stream, save_step
from torch2mlx.calibration.solver import Moments, Solver
from torch2mlx.conversion.identity import values_digest
from torch2mlx.dtypes import to_torch
from torch2mlx.errors import UnsupportedError
from torch2mlx.planning.expressions import Source, sources_of
from torch2mlx.planning.plan import Output, is_output_head, is_token_embedding
from torch2mlx.planning.regions import full
from torch2mlx.sources.base import Checkpoint, TensorSource

if TYPE_CHECKING:
    from torch2mlx.calibration.blocks import Block, Blocks
    from torch2mlx.calibration.matching import RowMap

__all__ = ["Calibration", "calibrate", "collect", "find_head"]

Array = np.ndarray[Any, Any]

_BATCH_TOKENS = 2048
_ACTIVATIONS = 768 * 10**6  # bytes that passes may hold while they wait, as estimated
_HEAD_ROWS = 8192
_FEW_TOKENS = 8  # of a pass that only tells how a layer computes


@dataclass(frozen=True)
class Calibration:
    """What calibration found.

    Attributes:
        outputs: the plan's, with `calibrated` expressions where there are any.
        source: reads them.
        report: {module: {"error": relative error of its products, "tokens": how many}}.
        notes: what a user should know.
    """

    outputs: tuple[Output, ...]
    source: Overlay
    report: Mapping[str, Any]
    notes: tuple[str, ...]


def calibrate(
    checkpoint: Checkpoint,
    outputs: Sequence[Output],
    ids: Array,
    folder: Path,
    *,
    settings: Settings | None = None,
    trust_remote_code: bool = False,
    held_out: Array | None = None,
    progress: Callable[[int], None] | None = None,
    distillation_progress: Callable[[int], None] | None = None,
) -> Calibration:
    """Find codes, scales and biases for every quantized output.

    Args:
        checkpoint: the source.
        outputs: of the plan.
        ids: calibration token ids [sequences, tokens].
        folder: for scratch files; what an interrupted run of the same kind left is used.
        settings: of the method.
        trust_remote_code: allow the checkpoint's own code.
        held_out: token ids [sequences, tokens] of another text, which decides how much of a
            distillation with `ids` is kept; None: no distillation.
        progress: called with the bytes of source weights done since its last call.
        distillation_progress: called with the tokens of the distillation done since its last
            call, once at its begin with none.

    Raises:
        UnsupportedError: a layer of this model cannot be run on its own.
    """
    import torch

    from torch2mlx.calibration.blocks import Blocks

    asked = settings or Settings()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    blocks = Blocks(
        checkpoint.config,
        checkpoint.state,
        checkpoint.source,
        device,
        checkpoint.folder,
        trust_remote_code,
    )
    used = ids if held_out is None else np.concatenate([ids, held_out])
    scratch = Scratch(folder, _question(checkpoint, outputs, used, asked, device))
    walk = _Walk(blocks, outputs, ids, scratch, asked, progress or (lambda _: None))
    walk.run()
    found = collect(checkpoint.source, outputs, scratch)
    if held_out is not None:
        from torch2mlx.calibration.distillation import distill

        names = {o.name: o for o in found.outputs if o.calibrated is not None}
        report = distillation_progress or (lambda _: None)
        report(0)
        distill(
            blocks,
            found.source,
            {
                index: [names[o.name] for o in own if o.name in names]
                for index, own in walk.by_layer.items()
            },
            find_head(found.outputs),
            ids,
            held_out,
            scratch,
            progress=report,
        )
        found = collect(checkpoint.source, outputs, scratch)
    return found


def _question(
    checkpoint: Checkpoint, outputs: Sequence[Output], ids: Array, settings: Settings, device: Any
) -> dict[str, Any]:
    """What decides the result, in plain values."""
    files = {
        str(path): [path.stat().st_size, path.stat().st_mtime_ns]
        for path in checkpoint.source.files
    }
    return {
        "files": files,
        "settings": asdict(settings),
        "ids": hashlib.sha256(np.ascontiguousarray(ids, "<i8").tobytes()).hexdigest(),
        "values": values_digest(outputs),
        "formats": {o.name: f"{o.scheme}, {o.expr.dtype}" for o in outputs if o.scheme is not None},
        "device": str(device),
        "config": hashlib.sha256(
            json.dumps(checkpoint.config, sort_keys=True, default=str).encode()
        ).hexdigest(),
    }


def collect(source: TensorSource, outputs: Sequence[Output], scratch: Scratch) -> Calibration:
    """What a finished walk left in its folder, put into a plan's outputs."""
    source = Overlay(source, scratch.weight_files, scratch.distilled_files)
    names = source.calibrated.keys()
    result, rounded = [], []
    for output in outputs:
        if output.scheme is not None and all(spec.name in names for spec in output.specs):
            parts = {
                spec.name.rpartition(".")[2]: Source(
                    scratch.prefix + spec.name, spec.dtype, spec.shape
                )
                for spec in output.specs
            }
            output = replace(output, calibrated=parts)
        elif output.scheme is not None and output.packed is None:
            rounded.append(output.module)
        result.append(output)
    notes = []
    if rounded:
        notes.append(
            f"rounded to nearest, since calibration does not reach them ({len(rounded)} modules): "
            + ", ".join(rounded[:4])
            + (" ..." if len(rounded) > 4 else "")
        )
    report = scratch.reports()
    if told := report.pop("distillation", None):
        notes.append(
            f"distillation: {told['kept'][0]:.0%} of its change of scales is kept and "
            f"{told['kept'][1]:.0%} of that of offsets, by the mean KL divergence on the built-in "
            f"text ({told['before']:.4g} before, {told['after']:.4g} after)"
        )
    few = [name for name, entry in report.items() if entry.get("borrowed")]
    if few:
        notes.append(
            f"{len(few)} expert matrices saw few calibration tokens and were calibrated with the "
            f"inputs of all experts of their layer (the first: {few[0]})"
        )
    return Calibration(tuple(result), source, report, tuple(notes))


class _Walk:
    """One calibration."""

    def __init__(
        self,
        blocks: Blocks,
        outputs: Sequence[Output],
        ids: Array,
        scratch: Scratch,
        settings: Settings,
        progress: Callable[[int], None],
    ) -> None:
        self.blocks = blocks
        self.scratch = scratch
        self.settings = settings
        self.progress = progress
        self.ids = ids
        wanted = [o for o in outputs if o.scheme is not None and o.packed is None]
        self.by_layer = self._layers(wanted)
        head = find_head(outputs)
        self.head = head if head in wanted else None
        embedding = next((o for o in wanted if is_token_embedding(o.name)), None)
        self.embedding = embedding if embedding is not self.head else None
        size = max(1, _BATCH_TOKENS // ids.shape[1])
        self.batches = [slice(i, min(i + size, len(ids))) for i in range(0, len(ids), size)]

    def run(self) -> None:
        """All layers, then the head."""
        names = [f"layer-{i:05d}" for i in range(self.blocks.count)]
        if not self.scratch.done("head"):
            if not self.scratch.done("entrance"):
                with self.scratch.writing("entrance") as folder:
                    self._enter(folder)
            before = "entrance"
            for index, name in enumerate(names):
                if not self.scratch.done(name):
                    with self.scratch.writing(name) as folder:
                        self._layer(index, self.scratch.folder / before, folder)
                    self.scratch.forget_stream(before)
                self.progress(sum(o.expr.nbytes for o in self.by_layer.get(index, ())))
                before = name
            with self.scratch.writing("head") as folder:
                self._calibrate_head(self.scratch.folder / before, folder)
            self.progress(0 if self.head is None else self.head.expr.nbytes)
            self.scratch.forget_stream(before)

    def _layers(self, wanted: Sequence[Output]) -> dict[int, list[Output]]:
        numbers = self.blocks.names
        found: dict[int, list[Output]] = {}
        for output in wanted:
            own = {numbers.number(leaf.name) for leaf in sources_of(output.expr)}
            if len(own) == 1 and None not in own:
                found.setdefault(int(own.pop() or 0), []).append(output)
        return found

    def _enter(self, folder: Path) -> None:
        block, numbers = self.blocks.entrance(self.ids)
        quantized = None
        if self.embedding is not None:
            quantized = self.blocks.entrance(self.ids, self._rounded_rows(self.embedding))[0]
        stream = None
        for batch in self.batches:
            hidden = block.first(numbers[batch])
            if stream is None:
                shape = (2, len(self.ids), *hidden.shape[1:])
                stream = Stream.create(folder / "stream.npy", shape)
                np.save(folder / "sample.npy", hidden[:1].cpu().numpy())
            stream.write(0, batch, hidden)
            if quantized is not None:
                hidden = quantized.first(numbers[batch])
            stream.write(1, batch, hidden)

    def _rounded_rows(self, output: Output) -> Array:
        """Rows of an embedding apart from the head, rounded to nearest as they will be written."""
        from torch2mlx.quantization.kernel import dequantize_rows, quantize_rows

        assert output.scheme is not None
        dtype = output.expr.dtype
        found = [
            dequantize_rows(
                quantize_rows(
                    output.expr.read((range(row, row + 1), *full(output.expr.shape[1:])),
                                     self.blocks.reader),
                    dtype, output.scheme,
                ),
                dtype, output.scheme,
            )
            for row in np.unique(self.ids).tolist()
        ]  # fmt: skip
        return np.concatenate(found)

    def _layer(self, index: int, before: Path, folder: Path) -> None:
        import torch

        from torch2mlx.calibration.blocks import Block
        from torch2mlx.calibration.lockstep import Uses
        from torch2mlx.calibration.matching import match_rows

        stream = Stream(before / "stream.npy")
        left = Stream.create(folder / "stream.npy", stream.shape)
        # Always the same one, so that a run that goes on decides as one in a piece.
        sample = torch.from_numpy(np.load(self.scratch.folder / "entrance" / "sample.npy"))
        original = self.blocks.block(index, sample)
        rows = match_rows(original.layer, self.by_layer.get(index, []), self.blocks.reader)
        quantized = Block(copy.deepcopy(original.model), original.device)
        work = Fitting(original.layer, quantized.layer, rows, self.settings)
        last = index == self.blocks.count - 1

        def computed(block: Block, hidden: torch.Tensor) -> torch.Tensor:
            found = block.run(hidden.to(block.device))
            return found.final if last else found.hidden

        def passing(block: Block, lane: int, batch: slice) -> Callable[[], None]:
            return lambda: left.write(lane, batch, computed(block, stream.read(lane, batch)))

        passes = [(passing(quantized, 1, b), passing(original, 0, b)) for b in self.batches]
        uses = Uses.of(lambda: computed(quantized, sample[:, :_FEW_TOKENS]), work.units)
        work.run(passes, uses.once, self._waiting(rows, stream.shape))
        save_step(folder, work.tensors(), work.report)

    def _waiting(self, rows: RowMap, shape: tuple[int, ...]) -> int:
        """How many batches may wait at a matrix, each with what it holds there.

        Of a token that is taken to be three vectors of the stream and two of the widest matrix,
        in either pass.
        """
        widest = max((max(o.expr.shape[-2:]) for o in rows.outputs), default=0)
        token = 2 * 4 * (3 * shape[-1] + 2 * widest)
        size = self.batches[0]
        return int(_ACTIVATIONS // (token * (size.stop - size.start) * self.ids.shape[1]))

    def _calibrate_head(self, before: Path, folder: Path) -> None:
        import torch

        output = self.head
        if output is None:
            save_step(folder, {}, {})
            return
        stream = Stream(before / "stream.npy")
        width = stream.shape[-1]
        device = self.blocks.device
        moments = Moments(
            torch.zeros(width, width, device=device), torch.zeros(width, width, device=device)
        )
        for batch in self.batches:
            original, quantized = (
                stream.read(lane, batch).reshape(-1, width).to(device) for lane in (0, 1)
            )
            moments.add(quantized, original)
        solver = Solver(moments, self.settings.damping, self.settings.sweeps)
        assert output.scheme is not None
        grid = Grid(output.scheme, output.expr.dtype)
        collected = Collected(output)
        expr = output.expr
        for start in range(0, expr.shape[0], _HEAD_ROWS):
            stop = min(start + _HEAD_ROWS, expr.shape[0])
            region = (range(start, stop), *full(expr.shape[1:]))
            values = to_torch(expr.read(region, self.blocks.reader), expr.dtype).float()
            found = solver.quantize(values.to(device), grid)
            collected.put(np.arange(start, stop), found)
        save_step(folder, collected.tensors(), {output.module: {"tokens": moments.tokens}})


def find_head(outputs: Sequence[Output]) -> Output:
    """The matrix that makes logits: the head or, where it is tied to it, the embedding."""
    for known in (is_output_head, is_token_embedding):
        for output in outputs:
            if known(output.name):
                return output
    raise UnsupportedError(
        "neither an output head nor a token embedding is known by its name in this model, so it "
        "cannot be calibrated; leave out --calibrate"
    )
