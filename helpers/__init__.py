"""The laboratory behind the notebooks: data on the device, training loops, metrics and figures."""
