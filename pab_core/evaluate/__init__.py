"""Measurements: how fast, how near to the unaccelerated video, on which machine."""
