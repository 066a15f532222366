"""The evidence pack: what a privacy officer needs to judge a research project's de-identification."""
