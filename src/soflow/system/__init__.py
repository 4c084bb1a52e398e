"""Infrastructure without flow models: atomic files, processes, devices, progress and logs."""
