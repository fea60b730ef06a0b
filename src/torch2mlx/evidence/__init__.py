"""Figures of a conversion beside its manifest, and the certificate that other machines check."""
