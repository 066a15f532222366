"""Engine-neutral parts of the federation: the plan, the site's gate, the receipt and the aggregation."""
