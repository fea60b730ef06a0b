"""The suite's own modules (`table`, `runner`, `cases_*`) are imported by their bare names."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
