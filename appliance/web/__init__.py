"""The panel and the API: what IT staff, the privacy officer and radiologists see of a node."""
