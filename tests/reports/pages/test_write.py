"""The pages in the store: an evaluation writes its own ones, and the samples of a result are written once."""

from __future__ import annotations

import gzip
import json

import pytest

from halos_eval.reports.comparison import Comparison, TaskComparison, Verdict, write_comparison
from halos_eval.reports.facts import samples_of
from halos_eval.reports.items import pair_id
from halos_eval.reports.pages import samples
from halos_eval.reports.pages.write import remove_checkpoints, with_pages, write_checkpoints
from halos_eval.reports.results import Row
from halos_eval.storage import layout, result_files
from halos_eval.storage.records import write_model
from tests.doubles import make_record

SUITE = "s"


def document(number, right, answer="An answer"):
    """A sample as lm_eval writes it."""
    return {
        "doc_id": number, "doc": {}, "target": "T", "arguments": [[f"Prompt {number}", {}]], "resps": [[answer]],
        "filtered_resps": ["42"], "filter": "none", "metrics": ["acc"], "acc": float(right),
    }  # fmt: skip


def harness(root, rows, name="m", fingerprint="a" * 16):
    """A harness result with samples, and its row."""
    folder = layout.stage_folder(str(root), name, "harness", "task", fingerprint)
    data = gzip.compress(b"\n".join(json.dumps(row).encode() for row in rows))
    files = result_files.write(folder, {"samples/task.jsonl.gz": data})
    record = make_record("harness", "task", name, fingerprint=fingerprint, files=files)
    write_model(f"{folder}/{layout.RECORD}", record)
    return Row(name, samples={"task": samples_of(record)})


def judged(root, rows, name="m"):
    """A judge's result, and its row."""
    folder = layout.stage_folder(str(root), name, "judge", None, "b" * 16)
    files = result_files.write(folder, {"annotations.json": json.dumps(rows).encode()})
    record = make_record("judge", None, name, fingerprint="b" * 16, files=files)
    write_model(f"{folder}/{layout.RECORD}", record)
    return Row(name, samples={"judge": samples_of(record)})


def pages(root, folder):
    return sorted((root / "reports" / SUITE / folder).rglob("*.html"))


def test_samples_show_prompt_answer_and_reference_the_worst_first(tmp_path):
    row = harness(tmp_path, [document(0, True), document(1, False, "A wrong answer")])
    write_checkpoints(str(tmp_path), SUITE, [row])
    (page,) = pages(tmp_path, "samples")
    text = page.read_text()
    assert text.index("A wrong answer") < text.index("An answer")
    for words in ("Prompt 1", "42", "\nT</pre>", "wrong", "right", "2 of 2 samples"):
        assert words in text
    (own,) = pages(tmp_path, "checkpoints")
    assert f"../samples/m/{page.name}" in own.read_text()


def compared(root, task, row, b="other", **directions):
    """A comparison of the row's result that is kept: the ids of the items on which it is better or worse."""
    (result,) = row.samples.values()
    one = TaskComparison(task=task, metric="acc", n=9, verdict=Verdict.UNKNOWN, result_a=result, **directions)
    write_comparison(str(root), Comparison(a="m", b=b, suite=SUITE, margin=0.01, verdict=Verdict.UNKNOWN, tasks=(one,)))


def order(page, count):
    """The numbers of the prompts in the order of a page of samples."""
    text = page.read_text()
    places = {number: text.index(f">\nPrompt {number}<") for number in range(count)}
    return sorted(places, key=places.get)


def test_samples_that_flipped_come_first_and_name_the_other_checkpoint(tmp_path):
    row = harness(tmp_path, [document(number, number in {2, 3}) for number in range(5)])
    compared(tmp_path, "task", row, worse=("4", "1#0"), better=("3",))
    compared(tmp_path, "another_task", row, b="third", worse=("0",))
    write_checkpoints(str(tmp_path), SUITE, [row])
    (page,) = pages(tmp_path, "samples")
    assert order(page, 5) == [4, 1, 3, 0, 2]
    text = page.read_text()
    assert text.count("Flipped: worse than other.") == 2
    assert text.count("Flipped: better than other.") == 1
    assert "first the 3 that flipped" in text


def test_a_flip_beyond_the_shown_samples_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "SHOWN", 2)
    row = harness(tmp_path, [document(number, number == 4) for number in range(5)])
    compared(tmp_path, "task", row, better=("4",))
    write_checkpoints(str(tmp_path), SUITE, [row])
    (page,) = pages(tmp_path, "samples")
    assert "Prompt 4" in page.read_text()


def test_a_new_comparison_writes_the_samples_again(tmp_path):
    row = harness(tmp_path, [document(number, False) for number in range(3)])
    write_checkpoints(str(tmp_path), SUITE, [row])
    (old,) = pages(tmp_path, "samples")
    compared(tmp_path, "task", row, worse=("2",))
    write_checkpoints(str(tmp_path), SUITE, [row])
    (new,) = pages(tmp_path, "samples")
    assert old != new
    assert order(new, 3) == [2, 0, 1]


def test_the_comparison_of_an_older_result_marks_no_sample_of_a_newer_one(tmp_path):
    compared(tmp_path, "task", harness(tmp_path, [document(0, False)]), worse=("0",))
    write_checkpoints(str(tmp_path), SUITE, [harness(tmp_path, [document(0, True)])])
    (page,) = pages(tmp_path, "samples")
    assert "Flipped" not in page.read_text()


