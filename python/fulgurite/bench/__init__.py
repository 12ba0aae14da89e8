"""Side-by-side benchmarks against plain PyTorch: ``python -m fulgurite.bench``."""
