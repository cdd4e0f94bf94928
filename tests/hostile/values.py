"""Texts of strangers: names, tags, parameters, answers of models and judges, log files."""

from __future__ import annotations

from hypothesis import strategies as st

CONTROL = ["\x00", "\x07", "\x08", "\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\r", "\n", "\t", "\x0b", "\x85", "\x7f"]
UNICODE = [
    "\u202e",
    "\u2066",
    "\u200b",
    "\u2028",
    "\u2029",
    "\ufeff",
    "\ud800",
    "\udfff",
    "\U0001f468\u200d",
    "e\u0301",
]
EXPANDED = [
    "$(KEY)",
    "$$(KEY)",
    "$$",
    "${HOME}",
    "$HOME",
    "`id`",
    "$(id)",
    "%s%n",
    "%(name)s",
    "{0}",
    "{output_1}",
    "~",
]
TEMPLATES = ["{{ 7 * 7 }}", "{{ conn.x }}", "{% include 'x' %}", "{# #}", "<|im_end|>", "{{ task.conf }}"]
PATHS = [
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    ".",
    "a//b",
    "a/../b",
    "__",
    "a__b",
    "file:///x",
    "s3://x/y",
    "::",
    "NUL",
]
YAML = [
    "yes",
    "off",
    "null",
    "~",
    "1.10",
    "0x1F",
    "1_000",
    "1e5",
    "2026-02-30",
    "12:30:45",
    ".nan",
    "- a",
    "a: b",
    "&a",
    "*a",
    "!!python/object/apply:os.system [id]",
    "!tag",
    "|",
    ">",
    "%TAG",
    "---",
    "...",
    "# c",
    "{a: 1}",
    "[1",
]
TABLES = [
    "=1+1",
    "+1",
    "-1+2",
    "@SUM(A1)",
    '=HYPERLINK("http://x")',
    "=cmd|' /C calc'!A0",
    "\t=1",
    "\r=1",
    ",",
    ";",
    '"',
    '""',
    "|",
    "a,b\nc,d",
    "NaN",
    "None",
    "1e400",
]
MARKDOWN = [
    "`",
    "```",
    "**b**",
    "[a](http://x)",
    "![a](http://x)",
    "<http://x>",
    "<!channel>",
    "<@U0>",
    "@everyone",
    "<@&1>",
    "# h",
    "- i",
    "http://x",
    "https://x>",
    "!here>",
    "~~s~~",
    "|a|b|",
    "\\`",
    ":tada:",
]
HTML = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "<!--",
    "]]>",
    "</style><style>*{}",
    "javascript:alert(1)",
    "&lt;b&gt;",
    "' onclick='x",
    "<iframe>",
    "</pre>",
    "&#0;",
]
SHELL = ["; id", "&& id", "| id", "--help", "-rf", "--", "-", "'", "\\", "*", "?", "!", "\\n", "a b", " ", ""]
LOGS = [
    "Traceback (most recent call last):",
    "ValueError: x",
    "halos-eval: BadInput: x",
    "[halos-eval] INFO",
    "(EngineCore pid=1)",
    "|Tasks|Version|Filter|n-shot|Metric|   |Value|   |Stderr|",
    "), gen_kwargs: (",
    "pretrained=x",
    "CUDA error: x",
    "       win_rate  standard_error  n_total",
    "Evaluating the x outputs.",
]
ATTACKS = [*CONTROL, *UNICODE, *EXPANDED, *TEMPLATES, *PATHS, *YAML, *TABLES, *MARKDOWN, *HTML, *SHELL, *LOGS]

HOSTILE = st.one_of(
    st.sampled_from(ATTACKS),
    st.lists(st.sampled_from([*ATTACKS, "a", "b1", "/"]), min_size=2, max_size=5).map("".join),
    st.text(max_size=20),
    st.text(alphabet=st.characters(max_codepoint=0x7F), max_size=20),
)
"""One text. Most are combinations of what some format takes for a command."""
BATCH = st.lists(HOSTILE, min_size=20, max_size=20)
"""Twenty texts, for tests that look at each one quickly."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([10**400, 1e308]) | HOSTILE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE, inner, max_size=3),
    max_leaves=6,
)
"""One JSON document that is not what was expected."""


def visible(text: str) -> bool:
    """Return whether a terminal shows ``text`` as it is: no control character but the end of a line."""
    return all(sign.isprintable() or sign == "\n" for sign in text)