def test_pairs_that_flipped_come_first(tmp_path):
    rows = [{"instruction": f"Prompt {at}", "output_1": "R", "output_2": "A", "preference": 1.0} for at in range(3)]
    row = judged(tmp_path, rows)
    compared(tmp_path, "alpaca_eval", row, worse=(pair_id("Prompt 2"),))
    write_checkpoints(str(tmp_path), SUITE, [row])
    (page,) = pages(tmp_path, "samples")
    assert order(page, 3) == [2, 0, 1]


def test_removed_checkpoints_have_no_pages(tmp_path):
    row = harness(tmp_path, [document(0, True)])
    compared(tmp_path, "task", row, worse=("0",))
    write_checkpoints(str(tmp_path), SUITE, [row, Row("kept")])
    assert with_pages(str(tmp_path), SUITE) == {"m", "kept"}
    remove_checkpoints(str(tmp_path), SUITE, ["m", "never-there", "..", "../..", ""])
    assert [page.name for page in pages(tmp_path, "")] == ["kept.html"]


def test_samples_are_written_once_for_a_result(tmp_path):
    row = harness(tmp_path, [document(0, True)])
    write_checkpoints(str(tmp_path), SUITE, [row])
    (page,) = pages(tmp_path, "samples")
    page.write_text("as it was")
    write_checkpoints(str(tmp_path), SUITE, [row])
    assert page.read_text() == "as it was"


def test_samples_of_an_older_result_are_removed(tmp_path):
    write_checkpoints(str(tmp_path), SUITE, [harness(tmp_path, [document(0, True)])])
    (old,) = pages(tmp_path, "samples")
    write_checkpoints(str(tmp_path), SUITE, [harness(tmp_path, [document(0, False)])])
    (new,) = pages(tmp_path, "samples")
    assert old != new
    assert "wrong" in new.read_text()


def test_many_samples_are_several_pages_that_link_each_other(tmp_path):
    row = harness(tmp_path, [document(number, True) for number in range(250)])
    write_checkpoints(str(tmp_path), SUITE, [row])
    found = pages(tmp_path, "samples")
    assert len(found) == 3
    assert all(page.read_text().count("<article") in {100, 50} for page in found)
    assert all(other.name in found[0].read_text() for other in found)


def test_damaged_samples_cost_only_their_own_page(tmp_path):
    row = harness(tmp_path, [document(0, True)])
    (file,) = (tmp_path / "runs").rglob("*.jsonl.gz")
    file.write_bytes(b"damaged")
    write_checkpoints(str(tmp_path), SUITE, [row])
    (own,) = pages(tmp_path, "checkpoints")
    assert "was changed after its record was written" in own.read_text()


def test_pairs_count_wins_and_losses_by_subset(tmp_path):
    preferences = [("helpful", 1.9), ("helpful", 1.1), ("koala", 1.5), ("koala", None)]
    rows = [
        {"instruction": f"Do {at}", "output_1": "Ref", "output_2": "Own", "dataset": subset, "preference": value}
        for at, (subset, value) in enumerate(preferences)
    ]
    write_checkpoints(str(tmp_path), SUITE, [judged(tmp_path, rows)])
    (page,) = pages(tmp_path, "samples")
    text = " ".join(page.read_text().split())
    cell = '<td class="number">{}</td>'
    for subset, numbers in {"helpful": (1, 1, 0, 0), "koala": (0, 0, 1, 1), "all": (1, 1, 1, 1)}.items():
        assert f'<th scope="row">{subset}</th>' + "".join(cell.format(number) for number in numbers) in text
    assert text.index("Do 1") < text.index("Do 2") < text.index("Do 0") < text.index("Do 3")


def test_two_checkpoints_are_side_by_side_if_they_were_compared(tmp_path):
    write_comparison(str(tmp_path), Comparison(a="m", b="exp/n", suite=SUITE, margin=0.01, verdict=Verdict.UNKNOWN))
    write_checkpoints(str(tmp_path), SUITE, [Row("m")])
    (pair,) = pages(tmp_path, "pairs")
    assert "not enough evidence" in pair.read_text()
    (own,) = pages(tmp_path, "checkpoints")
    assert "../pairs/m/exp__n.html" in own.read_text()


@pytest.mark.parametrize(("version", "caution"), [(1, True), (2, False)])
def test_a_comparison_of_an_earlier_version_is_marked(tmp_path, version, caution):
    kept = Comparison(version=version, a="m", b="n", suite=SUITE, margin=0.01, verdict=Verdict.BETTER)
    write_comparison(str(tmp_path), kept)
    write_checkpoints(str(tmp_path), SUITE, [Row("m")])
    (pair,) = pages(tmp_path, "pairs")
    assert (f"`halos-eval compare m n --suite {SUITE} --save` again" in pair.read_text()) is caution
    (own,) = pages(tmp_path, "checkpoints")
    assert ("better (by an earlier version)" in own.read_text()) is caution


@pytest.mark.parametrize("title", ["gsm8k", "judge@mini"])
def test_a_row_without_samples_has_a_page(tmp_path, title):
    write_checkpoints(str(tmp_path), SUITE, [Row("exp/m", samples={title: "c" * 16 + "-00000000"})])
    (own,) = pages(tmp_path, "checkpoints")
    assert own.name == "exp__m.html"
    assert title in own.read_text()
