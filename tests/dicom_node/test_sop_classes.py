"""Which SOP classes are taken, by default and where retired or private ones are ruled out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts

from dicom_node import sop_classes
from dicom_node.archive import ArchiveError
from dicom_node.arriving import Arrivals
from dicom_node.inbox import Inbox
from dicom_node.retrieve_scu import get
from dicom_node.scu import Destination
from dicom_node.sop_classes import StorageClasses
from tests.dicom_node.support import CALLER, BytePeer, ct, dcmtk, encoded, pdu, pdv, save, store_rq
from tests.dicom_node.test_retrieve_scu import Patience

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.dicom_node.support import RunningSCP

ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6"  # retired
PHILIPS = "1.3.46.670589.11.0.0.12.2"  # private: MR Series Data Storage
GE = "1.2.840.113619.4.30"  # private
LATER = "1.2.840.10008.5.1.4.1.1.99999.1"  # of an edition to come
VERIFICATION = "1.2.840.10008.1.1"
STRICT = StorageClasses(retired=False, private=frozenset())

# PS3.6 table A-1, edition 2025: storage SOP classes with the mark "(Retired)".
RETIRED = (
    "1.2.840.10008.5.1.1.29",  # Hardcopy Grayscale Image Storage
    "1.2.840.10008.5.1.1.30",  # Hardcopy Color Image Storage
    "1.2.840.10008.5.1.4.1.1.3",  # Ultrasound Multi-frame Image Storage
    "1.2.840.10008.5.1.4.1.1.5",  # Nuclear Medicine Image Storage
    "1.2.840.10008.5.1.4.1.1.6",  # Ultrasound Image Storage
    "1.2.840.10008.5.1.4.1.1.8",  # Standalone Overlay Storage
    "1.2.840.10008.5.1.4.1.1.9",  # Standalone Curve Storage
    "1.2.840.10008.5.1.4.1.1.9.1",  # Waveform Storage - Trial
    "1.2.840.10008.5.1.4.1.1.10",  # Standalone Modality LUT Storage
    "1.2.840.10008.5.1.4.1.1.11",  # Standalone VOI LUT Storage
    "1.2.840.10008.5.1.4.1.1.12.3",  # X-Ray Angiographic Bi-Plane Image Storage
    "1.2.840.10008.5.1.4.1.1.12.77",  # no name in the table
    "1.2.840.10008.5.1.4.1.1.40",  # no name in the table
    "1.2.840.10008.5.1.4.1.1.77.1",  # VL Image Storage - Trial
    "1.2.840.10008.5.1.4.1.1.77.2",  # VL Multi-frame Image Storage - Trial
    "1.2.840.10008.5.1.4.1.1.88.1",  # Text SR Storage - Trial
    "1.2.840.10008.5.1.4.1.1.88.2",  # Audio SR Storage - Trial
    "1.2.840.10008.5.1.4.1.1.88.3",  # Detail SR Storage - Trial
    "1.2.840.10008.5.1.4.1.1.88.4",  # Comprehensive SR Storage - Trial
    "1.2.840.10008.5.1.4.1.1.129",  # Standalone PET Curve Storage
    "1.2.840.10008.5.1.4.34.1",  # RT Beams Delivery Instruction Storage - Trial
)


@pytest.mark.parametrize(
    "context", AllStoragePresentationContexts, ids=lambda item: item.abstract_syntax.keyword
)
def test_every_storage_class_of_the_standard_is_taken(context: object) -> None:
    uid = str(getattr(context, "abstract_syntax", ""))
    assert sop_classes.EVERY.accepts(uid)
    assert STRICT.accepts(uid) == (uid not in RETIRED)


@pytest.mark.parametrize("uid", [*RETIRED, LATER, PHILIPS, GE, "2.25.12345"])
def test_retired_unknown_and_private_classes_are_taken(uid: str) -> None:
    assert sop_classes.EVERY.accepts(uid)


@pytest.mark.parametrize(
    "uid",
    [
        "1.2.840.10008.1.20.1",  # Storage Commitment Push
        "1.2.840.10008.1.3.10",  # Media Storage Directory
        "1.2.840.10008.5.1.4.1.2.2.1",  # Study Root Query - FIND
        "1.2.840.10008.5.1.4.1.2.2.2",  # Study Root Query - MOVE
        "1.2.840.10008.3.1.2.3.3",  # Modality Performed Procedure Step
        "1.2.840.10008.5.1.4.38.1",  # Hanging Protocol: no patient's object
        "1.2.840.10008.1.2.1",  # a transfer syntax
    ],
)
def test_other_services_are_not(uid: str) -> None:
    assert not sop_classes.EVERY.accepts(uid)


def test_what_the_standard_retired_is_known() -> None:
    found = {uid for uid, known in sop_classes.storage_classes().items() if known.retired}
    assert found == set(RETIRED)


def test_retired_and_private_ones_are_ruled_out_apart() -> None:
    assert not StorageClasses(retired=False).accepts(ULTRASOUND)
    assert StorageClasses(retired=False).accepts(PHILIPS)
    named = StorageClasses(private=frozenset({PHILIPS}))
    assert (named.accepts(PHILIPS), named.accepts(GE), named.accepts(ULTRASOUND)) == (True, False, True)
    assert STRICT.accepts(LATER)


def inbox(tmp_path: Path, classes: StorageClasses) -> Inbox:
    return Inbox(tmp_path / "strict", min_free_bytes=0, classes=classes)


def accepted(scp: RunningSCP, *proposed: str) -> dict[str, bool]:
    """Propose SOP classes over pynetdicom and say which were accepted."""
    ae = AE("PACS")
    for uid in proposed:
        ae.add_requested_context(uid, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", scp.port, ae_title="CLOISTER")
    try:
        assert association.is_established
        refused = {str(context.abstract_syntax): context.result for context in association.rejected_contexts}
        assert set(refused.values()) <= {3}, "abstract syntax not supported (PS3.8 table 9-18)"
        return {uid: uid not in refused for uid in proposed}
    finally:
        association.release()


def test_contexts_are_refused_by_what_the_inbox_takes(
    run_scp: Callable[..., RunningSCP], tmp_path: Path
) -> None:
    proposed = (CTImageStorage, ULTRASOUND, PHILIPS, GE, LATER)
    scp = run_scp(into=inbox(tmp_path, StorageClasses(retired=False, private=frozenset({GE}))))
    assert list(accepted(scp, *proposed).values()) == [True, False, False, True, True]


@pytest.mark.dcmtk
@pytest.mark.parametrize("sop_class", [ULTRASOUND, PHILIPS])
def test_a_retired_and_a_private_class_are_stored_byte_for_byte_or_refused(
    run_scp: Callable[..., RunningSCP], tmp_path: Path, sop_class: str
) -> None:
    ds = ct(SOPClassUID=sop_class)
    path = save(ds, tmp_path / "a.dcm")

    def send(scp: RunningSCP) -> str:
        to = ["-v", "-aec", "CLOISTER", "-aet", "PACS", "127.0.0.1", str(scp.port)]
        return dcmtk("dcmsend", *to, path, check=False).stderr

    named = run_scp(into=inbox(tmp_path, StorageClasses(private=frozenset({PHILIPS}))))
    send(named)
    (entry,) = named.inbox.entries(2)
    assert entry.sop_class_uid == sop_class
    assert entry.path.read_bytes().endswith(encoded(ds))
    strict = run_scp(into=Inbox(tmp_path / "other", min_free_bytes=0, classes=STRICT))
    assert "no acceptable pres." in send(strict)
    assert strict.inbox.count() == 0
    assert strict.heard.received == []
    assert strict.heard.refused == []


def test_what_was_not_negotiated_is_not_stored_on_another_context(
    run_scp: Callable[..., RunningSCP], tmp_path: Path
) -> None:
    scp = run_scp(into=inbox(tmp_path, STRICT))
    with BytePeer(scp.port) as peer:
        syntaxes = [ExplicitVRLittleEndian]
        assert peer.associate((CTImageStorage, syntaxes), (VERIFICATION, syntaxes))[0] == 0x02
        for context_id, sop_class in ((1, ULTRASOUND), (1, PHILIPS), (3, CTImageStorage), (3, VERIFICATION)):
            peer.send(pdu(0x04, pdv(context_id, 0x03, store_rq(sop_class, "1.2.3"))))
            peer.send(pdu(0x04, pdv(context_id, 0x02, encoded(ct()))))
            assert peer.status() == 0x0122
        assert peer.store(encoded(ct()), CTImageStorage, "1.2.4") == 0
        assert peer.release() == 0x06
    assert scp.inbox.count() == 1


def test_a_fetch_asks_for_nothing_that_is_not_taken(tmp_path: Path) -> None:
    arrivals = Arrivals(inbox(tmp_path, STRICT), CALLER, "1.2.3")
    nowhere = Destination("ARCHIVE", "127.0.0.1", 1)
    with pytest.raises(ArchiveError, match="none of its SOP classes is taken here") as caught:
        get(nowhere, "CLOISTER", {}, Patience(), arrivals, sop_classes=[ULTRASOUND, PHILIPS])
    assert not caught.value.retryable
