"""Kinds of pictures that have a frame of reference or are not what they say they are.

What is marked in one without could not be placed, and no segmentation of it can be made.
"""

from __future__ import annotations

from typing import Final

# PS3.3 annex A: IODs of which the module Frame of Reference (C.7.4.1) has the usage M.
NEEDING: Final = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{last}"
    for last in (
        "2", "2.1", "2.2",  # CT; Enhanced; Legacy Converted Enhanced
        "4", "4.1", "4.3", "4.4",  # MR; Enhanced; Enhanced Color; Legacy Converted Enhanced
        "6.3",  # Photoacoustic
        "13.1.1", "13.1.2",  # X-Ray 3D Angiographic, Craniofacial
        "13.1.3", "13.1.4", "13.1.5",  # Breast Tomosynthesis; Breast Projection for presentation, processing
        "14.1", "14.2",  # Intravascular Optical Coherence Tomography for presentation, processing
        "77.1.3",  # VL Slide-Coordinates Microscopic
        "77.1.5.5", "77.1.5.6",  # Wide Field Ophthalmic Photography: Stereographic Projection, 3D Coordinates
        "77.1.5.7",  # Ophthalmic Optical Coherence Tomography En Face
        "77.1.8", "77.1.9",  # Confocal Microscopy; Tiled Pyramidal
        "128", "128.1", "130",  # Positron Emission Tomography; Legacy Converted Enhanced; Enhanced
        "481.23", "481.24",  # Enhanced RT, Enhanced Continuous RT
    )
)  # fmt: skip
