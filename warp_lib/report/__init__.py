"""Figures, tables, notebooks run from the command line, the page, and publishing."""
