"""Texts on which tokenizers differ, if they do."""

from __future__ import annotations

__all__ = ["HARD_STRINGS"]

HARD_STRINGS = (
    "",
    " ",
    "Hello, world!",
    "  two spaces, then\ttabs\t\tand\n\n\nnewlines \r\n and trailing   ",
    "      deep indentation\n        deeper\n",
    "def f(x: int) -> str:\n\treturn f'{x!r}' if x else \"\"  # 100%\n",
    '{"key": [1, 2.5e-3, null], "<tag attr=\'v\'>": "&amp;"}',
    "0123456789 1,234,567.89 3.14159 0xDEADBEEF 1e-05",
    "naïve café Ångström ﬁ ﬂ ½ ² x̂ e\u0301",
    "你好，世界。今天天气很好，我们去公园散步吧！",
    "日本語のテキスト、カタカナ、한국어 문장입니다.",
    "שלום עולם! مرحبا بالعالم؟ 123",
    "Привет, мир! Γειά σου Κόσμε. สวัสดีชาวโลก नमस्ते दुनिया",
    "😀👍🏽👨‍👩‍👧‍👦🏳️‍🌈🇩🇪 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀",
    "zero\u200bwidth \u00a0no-break \ufeffbom \u2028line",
    "\x00\x01\x1f control",
    "a" * 600,
    "supercalifragilistic" * 25,
    " ".join(["word"] * 200),
    "https://example.org/a/b?c=d&e=%20#f",
    "▁ Ġ Ċ ## </w> <0x0A> \\n \\u0041",
    "half \ud83d emoji",  # a lone surrogate: most tokenizers raise, and both must
)
"""Spaces, scripts, emoji, code, control characters, long runs and half of a surrogate pair."""
