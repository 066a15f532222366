"""The processes of a node: each is ``python -m appliance.processes.NAME --config PATH``."""
