"""Metrics as pure functions of decoded annotations and arrays."""
