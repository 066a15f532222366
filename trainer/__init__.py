"""Training: datasets, labels, networks, local rounds, strategies, export and the federation's pure parts."""
