"""docs/settings.md is what the code generates."""

from __future__ import annotations

from pathlib import Path

from halos_eval.config.settings import Settings
from halos_eval.config.settings_page import settings_page

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date():
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert text == settings_page(), "run `make docs`"


def test_the_page_names_every_variable_and_no_machine():
    text = settings_page()
    assert [name for name in Settings.model_fields if f"`HALOS_EVAL_{name.upper()}`" not in text] == []
    assert str(ROOT) not in text
    assert str(Path.home()) not in text
