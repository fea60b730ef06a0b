"""One file a model family: `RULES` for its model types (see `architectures.registry`)."""
