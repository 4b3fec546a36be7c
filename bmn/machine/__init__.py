"""Devices, processes, precision and traces."""
