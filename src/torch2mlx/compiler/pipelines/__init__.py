"""Pipelines of diffusers, as folders or single files: each model of them compiled by itself."""
