"""Modules over the operators."""
