from __future__ import annotations

import struct
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.dsutils import decode as decode_data_set

from dicom_node import commands
from dicom_node.commands import Command, CommandError
from tests.dicom_node.support import store_rq


def test_a_store_request_is_read() -> None:
    command = commands.decode(store_rq("1.2.3", "1.2.3.4", 17))
    assert command == Command(
        commands.C_STORE_RQ,
        17,
        has_data_set=True,
        affected_sop_class_uid=b"1.2.3\0",
        affected_sop_instance_uid=b"1.2.3.4\0",
    )


@given(
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.binary(max_size=64),
    st.text(st.characters(codec="ascii")),
)
def test_a_store_response_is_one_that_pynetdicom_reads(
    message_id: int, status: int, uid: bytes, comment: str
) -> None:
    request = Command(
        commands.C_STORE_RQ,
        message_id,
        has_data_set=True,
        affected_sop_class_uid=b"1.2.840.10008.5.1.4.1.1.2",
        affected_sop_instance_uid=uid,
    )
    encoded = commands.encode_store_response(request, status, comment)
    ds = decode_data_set(BytesIO(encoded), is_implicit_vr=True, is_little_endian=True)
    assert ds.CommandGroupLength == len(encoded) - 12
    assert (ds.CommandField, ds.Status, ds.MessageIDBeingRespondedTo) == (0x8001, status, message_id)
    assert ds.CommandDataSetType == 0x0101
    again = commands.decode(encoded)
    assert again.affected_sop_instance_uid.rstrip(b"\0") == uid.rstrip(b"\0")


@given(st.binary(max_size=200))
def test_bytes_that_are_no_command_set_are_refused(data: bytes) -> None:
    try:
        command = commands.decode(data)
    except CommandError:
        return
    assert 0 <= command.field <= 0xFFFF


@pytest.mark.parametrize("cut", [1, 5, 9])
def test_a_cut_command_set_is_refused(cut: int) -> None:
    with pytest.raises(CommandError):
        commands.decode(store_rq("1.2.3", "1.2.3.4")[:-cut])


def test_a_p_data_pdu_holds_the_whole_command_as_its_last_fragment() -> None:
    sent = commands.p_data(5, b"command")
    assert sent == struct.pack(">BBIIBB", 4, 0, 4 + 2 + 7, 2 + 7, 5, 3) + b"command"


def test_a_store_request_that_we_write_is_one_that_pynetdicom_reads() -> None:
    encoded = commands.encode_store_request("1.2.3", "1.2.3.44", 700, 2, ("WORKSTATION", 9))
    ds = decode_data_set(BytesIO(encoded), is_implicit_vr=True, is_little_endian=True)
    assert ds.CommandGroupLength == len(encoded) - 12
    assert (ds.CommandField, ds.MessageID, ds.Priority, ds.CommandDataSetType) == (1, 700, 2, 1)
    assert (ds.AffectedSOPClassUID, ds.AffectedSOPInstanceUID) == ("1.2.3", "1.2.3.44")
    assert ds.MoveOriginatorApplicationEntityTitle == "WORKSTATION"
    assert ds.MoveOriginatorMessageID == 9
    assert commands.decode(encoded).has_data_set


def test_a_response_with_counts_is_one_that_pynetdicom_reads() -> None:
    numbers = {0x1020: 3, 0x1021: 2, 0x1022: 1, 0x1023: 0}
    encoded = commands.encode_response(0x8021, "1.2.3", 7, 0xFF00, has_data_set=True, numbers=numbers)
    ds = decode_data_set(BytesIO(encoded), is_implicit_vr=True, is_little_endian=True)
    assert ds.CommandGroupLength == len(encoded) - 12
    assert (ds.CommandField, ds.Status, ds.MessageIDBeingRespondedTo) == (0x8021, 0xFF00, 7)
    assert (ds.NumberOfRemainingSuboperations, ds.NumberOfCompletedSuboperations) == (3, 2)
    assert (ds.NumberOfFailedSuboperations, ds.NumberOfWarningSuboperations) == (1, 0)
    assert ds.CommandDataSetType == 1
