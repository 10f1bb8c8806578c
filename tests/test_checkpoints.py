"""Checkpoints: a training that was cut anywhere goes on as if it had not been."""

import json
import os
import resource
import shutil
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import in_dtype

from jaxmlp import Network, fit, init
from jaxmlp.training import epochs
from jaxmlp.training.checkpoints import Checkpoints
from jaxmlp.training.settings import Settings
from jaxmlp.training.snapshots import first_snapshot

pytestmark = pytest.mark.slow  # on the default Python alone


NETWORK = Network((4, 6, 5, 3), "tanh")
RNG = np.random.default_rng(3)
X = RNG.normal(size=(90, 4))
T = np.argmax(X[:, :3], axis=1)
EVALUATION = {"validation": (X[:20], T[:20])}
# Everything that a snapshot has to carry at once: moments, an average, a best epoch, masks.
SETTINGS = {
    "optimizer": "adam", "learning_rate": 0.02, "schedule": "one_cycle", "batch_size": 8,
    "epochs": 6, "dropout": (0.2,), "input_dropout": 0.1, "average_decay": 0.9, "patience": 6,
    "clip_norm": 1.0, "label_smoothing": 0.1, "weight_decay": 1e-3, "max_norm": 2.0,
}  # fmt: skip


def start(dtype=jnp.float32):
    return init(NETWORK, jax.random.key(0), dtype)


def train(dtype=jnp.float32, **arguments):
    return fit(
        NETWORK, start(dtype), X, T, key=jax.random.key(1), evaluation=EVALUATION,
        **SETTINGS | arguments,
    )  # fmt: skip


def template(dtype=jnp.float32):
    return first_snapshot(NETWORK, start(dtype), Settings(**SETTINGS))


@cache
def uninterrupted(dtype=jnp.float32):
    return train(dtype)


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    jax.tree.map(np.testing.assert_array_equal, ours.optimizer_state, theirs.optimizer_state)
    assert ours.best_epoch == theirs.best_epoch
    for mine, other in zip(ours.history, theirs.history, strict=True):
        times = ("seconds", "examples_per_second", "compile_seconds")
        assert {k: v for k, v in mine.items() if k not in times} == {
            k: v for k, v in other.items() if k not in times
        }


class Cut(Exception):
    """Stands for the kill."""


def cut_at(total, checkpoints):
    """Watch a training, save it once so many steps are done, and end it there."""

    def watch(snapshot):
        if snapshot.total >= total:
            checkpoints.save(snapshot)
            raise Cut

    return watch


@pytest.fixture
def short_pieces(monkeypatch):
    """Pieces of five steps, so that epochs of twelve are cut in the middle."""
    monkeypatch.setattr(epochs, "_PIECE_SECONDS", 1e-9)
    monkeypatch.setattr(epochs.Pace, "smallest", 5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_training_cut_again_and_again_ends_bit_by_bit_as_if_it_had_not_been(
    tmp_path, dtype, short_pieces
):
    whole = uninterrupted(dtype)
    places = []
    for total in (5, 17, 24, 51, 60):  # within epochs of 12 steps, and at the end of one
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        snapshot, warnings = checkpoints.restore(template(dtype))
        assert not warnings
        places.append(snapshot and (snapshot.epoch, snapshot.step))
        with pytest.raises(Cut):
            train(dtype, resume=snapshot, watch=cut_at(total, checkpoints))
    assert places[0] is None and {step for _, step in places[1:]} != {0}
    snapshot, _ = Checkpoints(tmp_path / "checkpoints").restore(template(dtype))
    assert_same(train(dtype, resume=snapshot), whole)


def test_the_pieces_of_an_epoch_change_nothing(short_pieces):
    pieces = []
    assert_same(train(watch=lambda s: pieces.append((s.epoch, s.step))), uninterrupted())
    # The first, before the speed is known, may take an epoch; then 12 = 5 + 7, no piece of 2.
    assert pieces[:5] == [(1, 0), (1, 5), (2, 0), (2, 5), (3, 0)]


def save_some(folder, totals=(12, 24, 36)):
    """Checkpoints of one training after each of those steps."""
    checkpoints = Checkpoints(folder)
    train(watch=lambda s: checkpoints.save(s) if s.total in totals else None)
    return [folder / str(total) for total in totals]


def test_the_newest_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    train(watch=checkpoints.save)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["60", "72"]


def damage_bit(path):
    largest = max((file for file in path.rglob("*") if file.is_file()), key=os.path.getsize)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def damage_length(path):
    for file in path.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-7])


def damage_record(path):
    file = path / "about" / "metadata"
    file.write_text(file.read_text()[:40])


def damage_values(path):
    """Another, whole set of arrays: only the hash can tell."""
    shutil.rmtree(path / "arrays")
    shutil.copytree(path.parent / "12" / "arrays", path / "arrays")


