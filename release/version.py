"""The version: pyproject.toml has it, and this script writes it wherever files name it.

python3 release/version.py --check     fail if a file names another version
python3 release/version.py 0.2.0       write 0.2.0 everywhere, and end the section Unreleased of CHANGELOG.md
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
NUMBER = r"\d+\.\d+\.\d+"
OWN = re.compile(rf'(?m)^(version = ")({NUMBER})(")$')
CHART = re.compile(rf'(?m)^((?:appV|v)ersion: "?)({NUMBER})("?)$')
# An image (halos-eval/judge:1.2.3), Airflow's tag beside it, and the wheel.
NAMED = re.compile(rf'(halos-eval/(?:airflow|judge|worker)(?::|, tag: ")|halos_eval-)({NUMBER})()')
PATTERNS = {"pyproject.toml": OWN, "helm/halos-eval/Chart.yaml": CHART}
NAMING = ("helm/halos-eval/values.yaml", "helm/halos-eval/ci/*.yaml", "examples/*.yaml", "docs/*.md")
UNRELEASED = "## Unreleased\n"


def version() -> str:
    """Return the version of pyproject.toml."""
    (found,) = OWN.finditer((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return found[2]


def places() -> dict[Path, re.Pattern[str]]:
    """Return the files that name the version, each with its pattern."""
    named = {path: NAMED for pattern in NAMING for path in sorted(ROOT.glob(pattern))}
    return {ROOT / name: pattern for name, pattern in PATTERNS.items()} | named


def others() -> list[str]:
    """Return the places that name another version than pyproject.toml."""
    return [
        f"{path.relative_to(ROOT)}: {found[2]}"
        for path, pattern in places().items()
        for found in pattern.finditer(path.read_text(encoding="utf-8"))
        if found[2] != version()
    ]


def write(new: str) -> None:
    """Write the version ``new`` into all files, and give the section Unreleased its number and day."""
    changes = ROOT / "CHANGELOG.md"
    changed = changes.read_text(encoding="utf-8")
    if UNRELEASED not in changed:
        sys.exit(f"CHANGELOG.md has no section {UNRELEASED.strip()!r}, so nothing would be released. Add it")
    for path, pattern in places().items():
        text = path.read_text(encoding="utf-8")
        path.write_text(pattern.sub(rf"\g<1>{new}\g<3>", text), encoding="utf-8")
    released = f"{UNRELEASED}\n## {new} ({datetime.now(UTC):%Y-%m-%d})\n"
    changes.write_text(changed.replace(UNRELEASED, released, 1), encoding="utf-8")


def main(argument: str) -> None:
    """Check, or write."""
    if argument == "--check":
        if wrong := others():
            sys.exit(f"expected version {version()}, as in pyproject.toml: {'; '.join(wrong)}. Run release/version.py")
    elif re.fullmatch(NUMBER, argument):
        write(argument)
    else:
        sys.exit(f"version {argument!r} is invalid; expected three numbers, such as 0.2.0")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) == 2 else "")
