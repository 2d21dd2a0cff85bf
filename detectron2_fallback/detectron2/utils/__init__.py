"""Logging, communication between processes, events, files and other helpers."""
