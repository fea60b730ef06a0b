"""Checkpoints of transformers that write no text: encoders, classifiers, detectors."""
