"""Graph → graph, one file each."""
