"""Encoder-decoders of transformers: encoded once, decoded step by step."""
