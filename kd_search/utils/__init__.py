"""Files, threads, inference loops, and communication between ranks."""
