"""Pretrained models that installable packages carry, each with a task that has an answer."""
