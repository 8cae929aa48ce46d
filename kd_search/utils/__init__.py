"""Files, progress, and communication between ranks."""
