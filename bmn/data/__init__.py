"""Annotations and features: from files to what the network sees."""
