"""Sharing of studies: two sites, a coordinator's real door and ledger, real pictures; no engine."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydicom import dcmread
from sqlalchemy import select, update

from appliance import node, research_api, research_client
from appliance.consortium import block as blocks
from appliance.consortium import chronicle, parcel, replica
from appliance.consortium.chain import audit
from appliance.consortium.errors import ConsortiumError
from appliance.consortium.manifest import Manifest, ManifestError
from appliance.consortium.parcel import ParcelError
from appliance.consortium.selection import SelectionError, Wanted, choose
from appliance.consortium.sharing import Sharing, SharingError, Terms
from appliance.consortium.speaking import Speaker
from appliance.db.base import new_id
from appliance.db.engine import reading, writing
from appliance.db.research import (
    ConsortiumBlock,
    Label,
    ResearchInstance,
    ResearchLedgerEntry,
    StudyShare,
    Subject,
)
from appliance.federation import joining
from appliance.federation.errors import CoordinatorAwayError, EnrolmentError
from appliance.research_client import ResearchRefusedError
from appliance.settings import Settings
from tests.appliance.federation.doorway import Doorway, running_doorway
from tests.cxr import write_studies
from trainer.folders import read_site_folder
from trainer.weights_io import sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from appliance.node import ResearchZone

SITES = ("north", "south", "west")
SUBJECTS = 3
ALL = Wanted(label="finding")


@dataclass
class Scene:
    """A coordinator and two sites that joined it; ``north`` has studies."""

    doorway: Doorway
    north: Sharing
    south: Sharing
    west: Sharing
    folder: Path

    def give(self, wanted: Wanted = ALL, to: str = "south") -> tuple[StudyShare, Path]:
        """Give north's studies away."""
        output = self.folder / f"{new_id()}.share"
        chosen = choose(self.north.speaker.zone, wanted)
        return self.north.give(
            chosen, Terms(to, "EK 2026/7", "external validation"), output, "user-1"
        ), output

    def blocks(self) -> list[blocks.Signed]:
        """The coordinator's chain."""
        with reading(self.doorway.book.engine) as session:
            return chronicle.stored(session)

    def steps(self) -> list[tuple[str, str]]:
        """Who took which step, as the ledger has it."""
        read = [blocks.read_block(one.body) for one in self.blocks()]
        return [(one.share.share.site, one.share.share.step) for one in read if one.share is not None]


def add_studies(zone: ResearchZone, folder: Path) -> None:
    """File real pictures of different people as de-identified studies, with a label each."""
    studies = write_studies("nih", folder, SUBJECTS)
    with writing(zone.engine) as session:
        for number, study in enumerate(studies):
            dataset = dcmread(study.path)
            subject = Subject(pseudonym=f"P{number}")
            dataset.PatientID, dataset.PatientName = subject.pseudonym, ""
            dataset.StudyInstanceUID = f"2.25.7{number}"
            dataset.PatientIdentityRemoved = "YES"
            path = zone.root / "instances" / f"{number}.dcm"
            path.parent.mkdir(exist_ok=True)
            dataset.save_as(path)
            session.add(subject)
            session.flush()
            session.add(
                ResearchInstance(
                    subject_id=subject.id,
                    study_instance_uid=str(dataset.StudyInstanceUID),
                    series_instance_uid="2.25.1",
                    sop_instance_uid=f"2.25.8{number}",
                    sop_class_uid=str(dataset.SOPClassUID),
                    modality="CR",
                    path=f"instances/{number}.dcm",
                    size_bytes=path.stat().st_size,
                    sha256=sha256(path),
                    crossing_id=new_id(),
                )
            )
            session.add(Label(pseudonym=subject.pseudonym, name="finding", value=number % 2, source="csv"))


