"""Calibrated quantization: codes, scales and biases chosen by what the model computes with them.

texts: the calibration data; blocks: one decoder layer at a time; lockstep: batches that pause at
each matrix; solver and grid: the best codes for a matrix; engine: the walk through the model;
scratch: results on the disk; distillation: a last pass over scales and biases.
"""