@pytest.mark.parametrize(
    "damage", [damage_bit, damage_length, damage_record, damage_values, shutil.rmtree]
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(tmp_path, damage):
    *_, last = save_some(tmp_path)
    damage(last)
    if damage is shutil.rmtree:
        last.mkdir()
    snapshot, warnings = Checkpoints(tmp_path).restore(template())
    assert snapshot.total == 24
    assert len(warnings) == 1 and f"checkpoint {last} is damaged (" in warnings[0]
    assert (tmp_path / "damaged-36").is_dir() and not last.exists()
    assert_same(train(resume=snapshot, watch=Checkpoints(tmp_path).save), uninterrupted())


def test_with_every_checkpoint_damaged_there_is_none(tmp_path):
    for path in save_some(tmp_path):
        damage_length(path)
    snapshot, warnings = Checkpoints(tmp_path).restore(template())
    assert snapshot is None and len(warnings) == 3


def test_a_checkpoint_that_is_being_written_is_never_read(tmp_path):
    first, *_, last = save_some(tmp_path)
    # What a kill leaves behind: Orbax writes under such a name and renames at the end.
    last.rename(tmp_path / "36.orbax-checkpoint-tmp-1")
    snapshot, warnings = Checkpoints(tmp_path).restore(template())
    assert snapshot.total == 24 and not warnings
    assert first.is_dir()


def test_what_a_kill_left_half_written_is_cleared_away(tmp_path):
    save_some(tmp_path)
    (tmp_path / "36").rename(tmp_path / "36.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(tmp_path)
    snapshot, _ = checkpoints.restore(template())
    train(resume=snapshot, watch=lambda s: checkpoints.save(s) if s.total == 36 else None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["12", "24", "36"]


def test_a_checkpoint_earlier_than_those_in_the_folder_is_refused_and_not_silently_left_out(
    tmp_path,
):
    save_some(tmp_path)
    with pytest.raises(OSError, match="^checkpoints: cannot write in .*: it holds one of step 36"):
        Checkpoints(tmp_path).save(template()._replace(total=18))


@pytest.mark.parametrize("error", [MemoryError, PermissionError])
def test_what_is_no_fault_of_the_checkpoint_does_not_put_it_aside(tmp_path, monkeypatch, error):
    *_, last = save_some(tmp_path)

    def fail(*_):
        raise error

    monkeypatch.setattr(Checkpoints, "_read", fail)
    with pytest.raises(error):
        Checkpoints(tmp_path).restore(template())
    assert last.is_dir()


def test_the_first_checkpoint_of_a_large_state_waits_for_its_cost_to_be_a_fiftieth(
    tmp_path, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr("jaxmlp.training.checkpoints.time.perf_counter", lambda: now[0])
    saved = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, snapshot: saved.append(now[0]))
    snapshot = template()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((snapshot.state, snapshot.progress)))
    monkeypatch.setattr("jaxmlp.training.checkpoints._BYTES_PER_SECOND", size / 2)  # 2 s a save
    checkpoints = Checkpoints(tmp_path)
    for now[0] in range(1, 120):
        checkpoints.watch(snapshot)
    assert saved[0] == 8 + 2 * 50


def test_a_full_disk_is_named_and_leaves_earlier_checkpoints_whole(tmp_path):
    save_some(tmp_path)
    checkpoints = Checkpoints(tmp_path)
    snapshot, _ = checkpoints.restore(template())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match=f"^checkpoints: cannot write in {tmp_path}: .*as they"):
            checkpoints.save(snapshot._replace(total=40))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    again, warnings = Checkpoints(tmp_path).restore(template())
    assert again.total == 36 and not warnings


def test_saving_waits_its_turn_and_a_diverged_state_is_never_saved(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("jaxmlp.training.checkpoints.time.perf_counter", lambda: now[0])
    checkpoints = Checkpoints(tmp_path)
    snapshot = template()
    bad = snapshot._replace(total=5)
    bad = bad._replace(state=in_dtype(bad.state._replace(params=jax.tree.map(
        lambda leaf: np.full(leaf.shape, np.nan), bad.state.params)), jnp.float32))  # fmt: skip
    for second, shown in ((1, snapshot), (7.9, snapshot._replace(total=3)), (9, bad)):
        now[0] = second
        checkpoints.watch(shown)
    assert not any(tmp_path.iterdir())
    # The last good one, which the divergence would have taken, is there to be saved.
    assert checkpoints.save_last_good() == tmp_path / "3"
    now[0] = 20
    checkpoints.watch(snapshot._replace(total=8))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "8"]
    restored, _ = Checkpoints(tmp_path).restore(template())
    assert restored.total == 8


def test_a_checkpoint_says_in_plain_json_where_it_is(tmp_path):
    path, *_ = save_some(tmp_path, totals=(24,))
    about = json.loads((path / "about" / "metadata").read_text())
    assert (about["epoch"], about["step"]) == (2, 0)
    assert [record["epoch"] for record in about["history"]] == [1, 2]
    assert about["best"]["epoch"] in (1, 2)