def sections(name: str) -> dict[str, Any]:
    return {"dicom": {"port": 0}, "web": {"port": 0}, "federation": {"site": name, "share_studies": True}}


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of a coordinator and of the sites that joined it, to be copied: keys take long to make."""
    folder = tmp_path_factory.mktemp("consortium")
    with running_doorway(folder / "coordinator") as doorway:
        for name in SITES:
            settings = Settings(name=name, data_root=folder / name / "data", **sections(name))
            node.create_node(settings)
            joining.join(doorway.invite(name), settings)
            if name == "north":
                zone = node.open_research(settings)
                add_studies(zone, folder / "pacs")
                zone.engine.dispose()
            shutil.rmtree(node.run_dir(settings))
    return folder


@pytest.fixture
def scene(make_node: Callable[..., Settings], tmp_path: Path, consortium: Path) -> Iterator[Scene]:
    shutil.copytree(consortium, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("run"))
    with running_doorway(tmp_path / "coordinator") as doorway:
        sites: dict[str, Sharing] = {}
        for name in SITES:
            settings = make_node(name=name, fresh=True, **sections(name))
            zone = node.open_research(settings)
            sites[name] = Sharing(Speaker(zone, zone.root / "federation" / "workspace"))
        yield Scene(doorway, **sites, folder=tmp_path)
        for sharing in sites.values():
            sharing.speaker.zone.engine.dispose()


def received_folder(row: StudyShare, sharing: Sharing) -> Path:
    return sharing.speaker.zone.root / row.path


def joined(sharing: Sharing) -> ResearchZone:
    """Return a site's zone with settings that name the workspace, as those of a process that starts do."""
    zone = sharing.speaker.zone
    federation = zone.settings.federation.model_copy(update={"workspace": sharing.speaker.workspace})
    return replace(zone, settings=zone.settings.model_copy(update={"federation": federation}))


def test_what_is_given_arrives_whole_and_every_step_stands_in_everybodys_ledger(scene: Scene) -> None:
    given, path = scene.give()
    assert given.step == "given"

    row = scene.south.receive(path, "user-2")

    folder = received_folder(row, scene.south)
    files = sorted(one.stem for one in folder.glob("*.dcm"))
    assert files == sorted(sha256(one) for one in (scene.north.speaker.zone.root / "instances").iterdir())
    found = read_site_folder(folder, "finding")
    assert sorted(case.label for case in found.cases) == [0, 0, 1]
    assert scene.steps() == [("north", "given"), ("south", "received")]
    chains = [one.speaker.sync() for one in (scene.north, scene.south, scene.west)]
    assert len({chain.head.root for chain in chains}) == 1
    assert chains[2].shares[given.manifest_sha256].step == "received"
    scene.north.announce()
    assert scene.north.withdraw(given.id, "user-1").step == "withdrawn"
    scene.south.announce()
    erased = scene.south.erase(row.id, "user-2")

    assert erased.step == "erased"
    assert not folder.exists()
    assert scene.steps()[2:] == [("north", "withdrawn"), ("south", "erased")]
    assert audit(scene.blocks())[1] == []
    with reading(scene.south.speaker.zone.engine) as session:
        kinds = list(session.scalars(select(ResearchLedgerEntry.kind).order_by(ResearchLedgerEntry.sequence)))
    assert [kind for kind in kinds if kind.startswith("share.")] == ["share.received", "share.erased"]


def test_a_parcel_shows_nothing_and_opens_for_its_receiver_alone(scene: Scene) -> None:
    _, path = scene.give()

    content = path.read_bytes()
    assert content.startswith(b"age-encryption.org/v1")
    assert not any(word in content for word in (b"DICM", b"manifest", b"EK 2026/7", b"2.25.7"))
    with pytest.raises(ParcelError, match="not for this site's key"):
        scene.west.receive(path, "user-3")
    assert scene.steps() == [("north", "given")]


