"""Device, processes, threads, files and screen."""
