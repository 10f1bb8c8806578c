"""`jaxmlp data`: the data sets are listed and prepared, and what cannot be is named."""

import importlib
from pathlib import Path

import pytest

from jaxmlp.data.preparation import Preparation
from jaxmlp.data.prepared import Prepared

room = importlib.import_module("jaxmlp.cli.data")


def test_the_data_sets_are_listed_with_where_they_are(command, monkeypatch):
    found = Prepared(Path("there"), {}, {})
    monkeypatch.setattr(room, "find_prepared", lambda name, _: found if name == "kmnist" else None)
    Path("here").mkdir()
    assert command("data", "list", "--data-dir", "here") == (
        0,
        "digits         ships with scikit-learn\n"
        "iris           ships with scikit-learn\n"
        "wine           ships with scikit-learn\n"
        "breast_cancer  ships with scikit-learn\n"
        "diabetes       ships with scikit-learn\n"
        "mnist          not prepared in here\n"
        "fashion_mnist  not prepared in here\n"
        "kmnist         prepared in there\n"
        "emnist         not prepared in here\n",
        "",
    )


def test_a_default_folder_that_is_not_there_holds_nothing(command, monkeypatch):
    monkeypatch.setenv("JAXMLP_DATA_DIR", "no/such/folder")
    status, output, errors = command("data", "list")
    assert (status, errors) == (0, "")
    assert "mnist          not prepared in no/such/folder\n" in output


@pytest.mark.parametrize("already", [False, True])
def test_prepare_says_what_it_did(command, monkeypatch, already):
    done = Preparation("mnist", Path("there"), already, 60_000, 10_000, "its hash")
    asked = []

    def prepare(*arguments):
        asked.append(arguments)
        return done

    monkeypatch.setattr(room, "prepare", prepare)
    status, output, _ = command("data", "prepare", "mnist", "--from", "here", "--data-dir", "there")
    assert status == 0 and asked == [("mnist", Path("there"), Path("here"))]
    what = "was prepared already" if already else "is prepared, checked by its hash"
    assert output == f"mnist {what}: 60,000 training and 10,000 test examples in there\n"
    assert command("data", "prepare", "mnist", "--download").status == 0
    assert asked[-1] == ("mnist", None, None)


def test_a_publisher_that_cannot_be_reached_is_one_sentence_and_1(command, monkeypatch):
    def prepare(*_):
        raise ConnectionError("mnist: expected to download it, got: no answer")

    monkeypatch.setattr(room, "prepare", prepare)
    message = "jaxmlp: mnist: expected to download it, got: no answer\n"
    assert command("data", "prepare", "mnist", "--download") == (1, "", message)
