"""Predictions to numbers: metrics, their uncertainty, and predictions that are kept with what made them."""
