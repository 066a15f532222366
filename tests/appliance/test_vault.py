"""The vault of identities: its key is replaced while the node works, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, update

from anonymizer import vault as sealing
from appliance import keys, vault
from appliance.db.base import WorkState
from appliance.db.clinical import ClinicalLedgerEntry, VaultEntry
from appliance.db.engine import reading, writing
from appliance.vault import Identity, VaultError
from tests.anonymizer.node import Node, make_node, study_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENTRIES = 7


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = make_node(tmp_path)
    with writing(made.clinical.engine) as session:
        for number in range(ENTRIES):
            identity = Identity("trial", f"MRN-{number}", "HOSPITAL")
            vault.store_identity(made.clinical, session, (f"P{number}", "trial"), identity)
    yield made
    made.clinical.engine.dispose()
    made.research.engine.dispose()


def _known(node: Node) -> list[str]:
    with reading(node.clinical.engine) as session:
        found = [vault.open_entry(node.clinical, session, f"P{number}", "trial") for number in range(ENTRIES)]
    return [each.patient_id for each in found if each is not None]


def _key_ids(node: Node) -> set[str]:
    with reading(node.clinical.engine) as session:
        return set(session.scalars(select(VaultEntry.key_id)))


def _entries(node: Node, kind: str) -> list[dict[str, object]]:
    with reading(node.clinical.engine) as session:
        rows = session.scalars(select(ClinicalLedgerEntry).where(ClinicalLedgerEntry.kind == kind))
        return [json.loads(row.body) for row in rows]


ALL = [f"MRN-{number}" for number in range(ENTRIES)]


def test_a_rotation_seals_all_anew_and_destroys_the_old_key(node: Node) -> None:
    path = node.clinical.root / "keys" / "vault.key"
    old, second_name = path.read_bytes(), node.clinical.root / "old"
    second_name.hardlink_to(path)
    assert vault.rotate(node.clinical, batch=3) == ENTRIES
    assert _key_ids(node) == {sealing.key_id(path.read_bytes())}
    assert path.read_bytes() != old
    assert path.stat().st_mode & 0o777 == 0o600
    assert second_name.read_bytes() != old, "the old key's own blocks are overwritten"
    assert not (path.parent / "vault.next.key").exists()
    assert _known(node) == ALL
    name = {"key": f"key:{sealing.key_id(path.read_bytes())}", "entries": ENTRIES}
    assert _entries(node, vault.ROTATION_BEGUN) == _entries(node, vault.ROTATED) == [name]


@pytest.mark.parametrize("step", range(5))
def test_a_rotation_that_is_killed_leaves_a_working_node_and_goes_on(node: Node, step: int) -> None:
    """Steps: the key is made, three batches are sealed, all is recorded."""
    calls: list[int] = []

    def die(_done: int, _of: int) -> None:
        calls.append(1)
        if len(calls) == step + 1:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        vault.rotate(node.clinical, batch=3, on_progress=die)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert len(_key_ids(node)) == (2 if step in {1, 2} else 1)
    assert _known(node) == ALL
    assert node.release(node.add_study(study_of(1))).state == WorkState.DONE
    following = (node.clinical.root / "keys" / "vault.next.key").read_bytes()
    assert vault.rotate(node.clinical, batch=3) == ENTRIES + 1
    assert _key_ids(node) == {sealing.key_id(following)}
    assert keys.load_vault_keys(node.clinical.root) == keys.VaultKeys(following, None)
    assert _known(node) == ALL
    assert len(_entries(node, vault.ROTATION_BEGUN)) == len(_entries(node, vault.ROTATED)) == 1


def test_what_is_sealed_within_a_rotation_gets_the_new_key(node: Node) -> None:
    def seal(_done: int, _of: int) -> None:
        identity, number = Identity("trial", "MRN-LATE", ""), len(_known(node))
        with writing(node.clinical.engine) as session:
            vault.store_identity(node.clinical, session, (f"L{number}-{_done}-{_of}", "trial"), identity)

    vault.rotate(node.clinical, batch=4, on_progress=seal)
    assert _key_ids(node) == {sealing.key_id(keys.load_vault_keys(node.clinical.root).current)}
    assert _known(node) == ALL


def test_the_state_counts_entries_by_key_before_within_and_after_a_rotation(node: Node) -> None:
    def state() -> list[tuple[str, int]]:
        return [(use.role, use.entries) for use in vault.state(node.clinical).keys]

    before = vault.state(node.clinical)
    assert (before.entries, before.projects, before.rotated_at) == (ENTRIES, 1, None)
    assert state() == [("current", ENTRIES)]
    seen = []
    vault.rotate(node.clinical, batch=4, on_progress=lambda _done, _of: seen.append(state()))
    assert seen[1] == [("current", ENTRIES - 4), ("following", 4)]
    after = vault.state(node.clinical)
    assert state() == [("current", ENTRIES)]
    assert after.keys[0].name != before.keys[0].name
    assert after.rotated_at is not None
    with writing(node.clinical.engine) as session:
        session.execute(update(VaultEntry).where(VaultEntry.pseudonym == "P5").values(key_id="0" * 16))
    assert state() == [("current", ENTRIES - 1), ("missing", 1)]


def test_two_rotations_at_once_are_refused(node: Node) -> None:
    def again(_done: int, _of: int) -> None:
        with pytest.raises(VaultError, match="another rotation"):
            vault.rotate(node.clinical)

    assert vault.rotate(node.clinical, on_progress=again) == ENTRIES


def test_an_entry_of_a_lost_key_stops_the_rotation_and_nothing_is_destroyed(node: Node) -> None:
    old = keys.load_vault_keys(node.clinical.root).current
    with writing(node.clinical.engine) as session:
        session.execute(update(VaultEntry).where(VaultEntry.pseudonym == "P5").values(key_id="0" * 16))
    with pytest.raises(VaultError, match="nothing was destroyed"):
        vault.rotate(node.clinical, batch=3)
    assert keys.load_vault_keys(node.clinical.root).current == old
    with reading(node.clinical.engine) as session:
        with pytest.raises(VaultError, match="not here"):
            vault.open_entry(node.clinical, session, "P5", "trial")
        assert vault.open_entry(node.clinical, session, "nobody", "trial") is None


def test_an_entry_that_was_moved_does_not_open(node: Node) -> None:
    with writing(node.clinical.engine) as session:
        first, second = (session.get_one(VaultEntry, (name, "trial")) for name in ("P1", "P2"))
        first.nonce, first.ciphertext = second.nonce, second.ciphertext
    with reading(node.clinical.engine) as session, pytest.raises(VaultError, match="does not open"):
        vault.open_entry(node.clinical, session, "P1", "trial")
