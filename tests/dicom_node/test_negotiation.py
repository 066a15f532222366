from __future__ import annotations

from pydicom.uid import AllTransferSyntaxes
from pynetdicom import build_context

from dicom_node import negotiation


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
