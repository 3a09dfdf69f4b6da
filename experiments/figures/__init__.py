"""Figures from saved runs, each as PNG and PDF: see docs/figures.md."""
