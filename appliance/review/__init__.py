"""Review of what de-identification stopped: a person tries out and decides, a second one may agree."""
