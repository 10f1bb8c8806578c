"""`jaxmlp verify`: the table is printed and written, and a row that fails is exit status 1."""

import json
from pathlib import Path

import jax
import pytest

from jaxmlp.verification import table
from jaxmlp.verification.comparison import NO_DIFFERENCE, Found
from jaxmlp.verification.trials import Settings


def test_verify_prints_a_row_for_everything_and_writes_json(command, monkeypatch):
    chosen = [row for row in table.ROWS if row[0] in ("equations", "faults")]
    monkeypatch.setattr(table, "ROWS", chosen)
    status, output, errors = command("verify", "--trials", 3, "--seed", 7, "--json", "table.json")
    assert (status, errors) == (0, "")
    assert "✓ equations     the paper's equations 4 and 7 against jax.grad: 6 cases" in output
    assert "✓ faults        planted mistakes, each seen and named: 13 cases" in output
    assert output.splitlines()[-1].startswith("every gradient holds: 2 rows in ")
    content = json.loads(Path("table.json").read_text())
    assert content["passed"] is True
    assert (content["trials"], content["seed"], content["jax"]) == (3, 7, jax.__version__)
    assert [row["name"] for row in content["rows"]] == ["equations", "faults"]


def test_verify_fails_when_a_bound_is_broken(command, monkeypatch):
    found = Found(NO_DIFFERENCE._replace(size=1e-3, leaf="params[0].weight"), "a case", "a call")
    monkeypatch.setattr(
        table,
        "ROWS",
        [("good", "what", 1e-2, lambda _: [found]), ("bad", "what", 1e-4, lambda _: [found])],
    )
    status, output, errors = command("verify", "--json", "table.json")
    assert status == 1
    assert errors == "jaxmlp: 1 of 2 rows failed: bad\n"
    assert "✗ bad           what: 1 cases, worst 1.0e-03, bound 1e-04" in output
    assert "to repeat it: a call" in output
    assert json.loads(Path("table.json").read_text())["passed"] is False


def test_a_table_from_before_is_there_until_the_new_one_is_whole(command, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(table, "ROWS", [("row", "what", 1.0, interrupted)])
    Path("table.json").write_text("old")
    result = command("verify", "--json", "table.json")
    assert (result.status, result.errors) == (130, "jaxmlp: interrupted\n")
    assert [path.name for path in Path.cwd().iterdir()] == ["table.json"]
    assert Path("table.json").read_text() == "old"


@pytest.mark.slow
def test_every_gradient_holds(command):
    # The whole proof, with few draws: compiling takes most of the time.
    status, output, errors = command("verify", "--trials", 5, "--json", "table.json")
    assert (status, errors) == (0, ""), output
    assert "every gradient holds: 11 rows" in output
    rows = json.loads(Path("table.json").read_text())["rows"]
    assert {row["status"] for row in rows} == {"passed"}
    assert {row["name"]: row["cases"] for row in rows}["float64"] == 216
    # And for another seed: here, where what has been compiled serves again.
    again = ("equations", "contractions", "differences", "accuracy", "faults")
    for row in table.verify(Settings(32, 11), [row for row in table.ROWS if row[0] in again]):
        assert row.status == "passed", f"{row.name}: {row.worst} in {row.where}; {row.note}"
