"""Devices, processes, precision, traces."""
