"""What ``benchmarks/stress.py`` calls again and again, and how each call is watched."""
