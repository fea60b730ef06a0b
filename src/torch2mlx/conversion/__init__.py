"""Carrying out a plan in bounded memory."""
