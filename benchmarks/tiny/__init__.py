"""Tiny random instances of every architecture in transformers, and inputs that they take."""
