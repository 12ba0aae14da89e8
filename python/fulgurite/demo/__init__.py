"""Train a small mixture-of-experts language model, with fulgurite and with plain PyTorch.

``python -m fulgurite.demo`` runs it; ``--help`` lists the options.
"""
