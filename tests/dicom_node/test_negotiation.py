from __future__ import annotations

import pytest
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AllStoragePresentationContexts, build_context

from dicom_node import negotiation


@pytest.mark.parametrize(
    "context", AllStoragePresentationContexts, ids=lambda item: item.abstract_syntax.keyword
)
def test_every_storage_class_of_the_standard_is_taken(context: object) -> None:
    assert negotiation.is_stored(str(getattr(context, "abstract_syntax", "")))


@pytest.mark.parametrize(
    "uid",
    [
        "1.2.840.10008.5.1.4.1.1.6",  # retired: Ultrasound Image Storage
        "1.2.840.10008.5.1.4.1.1.99999.1",  # of an edition to come
        "1.3.46.670589.11.0.0.12.2",  # private: Philips Private MR Series Data Storage
        "2.25.12345",
    ],
)
def test_retired_unknown_and_private_classes_are_taken(uid: str) -> None:
    assert negotiation.is_stored(uid)


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
    assert not negotiation.is_stored(uid)


def test_all_transfer_syntaxes_that_pydicom_names_are_accepted() -> None:
    streams = ("1.2.840.10008.1.2.7.",)  # DICOM-RTV over RTP, PS3.22
    wanted = {str(uid) for uid in AllTransferSyntaxes if not uid.startswith(streams)}
    assert wanted <= negotiation.transfer_syntaxes()
    assert len(negotiation.transfer_syntaxes()) > 45
    assert "1.2.840.10008.1.2.6.2" not in negotiation.transfer_syntaxes()  # XML


def test_the_sender_chooses_the_transfer_syntax() -> None:
    proposed = [build_context("1.2.840.10008.5.1.4.1.1.2", ["1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2"])]
    (context, verification) = negotiation.supported_contexts(proposed)
    assert list(context.transfer_syntax) == ["1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2"]
    assert verification.abstract_syntax == negotiation.VERIFICATION


def test_a_private_transfer_syntax_is_not_accepted() -> None:
    proposed = [build_context("1.2.840.10008.5.1.4.1.1.2", ["1.2.840.113619.5.2", "1.2.840.10008.1.2"])]
    assert list(negotiation.supported_contexts(proposed)[0].transfer_syntax) == ["1.2.840.10008.1.2"]