@pytest.mark.parametrize("place", [0, 60, -1], ids=["first byte", "in the header", "last byte"])
def test_a_damaged_parcel_is_refused_and_leaves_nothing(scene: Scene, place: int) -> None:
    _, path = scene.give()
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)

    with pytest.raises(ParcelError):
        scene.south.receive(path, "user-2")

    assert leftovers(scene.south) == []
    assert scene.steps() == [("north", "given")]


def leftovers(sharing: Sharing) -> list[str]:
    """Return what lies in a site's folder of shared studies."""
    folder = sharing.speaker.zone.root / "shared"
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file())


def test_a_parcel_is_received_once(scene: Scene) -> None:
    _, path = scene.give()
    scene.south.receive(path, "user-2")

    with pytest.raises(SharingError, match="it is received"):
        scene.south.receive(path, "user-2")

    assert scene.steps() == [("north", "given"), ("south", "received")]


def test_a_parcel_that_the_ledger_does_not_know_is_refused(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise EnrolmentError("the coordinator refuses: another day")

    with monkeypatch.context() as patched:
        patched.setattr(Speaker, "say", refused)
        with pytest.raises(EnrolmentError):
            scene.give()
    [path] = scene.folder.glob("*.share")

    with pytest.raises(SharingError, match="does not name this parcel"):
        scene.south.receive(path, "user-2")
    assert leftovers(scene.south) == []


def test_a_step_that_the_coordinator_did_not_hear_is_said_later(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise CoordinatorAwayError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(Speaker, "say", away)
        with pytest.raises(CoordinatorAwayError):
            scene.give()
    assert scene.steps() == []

    [row] = scene.north.announce()

    assert (row.step, row.pending) == ("given", None)
    assert scene.steps() == [("north", "given")]


def test_a_step_whose_answer_was_lost_is_not_said_twice(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = Speaker.say

    def heard_without_answer(speaker: Speaker, signed: Any) -> None:
        say(speaker, signed)
        raise CoordinatorAwayError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(Speaker, "say", heard_without_answer)
        with pytest.raises(CoordinatorAwayError):
            scene.give()

    [row] = scene.north.announce()

    assert (row.step, row.pending) == ("given", None)
    assert scene.steps() == [("north", "given")]


def test_a_site_killed_while_it_received_receives_again(scene: Scene) -> None:
    given, path = scene.give()
    left = scene.south.speaker.zone.root / "shared" / given.manifest_sha256
    left.mkdir(parents=True)
    (left / "half.dcm").write_bytes(b"half")

    row = scene.south.receive(path, "user-2")

    assert row.step == "received"
    assert len(leftovers(scene.south)) == SUBJECTS + 1


@pytest.mark.parametrize("to", ["north", "nobody"])
def test_only_another_member_can_be_the_receiver(scene: Scene, to: str) -> None:
    with pytest.raises(SharingError, match="another active member"):
        scene.give(to=to)
    assert list(scene.folder.glob("*.share")) == []


def test_a_member_that_left_cannot_be_the_receiver(scene: Scene) -> None:
    joining.leave(scene.south.speaker.workspace, scene.south.speaker.zone.root)

    with pytest.raises(SharingError, match="another active member"):
        scene.give()


def test_the_panels_questions_take_the_same_steps(scene: Scene) -> None:
    given, path = scene.give()
    received = scene.south.receive(path, "user-2")
    zones = [joined(sharing) for sharing in (scene.north, scene.south)]
    services = [research_api.start_api(zone) for zone in zones]
    north, south = (research_client.connect(zone.settings) for zone in zones)
    try:
        assert [one.step for one in north.announce_shares()] == ["received"]
        with pytest.raises(ResearchRefusedError, match="that this site received"):
            north.share_step(given.id, "erase", "user-1")
        assert north.share_step(given.id, "withdraw", "user-1").step == "withdrawn"
        [asked] = south.announce_shares()
        assert (asked.step, asked.given, asked.folder) == (
            "withdrawn",
            False,
            str(received_folder(received, scene.south)),
        )
        assert south.share_step(received.id, "erase", "user-2").step == "erased"
        assert [one.folder for one in south.shares()] == [None]
        with pytest.raises(ResearchRefusedError, match="no share of this id"):
            south.share_step("0" * 32, "erase", "user-2")
        with pytest.raises(ResearchRefusedError, match="withdraw or erase"):
            south.share_step(received.id, "give", "user-2")
    finally:
        for service in services:
            service.stop()
    assert scene.steps()[-2:] == [("north", "withdrawn"), ("south", "erased")]


def test_sharing_is_off_unless_it_was_switched_on(make_node: Callable[..., Settings], scene: Scene) -> None:
    zone = scene.north.speaker.zone
    federation = zone.settings.federation.model_copy(update={"share_studies": False})
    off = replace(zone, settings=zone.settings.model_copy(update={"federation": federation}))
    sharing = Sharing(Speaker(off, scene.north.speaker.workspace))

    with pytest.raises(SharingError, match="switched off"):
        sharing.give(choose(zone, ALL), Terms("south", "1", "x"), scene.folder / "x.share", "user-1")
    with pytest.raises(SharingError, match="switched off"):
        sharing.receive(scene.folder / "x.share", "user-1")


def test_people_who_opted_out_are_left_out_and_cannot_be_named(scene: Scene) -> None:
    zone = scene.north.speaker.zone
    with writing(zone.engine) as session:
        session.execute(update(Subject).where(Subject.pseudonym == "P1").values(opted_out=True))

    chosen = choose(zone, ALL)

    assert (chosen.subjects, chosen.opted_out) == (SUBJECTS - 1, 1)
    for wanted in (Wanted(subjects=frozenset({"P1"})), Wanted(studies=frozenset({"2.25.71"}))):
        with pytest.raises(SelectionError, match="1 of the studies or subjects") as caught:
            choose(zone, wanted)
        assert "P1" not in str(caught.value)
        assert "2.25.71" not in str(caught.value)
    with pytest.raises(SelectionError, match="no study is left"):
        choose(zone, Wanted(label="another"))


def test_a_label_on_which_sources_disagree_does_not_travel(scene: Scene) -> None:
    zone = scene.north.speaker.zone
    with writing(zone.engine) as session:
        session.add(Label(pseudonym="P0", name="finding", value=1, source="other"))

    assert {one.patient_id for one in choose(zone, ALL).labels} == {"P1", "P2"}


@pytest.mark.parametrize("kind", ["not de-identified", "changed", "no DICOM"])
def test_a_file_that_is_not_as_it_should_be_stops_the_whole_parcel(scene: Scene, kind: str) -> None:
    zone = scene.north.speaker.zone
    path = zone.root / "instances" / "1.dcm"
    if kind == "not de-identified":
        dataset = dcmread(path)
        dataset.PatientIdentityRemoved = "NO"
        dataset.save_as(path)
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"x" if kind == "changed" else b"no DICOM at all" * 20)
    if kind != "changed":
        with writing(zone.engine) as session:
            session.execute(
                update(ResearchInstance)
                .where(ResearchInstance.path == "instances/1.dcm")
                .values(sha256=sha256(path), size_bytes=path.stat().st_size)
            )

    with pytest.raises(ParcelError, match="nothing was shared"):
        scene.give()

    assert list(scene.folder.glob("*.share")) == list(scene.folder.glob(".*")) == []
    assert scene.steps() == []
    assert leftovers(scene.north) == []


def hostile_parcel(scene: Scene, **changes: Any) -> tuple[Path, Manifest]:
    """Make a parcel at north, with a list that does not fit, and its step in the ledger."""
    chosen = choose(scene.north.speaker.zone, ALL)
    manifest = Manifest(
        giver="north",
        receiver="south",
        ethics_number="1",
        purpose="x",
        at="now",
        studies=chosen.studies,
        subjects=chosen.subjects,
        files=chosen.files,
        labels=chosen.labels,
    )
    return scene.folder / "hostile.share", replace(manifest, **changes)


def test_the_receiver_checks_what_the_giver_should_have_checked(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A giver whose program was changed sends a file that still names its patient."""
    zone = scene.north.speaker.zone
    path = zone.root / "instances" / "1.dcm"
    dataset = dcmread(path)
    dataset.PatientIdentityRemoved = "NO"
    dataset.save_as(path)
    with writing(zone.engine) as session:
        session.execute(
            update(ResearchInstance)
            .where(ResearchInstance.path == "instances/1.dcm")
            .values(sha256=sha256(path), size_bytes=path.stat().st_size)
        )
    with monkeypatch.context() as patched:
        patched.setattr(parcel, "_check", lambda *_: None)
        _, given = scene.give()

    with pytest.raises(ParcelError, match="not marked as de-identified"):
        scene.south.receive(given, "user-2")

    assert leftovers(scene.south) == []
    assert scene.steps() == [("north", "given")]


@pytest.mark.parametrize(
    "changes",
    [{"labels": ({"patient_id": "a\nb"},)}, {"studies": 0}, {"giver": "../x"}, {"purpose": "\x00"}],
    ids=["labels", "no study", "name", "text"],
)
def test_a_list_that_is_none_is_refused(scene: Scene, changes: dict[str, Any]) -> None:
    path, manifest = hostile_parcel(scene)
    object.__setattr__(manifest, *next(iter(changes.items())))
    key = blocks.public_hex(scene.south.speaker.zone.keys.signing.public_key())
    paths = choose(scene.north.speaker.zone, ALL).paths
    parcel.write(path, manifest, paths, key, scene.folder / "work")

    with pytest.raises(ManifestError):
        scene.south.receive(path, "user-2")
    assert leftovers(scene.south) == []


def test_a_disk_that_is_full_leaves_no_part_of_a_parcel(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = scene.give()
    usage = shutil.disk_usage(scene.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))

    with pytest.raises(ParcelError, match="more than are free"):
        scene.south.receive(path, "user-2")
    assert leftovers(scene.south) == []

    with pytest.raises(ParcelError, match="cannot be written"):
        scene.north.give(
            choose(scene.north.speaker.zone, ALL), Terms("south", "1", "x"), Path("/dev/full/x"), "user-1"
        )


def test_a_site_cannot_speak_for_another_nor_take_a_step_out_of_turn(scene: Scene) -> None:
    given, _ = scene.give()
    chain = scene.west.speaker.sync()
    said = chain.shares[given.manifest_sha256]
    key = scene.west.speaker.zone.keys.signing
    head: dict[str, Any] = {"head_size": chain.size, "head_root": chain.head.root}

    for share, why in (
        (replace(said, site="south", step="received", **head), "another site"),
        (replace(said, site="west", step="received", **head), "does not follow"),
        (replace(said, site="west", step="erased", receiver="west", **head), "does not follow"),
        (replace(said, site="west", giver="west", manifest="e" * 64, receiver="nobody", **head), "no other"),
    ):
        with pytest.raises(EnrolmentError, match=why):
            scene.west.speaker.say(blocks.sign_share(share, key))
    with pytest.raises(SharingError, match="received and has not erased"):
        scene.north.erase(given.id, "user-1")
    assert scene.steps() == [("north", "given")]


def test_a_history_that_the_coordinator_changed_stops_sharing(scene: Scene) -> None:
    scene.give()
    with writing(scene.south.speaker.zone.engine) as session:
        replica.current(session)
    scene.south.speaker.sync()
    with writing(scene.south.speaker.zone.engine) as session:
        session.execute(
            update(ConsortiumBlock).where(ConsortiumBlock.sequence == 2).values(body='{"nothing":1}')
        )

    with pytest.raises(ConsortiumError):
        scene.south.speaker.sync()
