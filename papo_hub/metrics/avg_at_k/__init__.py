"""Accuracy over k responses a problem."""
