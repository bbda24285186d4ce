"""Data sets, downloads, embedded samples and device-resident batches."""
