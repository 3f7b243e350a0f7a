"""Calibration images, and what makes a network survive 8 bit and fp16."""
