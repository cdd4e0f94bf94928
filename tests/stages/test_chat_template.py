"""Chat templates: HALOs' own by name, others by path, and an early error for an invalid one."""

from __future__ import annotations

import jinja2
import pytest

from halos_eval.errors import BadInput
from halos_eval.stages.chat_template import read_template


def test_chatml_is_halos_own():
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    template = jinja2.Template(read_template("chatml"))
    text = template.render(messages=turns, add_generation_prompt=True)
    assert text == "\n<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
    assert template.render(messages=turns[1:]) == "\n<|im_start|>user\nu<|im_end|>"


def test_none_is_the_checkpoints_own():
    assert read_template(None) is None


def test_a_file(tmp_path):
    path = tmp_path / "chat_template.jinja"
    path.write_text("{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}{{ m.content }}{% endfor %}")
    assert read_template(str(path)) == path.read_text()


@pytest.mark.parametrize("name", ["chatlm", "/none.jinja", "none.jinja", ""])
def test_what_is_not_there(name):
    with pytest.raises(BadInput, match="not found; expected chatml or the path"):
        read_template(name)


@pytest.mark.parametrize("content", [b"{% for %}", b"{{ a", b"\xff"])
def test_what_is_no_template(tmp_path, content):
    (tmp_path / "a.jinja").write_bytes(content)
    with pytest.raises(BadInput, match="is not valid Jinja"):
        read_template(str(tmp_path / "a.jinja"))


def test_an_empty_file_is_no_template(tmp_path):
    (tmp_path / "a.jinja").write_text(" \n")
    with pytest.raises(BadInput, match="is empty"):
        read_template(str(tmp_path / "a.jinja"))
