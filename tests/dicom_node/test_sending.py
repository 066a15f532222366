from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from dicom_node.part10 import MAX_META_BYTES, decode
from dicom_node.scu import Destination, associate
from dicom_node.sending import SendingError, send_store
from tests.dicom_node.support import (
    DCMTK,
    RunningSCP,
    ct,
    free_port,
    listening,
    process,
    program,
    save,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pynetdicom.association import Association


def data_set(path: Path) -> bytes:
    """Return the data set of a Part 10 file as it lies there."""
    content = path.read_bytes()
    return content[decode(content[:MAX_META_BYTES]).data_offset :]


@pytest.fixture
def association(scp: RunningSCP) -> Iterator[Association]:
    contexts = [(str(CTImageStorage), [str(ExplicitVRLittleEndian)])]
    opened = associate(Destination("CLOISTER", "127.0.0.1", scp.port), "PACS", contexts)
    yield opened
    if opened.is_established:
        opened.release()


def test_instances_follow_each_other_byte_for_byte(
    scp: RunningSCP, association: Association, tmp_path: Path
) -> None:
    paths = [save(ct(size=size), tmp_path / f"{size}.dcm") for size in (8, 700, 64)]
    statuses = [send_store(association, path, message_id=number) for number, path in enumerate(paths)]
    assert statuses == [0, 0, 0]
    assert [data_set(entry.path) for entry in scp.heard.received] == [data_set(path) for path in paths]


def test_a_refusal_is_returned_and_the_association_goes_on(
    scp: RunningSCP, association: Association, tmp_path: Path
) -> None:
    scp.inbox.max_instance_bytes = 4000
    assert send_store(association, save(ct(size=64), tmp_path / "large.dcm")) == 0xC000
    assert send_store(association, save(ct(size=8), tmp_path / "small.dcm"), message_id=2) == 0


def test_what_was_not_negotiated_is_not_sent(association: Association, tmp_path: Path) -> None:
    other = save(ct(SOPClassUID=MRImageStorage), tmp_path / "mr.dcm")
    with pytest.raises(SendingError, match="no presentation context") as error:
        send_store(association, other)
    assert not error.value.ended
    path = save(ct(), tmp_path / "ct.dcm")
    other_syntax = b"1.2.840.10008.1.2.5\0"
    content = path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", other_syntax)
    path.write_bytes(content)
    with pytest.raises(SendingError, match="no presentation context"):
        send_store(association, path)


def test_a_peer_that_is_gone_ends_the_sending(
    scp: RunningSCP, association: Association, tmp_path: Path
) -> None:
    path = save(ct(size=64), tmp_path / "a.dcm")
    assert send_store(association, path) == 0
    scp.scp.stop()
    with pytest.raises(SendingError) as error:
        send_store(association, path, message_id=2)
    assert error.value.ended


@pytest.mark.dcmtk
def test_what_dcmtk_receives_is_what_was_stored(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    port = free_port()
    for _ in process([program(DCMTK / "storescp"), "+uc", "+B", "-od", str(tmp_path / "out"), str(port)]):
        wait_until(lambda: listening(port), "storescp listens")
        contexts = [(str(CTImageStorage), [str(ExplicitVRLittleEndian)])]
        opened = associate(Destination("ANY", "127.0.0.1", port), "CLOISTER", contexts)
        path = save(ct(size=600), tmp_path / "a.dcm")
        assert send_store(opened, path, originator=("WORKSTATION", 7)) == 0
        opened.release()
        (stored,) = (tmp_path / "out").iterdir()
        assert data_set(stored) == data_set(path)
