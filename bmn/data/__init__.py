"""Annotations and features: reading, checking, packing and batching them."""
