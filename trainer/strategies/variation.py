"""Variation-aware: sites agree on a style, and every picture is brought to it before the network sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from trainer.strategies.fedavg import FedAvg

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.strategies.base import Array, Weights

STYLE: Final = "style:statistics"
BANDS: Final = 3


class VariationAware(FedAvg):
    """Harmonised inputs, averaged as in FedAvg. Parameter: ``server_learning_rate`` (1).

    A style is five numbers: the mean of a picture, and its standard deviation in three bands of detail and in
    what remains. In the first round sites send theirs and train nothing; from the second on every picture is
    given the mean style, band by band, at the sites and in the exported model.

    References
    ----------
    Yan et al., Variation-Aware Federated Learning With Multi-Source Decentralized Medical Image Data, IEEE
    JBHI 25 (2021): a common picture space. There a generative network carries pictures over to the site of
    the simplest ones; here statistics of intensity and frequency do, to the mean of the sites.
    """

    def prepared(self, initial: Mapping[str, Array]) -> Weights:
        """Add a style of mean 0 and deviations 1."""
        style = np.ones(BANDS + 2, dtype=np.float32)
        style[0] = 0.0
        return {**initial, STYLE: style}
