"""The federation at this appliance: the site's side, the coordinator's side, and the engine's components."""
