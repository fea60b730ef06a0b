"""What is wrong with an MLX folder, or with this machine: symptom, cause and cure."""

from __future__ import annotations

from torch2mlx.diagnosis.examination import Examination, examine_folder, examine_machine
from torch2mlx.diagnosis.finding import Finding

__all__ = ["Examination", "Finding", "examine_folder", "examine_machine"]
